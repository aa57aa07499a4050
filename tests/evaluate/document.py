"""The document of the evaluation, made from figures alone: what was not measured is not in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from queries.catalogue import catalogue
from tests.evaluate.baselines import METHODS, NAMES
from tests.evaluate.figures import BUDGETS, FAMILIES, OURS, SEEN
from tests.evaluate.judge import RULE


def percent(ratio: Sequence[Any]) -> str:
    """A ratio with its interval, in per cent."""
    value, low, high, *_ = ratio
    return "–" if value is None else f"{value * 100:.0f} % ({low * 100:.0f}–{high * 100:.0f})"


def number(ratio: Sequence[Any]) -> str:
    """A ratio with its interval, as a number."""
    value, low, high, *_ = ratio
    return "–" if value is None else f"{value:.2f} ({low:.2f}–{high:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned to the right."""
    marks = ["---" if at < left else "---:" for at in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, marks, *rows))


def document(answers: Mapping[str, Any]) -> str:
    """Markdown."""
    parts = [_head(answers), _found(answers), _waits(answers), _parts(answers), _short(answers), _rule(), _baselines()]
    if "robustness" in answers:
        from tests.evaluate.robustness import section

        parts.append(section(answers["robustness"]))
    if "scale" in answers:
        from tests.evaluate.scale import section as scaled

        parts.append(scaled(answers["scale"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(answers: Mapping[str, Any]) -> str:
    worlds = answers["worlds"]
    toy = (
        "\n\n**This is a run of the smallest worlds, to test the machinery. It says nothing about quality.**"
        if answers["quick"]
        else ""
    )
    tenants, quiet, days = (", ".join(map(str, worlds[key])) for key in ("tenants", "null tenants", "days"))
    return f"""\
# Evaluation

Made-up worlds of raw logs, with intrusions planted in them and with harmless events that look alike, went through the product's
own way: init, reference load, ingest, hunt with the shipped detections and parameters. What it showed was held against what was
planted. Beside it stand four simple baselines over the same archives at the same budget. The worlds are made up by the same people
who made the detections: read this as a test of the machinery and of regressions, not as a promise about your logs.{toy}

- {worlds['planted']} worlds of {tenants} tenants with planted campaigns (seeds {_seeds(worlds['seeds'])}) and {worlds['null']} of {quiet} tenants with nothing
  planted (seeds {_seeds(worlds['null seeds'])}), {days} days, {worlds['events']:,} events in all; {worlds['labelled events']:,} events stem from
  {worlds['labelled records']:,} labelled records, planted or of one of {worlds['harmless events']:,} harmless events that leave any.
- The hunt looks at the last 30 days of each world, and at none of its first 14. Of {worlds['campaigns']} planted campaigns {worlds['before window']} begin before that.
{_unseen(answers["unseen"])}- Command: `{answers['command']}`; commit {answers['commit']}; {answers['cores']} cores;
  {sum(worlds['seconds'].values()):,} s for the worlds, one after another.

Numbers in brackets are 95 % intervals of a bootstrap over seeds (2,000 draws, seeded).

![Recall by campaign at both budgets](pictures/evaluation.svg)"""  # fmt: skip


def _unseen(fresh: Mapping[str, Any]) -> str:
    if not fresh["worlds"]:
        return ""
    found = " and ".join(f"{n} at {budget} a day" for budget, n in fresh["found"].items())
    return (
        f"- While the detections were worked on, worlds with seeds up to {SEEN} were looked at. In the {fresh['worlds']} others "
        f"{fresh['campaigns']} campaigns are planted;\n  found are {found}.\n"
    )


def _seeds(seeds: Sequence[int]) -> str:
    if not seeds:
        return "none"
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _found(answers: Mapping[str, Any]) -> str:
    text = ["## What is found, and at what load"]
    for budget in map(str, BUDGETS):
        rows = []
        for name in (OURS, *METHODS):
            own, rank = answers["methods"][name]["budgets"][budget], answers["methods"][name]["ranking"]
            rows.append(
                [name, percent(own["recall"]["all"]), percent(own["precision"]), number(own["cases a day"]),
                 number(own["cases a day, nothing planted"]), percent(own["harmless named"]), number(rank["pr_auc"])]
            )  # fmt: skip
        header = ["", "campaigns found", "true among shown cases", "cases a day", "cases a day, nothing planted",
                  "harmless events named", "PR-AUC"]  # fmt: skip
        text += [f"At most {budget} case{'s' if budget != '1' else ''} a day:", table(header, rows)]
    ours = answers["methods"][OURS]
    budget = ours["budgets"][str(max(BUDGETS))]
    rank = [
        [name, *(percent(answers["methods"][name]["ranking"][key]) for key in ("precision@10", "precision@50")),
         answers["methods"][name]["ranking"]["cases"]]
        for name in (OURS, *METHODS)
    ]  # fmt: skip
    text += [
        "True cases among the first 10 and 50 of each world's ranking, or among all where there are fewer:",
        table(["", "precision@10", "precision@50", "cases in all"], rank),
        f"""Of the cases that hit a campaign, {percent(budget["true cases of several campaigns"])} hold more than one campaign; of their
findings, {percent(budget["findings of true cases that rest on a campaign"])} rest on a planted step. Harmless events named by findings of
severity medium or higher: {percent(budget["harmless named, medium or higher"])}.""",
    ]
    letters = [key for key in budget["recall"] if key != "all"]
    for budget_name in map(str, BUDGETS):
        rows = [
            [name, *(percent(answers["methods"][name]["budgets"][budget_name]["recall"][letter]) for letter in letters)]
            for name in (OURS, *METHODS)
        ]
        text += [f"By campaign, at most {budget_name} a day:", table(["", *letters], rows)]
    return "\n\n".join(text)


def _waits(answers: Mapping[str, Any]) -> str:
    top = str(max(BUDGETS))
    letters = list(answers["methods"][OURS]["budgets"][top]["days to detection"])
    if not letters:
        return ""
    daily = answers["daily hunts"]
    rows = [
        [f"{OURS}, hunted daily, {budget} a day", *(_wait(daily[budget].get(letter)) for letter in letters)]
        for budget in map(str, BUDGETS)
        if daily[budget]
    ]
    rows += [
        [name if name != OURS else f"{OURS}, one hunt, {top} a day", *(
            _wait(answers["methods"][name]["budgets"][top]["days to detection"][letter]) for letter in letters
        )]
        for name in (OURS, *METHODS)
    ]  # fmt: skip
    n = answers["worlds"]["hunted daily"]
    really = (
        f' "Hunted daily" ran a real hunt on each day with planted activity, over the 30 days up to it, in {n} of the worlds.'
        if n
        else ""
    )
    return f"""\
## Days to detection

Days from the first planted record to the day on which a shown case first hits the campaign: median / 90 % point; campaigns that
are never found count as endless, and "∞" is such a point. "One hunt" takes each finding on the day of its last event, which is an
upper bound.{really}

{table(["", *letters], rows)}"""


def _wait(held: Mapping[str, Any] | None) -> str:
    if not held:
        return "–"
    middle, high = ("∞" if held[key] is None else f"{held[key]:g}" for key in ("median", "p90"))
    return f"{middle} / {high}"


def _parts(answers: Mapping[str, Any]) -> str:
    families, methods = answers["families"], answers["methods"]
    letters = sorted({letter for own in families.values() for letter in own})
    top = str(max(BUDGETS))
    alone = [[f"{key}: {FAMILIES[key]}", *(percent(families[key][letter]) for letter in letters)] for key in FAMILIES]
    rows = []
    for name in (OURS, *(f"without {family}" for family in FAMILIES)):
        own = methods[name]["budgets"]
        rows.append(
            [name, *(percent(own[str(b)]["recall"]["all"]) for b in BUDGETS), percent(own[top]["precision"]),
             number(own[top]["cases a day, nothing planted"]), number(methods[name]["ranking"]["pr_auc"])]
        )  # fmt: skip
    header = [
        "",
        *(f"found, {b} a day" for b in BUDGETS),
        "true among shown cases",
        "cases a day, nothing planted",
        "PR-AUC",
    ]
    hunted = {detection.id for detection in catalogue()}
    by_detection = [[name, *own.values()] for name, own in answers["detections"].items() if name in hunted]
    others = [f"{name} ({own['expected']})" for name, own in answers["detections"].items() if name not in hunted]
    note = f"\n\nExpected, but not detections of the hunt: {', '.join(others)}." if others else ""
    columns = ["", "steps expected", "of these met", "findings", "on planted steps", "on harmless events", "on neither",
               "in worlds with nothing planted"]  # fmt: skip
    return f"""\
## What each family adds

The cases again, linked and ranked without the findings of one family:

{table(header, rows)}

Campaigns on which at least one finding of the family rests, whatever the budget:

{table(["", *letters], alone)}

By detection; "expected" is what the maker of the world noted beside a planted step:

{table(columns, by_detection)}{note}"""


def _short(answers: Mapping[str, Any]) -> str:
    """What falls short, as the figures say it."""
    top, hunted = max(BUDGETS), {detection.id for detection in catalogue()}
    own = answers["methods"][OURS]["budgets"][str(top)]
    text = []
    if answers["missed"]:
        rows = [
            [item["seed"], item["campaign"], ", ".join(item["findings with some of its records"]) or "none"]
            for item in answers["missed"]
        ]
        text += [
            f"Campaigns that no shown case hits at {top} cases a day, and the detections whose findings hold some of their records:",
            table(["seed", "campaign", "findings that touch it"], rows, left=3),
        ]
    unmet = [
        [name, d["expected"], d["met"]]
        for name, d in answers["detections"].items()
        if d["met"] < d["expected"] and name in hunted
    ]
    if unmet:
        text += [
            "Detections that were expected on more steps than they met:",
            table(["", "steps expected", "met"], unmet),
        ]
    better = [
        f"{name} finds {percent(answers['methods'][name]['budgets'][b]['recall'][letter])} of campaign {letter} at {b} a day, "
        f"{OURS} {percent(answers['methods'][OURS]['budgets'][b]['recall'][letter])}"
        for name in METHODS
        for b in map(str, BUDGETS)
        for letter in own["recall"]
        if letter != "all" and _is_better(answers, name, b, letter)
    ]
    if better:
        text += ["Where a baseline finds more:", "\n".join(f"- {item}." for item in better)]
    if answers["worlds"]["skipped"]:
        text += [
            "Detections that had nothing to read in these worlds: " + "; ".join(answers["worlds"]["skipped"]) + "."
        ]
    return "## What falls short\n\n" + ("\n\n".join(text) if text else "Nothing in this run.")


def _is_better(answers: Mapping[str, Any], name: str, budget: str, letter: str) -> bool:
    theirs, ours = (answers["methods"][key]["budgets"][budget]["recall"][letter][0] for key in (name, OURS))
    return theirs is not None and ours is not None and theirs > ours


def _rule() -> str:
    return f"""\
## The rule

{RULE}

The budget: a finding is known from the day of its last event on. Each day the cases are linked from the findings known by then;
those that are new or have grown on this day are ranked by score, and the best 10 (or 1) are shown. What is left over does not
come again unless it grows. Cases that the product only watches (low findings of one family or from declared networks, without a second signal) are not shown. A case that grows takes a place again and is counted once. Precision counts each shown case as it last
stood. PR-AUC is the area under precision (true cases among those so far) over recall (campaigns so far), by world, averaged."""


def _baselines() -> str:
    rows = "\n".join(
        f"- **{name}** ({NAMES[name]}): {' '.join((method.__doc__ or '').split())}" for name, method in METHODS.items()
    )
    return f"""\
## The baselines

They read the accesses of the same archive. Alerts of the same tenant, entity and day are one case, ranked by the baseline's own
score; the budget and the rule are the same.

{rows}"""
