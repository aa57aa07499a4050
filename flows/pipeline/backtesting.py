"""How often a detection would have fired over an archive, and on what. Nothing here writes into the archive."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from archive.store import Archive
from data_contracts.errors import UsageError
from queries.catalogue import SEVERITIES, Detection
from queries.text import iso

if TYPE_CHECKING:
    import duckdb

    from queries.findings import Finding

LONGEST = 3_660  # days of a window, or of a step
MOST_RUNS = 1_000  # windows times values
MOST_VALUES = 20
MOST_NAMED = 5  # of the entities of one kind
MOST_EXAMPLES = 20
_COUNTED = ("tenant_ids", "credential_ids", "principal_ids", "source_networks")


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows over an archive, in order of time, and the values of the parameters to try; `swept` names the one."""

    windows: tuple[tuple[datetime, datetime], ...]
    swept: str | None
    trials: tuple[Mapping[str, Any], ...]


def settings(detection: Detection, given: Sequence[str], sweep: str | None) -> tuple[str | None, list[dict[str, Any]]]:
    """Values of parameters as the command line has them: name=value, and name=v1,v2,... of the one that is swept.

    Returns:
        The name of the swept parameter, and the values of all parameters for each trial.

    Raises:
        UsageError: no such parameter, or a value that is none of its kind.
    """
    fixed = dict(_pair(detection, text) for text in given)
    if sweep is None:
        return None, [detection.values(fixed)]
    name, _, text = sweep.partition("=")
    values = list(dict.fromkeys(_pair(detection, f"{name}={v.strip()}")[1] for v in text.split(",") if v.strip()))
    if not 1 <= len(values) <= MOST_VALUES:
        raise UsageError(f"--sweep {sweep}: {len(values)} values", f"name=v1,v2,... with 1 to {MOST_VALUES} values")
    return name.strip(), [detection.values(fixed | {name.strip(): value}) for value in values]


def _pair(detection: Detection, text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    known = {parameter.name: parameter for parameter in detection.parameters}
    if not equals:
        raise UsageError(f"{text}: no value", "name=value")
    if name not in known:
        raise UsageError(f"{detection.id} has no parameter {name}", f"its parameters: {', '.join(known) or 'none'}")
    kind = type(known[name].default)
    try:
        return name, _read(kind, value)
    except ValueError as error:
        raise UsageError(f"{detection.id}: {name} is {value}, not {kind.__name__}", known[name].help) from error


def _read(kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value


def windows(
    begin: datetime, end: datetime, *, length: timedelta, step: timedelta
) -> tuple[tuple[datetime, datetime], ...]:
    """Windows of a length that end a step apart, the last of them with `end`; the first may be shorter."""
    ends = [end]
    while ends[-1] - begin > max(length, step) and len(ends) <= MOST_RUNS:
        ends.append(ends[-1] - step)
    return tuple((at - min(length, at - begin), at) for at in reversed(ends))


def backtest(
    archive: Archive,
    detection: Detection,
    *,
    begin: datetime | None = None,
    end: datetime | None = None,
    length: int = 30,
    step: int = 30,
    given: Sequence[str] = (),
    sweep: str | None = None,
) -> dict[str, Any]:
    """How often a detection would have fired over an archive, and on what; the archive stays as it is.

    Args:
        archive: the archive; derived tables are read as they are.
        detection: which.
        begin, end: time that the windows cover, as far as the tables that the detection needs have rows; by default
            all of it.
        length: days of a window.
        step: days from one window to the next.
        given: name=value of parameters.
        sweep: name=v1,v2,... of a parameter that takes each of these values.

    Returns:
        detection, title, from, to, window_days, step_days, swept, behind (derived tables that do not hold all events);
        values: for each value `set` (of the swept parameter), findings and cases (different ones over all windows),
        suppressed, ran (windows), findings_a_day (of these), severities, entities (how many, and the most frequent),
        and steps (window, findings, new, skipped: why it did not run); examples: findings that only some values find,
        then the strongest, each with `set`, the values that find it.

    Raises:
        UsageError: wrong parameters or times, too many windows, or nothing to look at.
    """
    if not (1 <= length <= LONGEST and 1 <= step <= LONGEST):
        raise UsageError(f"a window and a step have 1 to {LONGEST} days", "--window 30 --step 30")
    swept, trials = settings(detection, given, sweep)
    with archive.connect() as con:
        begin, end = _span(con, detection, begin, end)
        looked = windows(begin, end, length=timedelta(days=length), step=timedelta(days=step))
        if len(looked) * len(trials) > MOST_RUNS:
            raise UsageError(
                f"more than {MOST_RUNS} runs ({len(trials)} values over each window)",
                "a longer --step, a shorter time, or fewer values",
            )
        plan = Plan(looked, swept, tuple(trials))
        done = [_trial(con, detection, plan, values) for values in plan.trials]
        return {
            "detection": detection.id,
            "title": detection.title,
            "from": iso(begin),
            "to": iso(end),
            "window_days": length,
            "step_days": step,
            "swept": swept,
            "behind": behind(archive, detection),
            "values": [told for told, _ in done],
            "examples": _examples(done),
        }


def behind(archive: Archive, detection: Detection) -> list[str]:
    """The derived tables that the detection reads and that have not taken in all events."""
    from data_contracts import contract
    from transforms.derived import derived

    held = archive.versions()
    return sorted(
        table.table
        for table in derived()
        if table.table in detection.tables
        and any(
            contract(source).kind == "event" and held[source] > archive.built_from(table.table).get(source, -1)
            for source in table.sources
            if source in held
        )
    )


def _span(
    con: "duckdb.DuckDBPyConnection", detection: Detection, begin: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    read = detection.needs or detection.tables  # an imported rule needs none of its tables in particular
    rows = [con.execute(f"select min(date), max(date) from {t}").fetchall()[0] for t in read]
    if not detection.needs:
        rows = [(low, high) for low, high in rows if low is not None]
    first = max((low for low, _ in rows if low is not None), default=None)
    last = min((high for _, high in rows if high is not None), default=None)
    if first is None or last is None or len([low for low, _ in rows if low is not None]) < len(rows):
        raise UsageError(
            f"the archive holds no rows for {detection.id}: it needs {', '.join(read)}",
            "gatehound status shows what there is; gatehound hunt brings derived tables up to date",
        )
    low, high = datetime.combine(first, time(), UTC), datetime.combine(last, time(), UTC) + timedelta(days=1)
    low, high = max(begin or low, low), min(end or high, high)
    if low >= high:
        raise UsageError(f"{detection.id} has nothing to read in that time", f"there are rows from {first} to {last}")
    return low, high


def _trial(
    con: "duckdb.DuckDBPyConnection", detection: Detection, plan: Plan, values: Mapping[str, Any]
) -> "tuple[dict[str, Any], dict[str, Finding]]":
    """What is told of one value, and its findings by id."""
    found: dict[str, Finding] = {}
    silenced: set[str] = set()
    steps = []
    for begin, end in plan.windows:
        kept, hidden, skipped = _hunted(con, detection, values, begin, end)
        new = {finding.finding_id for finding in kept} - found.keys()
        for finding in kept:
            known = found.get(finding.finding_id)
            if known is None or finding.score >= known.score:
                found[finding.finding_id] = finding
        silenced.update(finding.finding_id for finding in hidden)
        steps.append(
            {"from": iso(begin), "to": iso(end), "findings": len(kept), "new": len(new), "skipped": skipped or ""}
        )
    first, last = plan.windows[0][0], plan.windows[-1][1]
    ran = [looked for looked, step in zip(plan.windows, steps, strict=True) if not step["skipped"]]
    levels = Counter(finding.severity for finding in found.values())
    told = {
        "set": None if plan.swept is None else values[plan.swept],
        "findings": len(found),
        "cases": _cases(con, list(found.values()), first, last),
        "suppressed": len(silenced - found.keys()),
        "ran": len(ran),
        "findings_a_day": round(len(found) / _days(ran), 4) if ran else None,
        "severities": {level: levels[level] for level in reversed(SEVERITIES) if levels[level]},
        "entities": {kind: _most(found.values(), kind) for kind in _COUNTED},
        "steps": steps,
    }
    return told, found


def _days(looked: Sequence[tuple[datetime, datetime]]) -> float:
    """Days that windows cover, each once."""
    covered, until = timedelta(), looked[0][0]
    for begin, end in looked:
        covered += end - max(begin, until)
        until = end
    return covered / timedelta(days=1)


def _hunted(
    con: "duckdb.DuckDBPyConnection", detection: Detection, values: Mapping[str, Any], begin: datetime, end: datetime
) -> "tuple[list[Finding], list[Finding], str | None]":
    """Findings of a window, those that are expected, and why it did not run."""
    from queries.engine import run_detection
    from queries.expected import apply, rules
    from queries.subjects import lacking

    given = {**values, "window_from": begin, "window_to": end}
    reason = lacking(con, detection, given)
    if reason is not None:
        return [], [], reason
    # Evidence rows are only looked at by the rules about what is expected; without them they would be counted in vain.
    unseen = detection if rules(con) else replace(detection, evidence=replace(detection.evidence, where="false"))
    found = run_detection(con, unseen, given)
    if isinstance(found, str):
        return [], [], found
    kept, expected = apply(con, found, datetime.now(UTC))
    return kept, [item.finding for item in expected.suppressed], None


def _cases(con: "duckdb.DuckDBPyConnection", found: "list[Finding]", first: datetime, last: datetime) -> int:
    from queries.cases import link, surroundings
    from queries.engine import LONGEST_BASELINE

    around = surroundings(con, found, first.date() - timedelta(days=LONGEST_BASELINE), last.date())
    return len(link(found, around))


def _most(found: "Iterable[Finding]", kind: str) -> dict[str, Any]:
    """How many different ones, and the most frequent by number of findings."""
    counts = Counter(value for finding in found for value in finding.entities[kind])
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"different": len(counts), "most": [{"value": v, "findings": n} for v, n in ranked[:MOST_NAMED]]}


def _examples(done: "Sequence[tuple[dict[str, Any], dict[str, Finding]]]") -> list[dict[str, Any]]:
    by_id = {finding_id: finding for _, found in done for finding_id, finding in found.items()}
    finders = {i: [told["set"] for told, found in done if i in found] for i in by_id}
    order = sorted(by_id.values(), key=lambda f: (-f.score, f.first_seen, f.finding_id))
    order.sort(key=lambda f: len(finders[f.finding_id]) == len(done))
    return [
        {
            "finding_id": finding.finding_id,
            "set": finders[finding.finding_id],
            "severity": finding.severity,
            "score": finding.score,
            "first_seen": iso(finding.first_seen),
            "explanation": finding.explanation,
        }
        for finding in order[:MOST_EXAMPLES]
    ]
