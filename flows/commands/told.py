"""Hunts and detections in words: for a terminal, as Markdown, or as data."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.output import OutputFormat, emit, emit_frame, plain, say, stdout, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from queries.catalogue import Detection
    from queries.engine import HuntResult

_SEVERITY_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "green", "info": "dim"}
_WHO = (
    ("credentials", "credential_ids"),
    ("principals", "principal_ids"),
    ("applications", "app_ids"),
    ("from", "source_networks"),
    ("tenants", "tenant_ids"),
    ("mailboxes", "mailboxes"),
)
_NAMED = 5
_MOST_LIMITS = 8
_MOST_SINCE = 10  # cases of one kind that are listed


def show_hunt(
    result: "HuntResult",
    to: OutputFormat,
    *,
    judged: "Mapping[str, Mapping[str, Any]] | None" = None,
    since: "Mapping[str, Any] | None" = None,
) -> None:
    """Ranked cases: in words, as the document of `-t json`, or as one row for each finding."""
    from flows.pipeline.hunting import as_dict, told
    from reports.exports import findings_frame

    if to is OutputFormat.json:
        emit(as_dict(result, judged=judged, since=since))
        return
    answer = told(result, judged=judged, since=since)
    if to is OutputFormat.md:
        write(page(answer))
    elif to is OutputFormat.table:
        show_cases(answer)
    else:
        emit_frame(findings_frame(answer), to)


def show_cases(answer: dict[str, Any]) -> None:
    """Cases of a hunt on a terminal."""
    from rich.text import Text

    console = stdout()
    window = answer["window"]
    console.print(
        Text(f"Window {_when(window['from'])} to {_when(window['to'])} UTC, run {answer['run_id']}\n", style="dim")
    )
    for case in answer["cases"]:
        _show_case(case)
    if answer["beyond_budget"]:
        console.print(
            Text(f"{answer['beyond_budget']} more cases lie beyond the budget: --budget shows more.\n", style="yellow")
        )
    if not answer["cases"]:
        console.print(Text("No findings. This is no all-clear:", style="bold"))
    for line in (*suppressed_lines(answer), *since_lines(answer)):
        indented("", plain(line), "", text_style="yellow")
    console.print(Text(f"Ran {' '.join(answer['detections_run']) or 'nothing'}.", style="dim"))
    for skipped in answer["detections_skipped"]:
        console.print(Text(f"Skipped {skipped['id']}: {plain(skipped['reason'])}", style="yellow"))
    for line in nobody_lines(answer):
        console.print(Text(line, style="yellow"))
    _show_limits(answer["limits"])


def nobody_lines(answer: "Mapping[str, Any]") -> list[str]:
    """One line for all detections that ran, but as a whole or in a part could judge nobody; none where none did."""
    held = answer["detections_without_subjects"]
    parts: dict[str, list[str]] = {}
    for one in held:
        parts.setdefault(one["id"], []).extend([one["part"]] if one["part"] else [])
    named = ", ".join(f"{name} ({', '.join(told)})" if told else name for name, told in parts.items())
    return [plain(f"Judged nobody: {named}; -t md says why.")] if held else []


def nobody_said(answer: "Mapping[str, Any]") -> list[str]:
    """The same in full, a sentence for each; values as they are."""
    return [
        f"{one['id']} judged nobody{' for ' + one['part'] if one['part'] else ''}: {one['reason']}"
        for one in answer["detections_without_subjects"]
    ]


def _show_case(case: dict[str, Any]) -> None:
    from rich.text import Text

    from queries.wording import heading

    console = stdout()
    head = Text.assemble((f"{case['rank']}. ", "bold"))
    head.append(f" {case['severity']} ", style="reverse " + _SEVERITY_STYLE[case["severity"]])
    head.append(
        f"  score {case['score']:.0f}  {_when(case['first_seen'])} to {_when(case['last_seen'])}  ", style="bold"
    )
    head.append(case["case_id"], style="dim")
    console.print(head)
    indented("", plain(heading(case)), "bold", text_style="bold")
    indented("", plain(case["summary"]), "")
    for name, key in _WHO:
        values = case["entities"][key]
        if values and not (key == "principal_ids" and case["entities"]["credential_ids"]):
            more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
            indented(f"{name:<13}", f"{', '.join(map(plain, values[:_NAMED]))}{more}", "dim")
    for detection, findings in _by_detection(case["findings"]):
        strongest = max(findings, key=lambda f: f["score"])
        more = f"{len(findings)} findings, the strongest: " if len(findings) > 1 else ""
        indented(f"{detection:<13}", f"{more}{plain(strongest['explanation'])}", "cyan")
    judged = counted_states(case["findings"])
    if judged:
        indented(f"{'judged':<13}", judged, "magenta")
    console.print()


def _by_detection(findings: list[dict[str, Any]]) -> "Iterable[tuple[str, list[dict[str, Any]]]]":
    """Findings by detection, in the order of their first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        groups.setdefault(finding["detection"], []).append(finding)
    return groups.items()


def counted_states(findings: "Iterable[Mapping[str, Any]]") -> str:
    """How many findings were judged how: "2 benign, 1 confirmed"; nothing where none was."""
    counts = Counter(f["triage"]["state"] for f in findings if "triage" in f)
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def suppressed_lines(answer: "Mapping[str, Any]") -> list[str]:
    """What rules silenced, by rule, and which rules can silence nothing; values as they are."""
    held = answer.get("suppressed")
    if held is None:
        return []
    by_rule = Counter(rule["rule_id"] for f in held["findings"] for rule in f["rules"])
    owners = {rule["rule_id"]: rule for f in held["findings"] for rule in f["rules"]}
    n = held["count"]
    lines = [f"{n} {'finding is' if n == 1 else 'findings are'} suppressed as expected." if n else ""]
    for rule_id, number in sorted(by_rule.items()):
        rule = owners[rule_id]
        lines.append(
            f"{rule_id} ({rule['owner']}, to {_when(rule['valid_to'])}) silenced {number}: {rule['reason'][:200]}"
        )
    lines += [f"Rule {r['rule_id']} has no effect: {r['reason']}." for r in held["rules_without_effect"]]
    return [line for line in lines if line]


def since_lines(answer: "Mapping[str, Any]") -> list[str]:
    """What has changed since the run before: numbers, then each case that is new, changed or gone."""
    since = answer.get("since")
    if since is None:
        return []
    if since["run_id"] is None:
        return ["No run before to compare with: everything is new."]
    lines = [f"Since run {since['run_id']} of {_when(since['run_at'])} UTC:"]
    for kind in ("cases", "findings"):
        numbers = ", ".join(f"{len(since[kind][state])} {state}" for state in ("new", "changed", "ongoing", "gone"))
        lines.append(f"{kind}: {numbers}")
    for state in ("new", "gone"):
        reasons = Counter(item["why"] for item in since["findings"][state])
        told = "; ".join(f"{n} {why}" for why, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        lines += [f"{state} findings: {told}"] if told else []
    for state in ("new", "changed", "gone"):
        shown = since["cases"][state][:_MOST_SINCE]
        lines += [f"{state}: {_place(case)}{case['case_id']} ({case['severity']}){_of_case(case)}" for case in shown]
        more = len(since["cases"][state]) - _MOST_SINCE
        lines += [f"and {more} more cases {state}"] if more > 0 else []
    return lines


def _place(case: "Mapping[str, Any]") -> str:
    """Where the case stands in this hunt; a case that is gone stands nowhere."""
    return f"case {case['rank']}, " if "rank" in case else ""


def _of_case(case: "Mapping[str, Any]") -> str:
    if "why" in case:
        return f": {'; '.join(case['why'])}"
    if "was" not in case:
        return ""
    numbers = {word: case[f"findings_{word}"] for word in ("added", "changed", "gone")}
    parts = [f"{n} finding{'' if n == 1 else 's'} {word}" for word, n in numbers.items() if n]
    parts += [f"before {case['severity_then']}"] if case["severity_then"] != case["severity"] else []
    parts += [f"before under the id {', '.join(case['was'])}"] if case["was"] != [case["case_id"]] else []
    return f": {', '.join(parts)}"


def indented(label: str, text: str, style: str, text_style: str = "") -> None:
    """A label, and text that is wrapped beside it, as wide as the terminal."""
    from rich.cells import cell_len
    from rich.text import Text

    console = stdout()
    room = max(20, console.width - 4 - cell_len(label))
    for number, line in enumerate(Text(text, style=text_style).wrap(console, room)):
        line.rstrip()
        head = ("    " + (label if number == 0 else " " * cell_len(label)), style)
        console.print(Text.assemble(head, line), soft_wrap=True)


def _show_limits(limits: list[str]) -> None:
    from rich.text import Text

    if not limits:
        return
    console = stdout()
    console.print(Text("\nWhat these logs cannot say:", style="bold"))
    for limit in limits[:_MOST_LIMITS]:
        indented("- ", plain(limit), "dim")
    if len(limits) > _MOST_LIMITS:
        console.print(
            Text(f"    and {len(limits) - _MOST_LIMITS} more: -t json, -t md or the report has all.", style="dim")
        )


def page(answer: dict[str, Any]) -> str:
    """A hunt as Markdown; what came from logs is escaped."""
    from queries.wording import heading
    from reports.escape import md

    window = answer["window"]
    lines = [f"# Hunt {md(answer['run_id'])}", "", f"Window {_when(window['from'])} to {_when(window['to'])} UTC.", ""]
    for case in answer["cases"]:
        lines += [
            f"## {case['rank']}. {md(heading(case))}",
            "",
            f"{case['severity']}, score {case['score']:.0f}, {case['case_id']}",
            "",
            md(case["summary"]),
            "",
        ]
        judged = counted_states(case["findings"])
        lines += [f"Judged: {judged}.", ""] if judged else []
    if not answer["cases"]:
        lines += ["No findings. This is no all-clear.", ""]
    for title, said in (("Suppressed as expected", suppressed_lines), ("Since the run before", since_lines)):
        found = said(answer)
        lines += [f"## {title}", "", *(f"- {md(line)}" for line in found), ""] if found else []
    lines += ["## What these logs cannot say", "", *(f"- {md(limit)}" for limit in answer["limits"])]
    lines += [f"- {s['id']} did not run: {md(s['reason'])}" for s in answer["detections_skipped"]]
    lines += [f"- {md(line)}" for line in nobody_said(answer)]
    return "\n".join([*lines, "", f"Ran {md(' '.join(answer['detections_run']) or 'nothing')}."]) + "\n"


def _when(text: str) -> str:
    return text[:16].replace("T", " ")


def show_rule(detection: "Detection", to: OutputFormat) -> None:
    """One detection."""
    facts = {
        "id": detection.id,
        "title": detection.title,
        "hypothesis": detection.hypothesis,
        "family": detection.family,
        "severity": detection.severity,
        "attack": [{"technique": a.technique, "name": a.name, "tactics": list(a.tactics)} for a in detection.attack],
        "tables": list(detection.tables),
        "parameters": [{"name": p.name, "default": p.default, "help": p.help} for p in detection.parameters],
        "false_positives": list(detection.false_positives),
        "blind_spots": list(detection.blind_spots),
        "runbook": list(detection.runbook),
        "source": detection.source,
    }
    if to is OutputFormat.json:
        emit(facts)
    elif to is OutputFormat.table:
        _show_rule(detection)
    else:
        flat = {k: v if isinstance(v, str) else "; ".join(map(_in_words, v)) for k, v in facts.items()}
        emit_frame(pl.DataFrame([flat]), to)


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if "technique" in value:
        return f"{value['technique']} {value['name']}"
    return f"{value['name']} = {value['default']}: {value['help']}"


def _show_rule(detection: "Detection") -> None:
    from rich.text import Text

    console = stdout()
    console.print(Text(f"{detection.id}  {detection.title}", style="bold"))
    console.print(Text(detection.hypothesis))
    console.print(
        Text(f"{detection.family}, severity {detection.severity}, reads {', '.join(detection.tables)}", style="dim")
    )
    for title, lines in (
        ("ATT&CK", [f"{a.technique} {a.name} ({', '.join(a.tactics)})" for a in detection.attack]),
        ("Parameters", [f"{p.name} = {p.default}: {p.help}" for p in detection.parameters]),
        ("Runbook", detection.runbook),
        ("What else looks like this", detection.false_positives),
        ("Blind spots", detection.blind_spots),
    ):
        if lines:
            console.print(Text("\n" + title, style="bold"))
            for line in lines:
                indented("- ", line, "dim")
    if detection.text is None:
        console.print(Text(f"\nSource: queries/detections/{detection.path.name}", style="dim"))
    else:  # an imported rule, in somebody else's words
        console.print(Text("\nThe rule", style="bold"))
        for line in detection.text.splitlines():
            console.print(Text(plain(line)))


def show_demo(answer: dict[str, Any], to: OutputFormat) -> None:
    """Where the demo lies, what was found, and how that compares with what was planted."""
    if to is OutputFormat.json:
        emit({k: v for k, v in answer.items() if k != "told"})
        return
    if to is OutputFormat.table:
        show_cases(answer["told"])
        write("\n")
    planted = pl.DataFrame(answer["planted"], schema_overrides={"rank": pl.Int64}).rename({"rank": "found_in_case"})
    if to is OutputFormat.table:
        planted = planted.select("step", "tenant_id", "network", "events", "found_in_case")
    emit_frame(
        planted, to, title="What was planted, and the case that holds it", labels={"found_in_case": "found in case"}
    )
    t = answer["totals"]
    spent = ", ".join(f"{name} {s} s" for name, s in answer["seconds"].items())
    say(f"{t['records']:,} records ({answer['raw_bytes'] / 1e6:.0f} MB of logs, {t['files']} files). {spent}.")
    say(f"Report:  {answer['report'][0]}")
    say(f'Archive: {answer["archive"]}   try: gatehound sql -a {answer["archive"]} "show tables"')
