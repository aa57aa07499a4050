"""Answers as tables that fit a terminal, or as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.output import OutputFormat, emit_frame, plain, stderr, to_json, write

if TYPE_CHECKING:
    from queries.catalogue import Detection
    from queries.engine import HuntResult

_SEVERITY_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "green", "info": "dim"}


def show_ingest(answer: dict[str, Any], to: OutputFormat) -> None:
    """One line per piece of evidence, then what became of the records."""
    import polars as pl

    if to is OutputFormat.json:
        write(to_json(answer) + "\n")
        return
    rows = [
        {
            "file": e["path"], "format": e["format"], "status": e["status"], "records": e["records"], "events": sum(e["events"].values()),
            "cont.": e["continuations"], "ignored": sum(e["ignored"].values()), "dupl.": e["duplicates"], "quar.": sum(e["quarantined"].values()),
        }
        for e in answer["evidence"]
    ]  # fmt: skip
    kinds = {"file": pl.String, "format": pl.String, "status": pl.String} | dict.fromkeys(
        ("records", "events", "cont.", "ignored", "dupl.", "quar."), pl.Int64
    )
    frame = pl.DataFrame(rows, schema=kinds)
    if to is OutputFormat.table:
        frame = frame.with_columns(pl.col("file").map_elements(_tail, return_dtype=pl.String))
    emit_frame(frame, to)
    talk = stderr()
    for entry in answer["evidence"]:
        if entry["status"] == "refused":
            talk.print(f"refused {plain(entry['path'])}: {plain(entry['reason'])[:600]}", markup=False, style="red")
    t = answer["totals"]
    counts = ", ".join(f"{t[s]} {s}" for s in ("committed", "grown", "known", "refused") if t[s])
    talk.print(f"{t['files']} pieces of evidence: {counts or 'nothing'}.", markup=False)
    parts = f"{sum(t['events'].values()):,} events, {t['continuations']:,} continuations, {sum(t['ignored'].values()):,} ignored, "
    parts += f"{t['duplicates']:,} duplicates, {sum(t['quarantined'].values()):,} quarantined"
    talk.print(f"{t['records']:,} records = {parts}.", markup=False)
    if t["quarantined"]:
        talk.print("gatehound quarantine list shows what was refused and why.", markup=False, style="dim")


def _tail(path: str, size: int = 56) -> str:
    return path if len(path) <= size else "…" + path[-(size - 1) :]


def show_status(answer: dict[str, Any], to: OutputFormat) -> None:
    """Tables, evidence, coverage and quarantine."""
    import polars as pl

    if to is OutputFormat.json:
        write(to_json(answer) + "\n")
        return
    for name in ("tables", "evidence", "coverage", "quarantine"):
        if answer[name]:
            emit_frame(pl.DataFrame(answer[name], infer_schema_length=None), to, title=name)


def show_problems(problems: list[Any], to: OutputFormat) -> bool:
    """What verify found; whether anything of it is an integrity failure."""
    import polars as pl

    rows = [asdict(p) for p in problems]
    bad = any(p.severity == "integrity" for p in problems)
    if to is OutputFormat.json:
        write(to_json({"ok": not bad, "problems": rows}) + "\n")
    elif rows:
        emit_frame(pl.DataFrame(rows), to)
    if to is not OutputFormat.json:
        stderr().print("Integrity failure." if bad else "Evidence, custody chain and tables are as they were stored.", markup=False)
    return bad


def show_hunt(result: "HuntResult", to: OutputFormat) -> None:
    """Ranked cases, in words."""
    import json

    import polars as pl

    text = result.to_json()
    if to is OutputFormat.json:
        write(text + "\n")
        return
    answer = json.loads(text)
    if to is not OutputFormat.table:
        from reports.exports import findings_rows

        emit_frame(pl.DataFrame(findings_rows(answer), infer_schema_length=None), to)
        return
    show_cases(answer)


def show_cases(answer: dict[str, Any]) -> None:
    """Cases of a hunt on a terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    window = answer["window"]
    console.print(Text(f"Window {window['from'][:16]} to {window['to'][:16]} UTC, run {answer['run_id']}", style="dim"))
    for case in answer["cases"]:
        head = Text(f"{case['rank']}. ", style="bold")
        head.append(f" {case['severity']} ", style="reverse " + _SEVERITY_STYLE[case["severity"]])
        head.append(f"  score {case['score']:.0f}  {case['first_seen'][:16]} to {case['last_seen'][:16]}  ", style="bold")
        head.append(" ".join(dict.fromkeys(f["detection"] for f in case["findings"])), style="cyan")
        console.print(head)
        console.print(Padding(Text(plain(case["summary"])), (0, 0, 1, 4)))
    if not answer["cases"]:
        console.print("No findings. This is no all-clear:")
    ran = " ".join(answer["detections_run"])
    console.print(Text(f"Ran {ran or 'nothing'}.", style="dim"))
    for skipped in answer["detections_skipped"]:
        console.print(Text(f"Skipped {skipped['id']}: {plain(skipped['reason'])}", style="yellow"))
    if answer["limits"]:
        console.print(Text("What these logs cannot say:", style="bold"))
        for limit in answer["limits"][:8]:
            console.print(Padding(Text("- " + plain(limit)), (0, 0, 0, 2)))
        if len(answer["limits"]) > 8:
            console.print(Text(f"  and {len(answer['limits']) - 8} more (-t json, or the report).", style="dim"))


def show_rule(detection: "Detection", to: OutputFormat) -> None:
    """One detection."""
    from rich.console import Console
    from rich.text import Text

    source = detection.path.read_text()
    facts = {
        "id": detection.id, "title": detection.title, "hypothesis": detection.hypothesis, "family": detection.family,
        "severity": detection.severity, "attack": [{"technique": a.technique, "name": a.name, "tactics": list(a.tactics)} for a in detection.attack],
        "tables": list(detection.tables), "parameters": [{"name": p.name, "default": p.default, "help": p.help} for p in detection.parameters],
        "false_positives": list(detection.false_positives), "blind_spots": list(detection.blind_spots), "runbook": list(detection.runbook),
    }  # fmt: skip
    if to is OutputFormat.json:
        write(to_json({**facts, "source": source}) + "\n")
        return
    console = Console(highlight=False)
    console.print(Text(f"{detection.id}  {detection.title}", style="bold"))
    console.print(Text(detection.hypothesis))
    console.print(Text(f"{detection.family}, severity {detection.severity}, reads {', '.join(detection.tables)}", style="dim"))
    for title, lines in (
        ("ATT&CK", [f"{a.technique} {a.name} ({', '.join(a.tactics)})" for a in detection.attack]),
        ("Parameters", [f"{p.name} = {p.default}: {p.help}" for p in detection.parameters]),
        ("Blind spots", detection.blind_spots), ("What else looks like this", detection.false_positives), ("Runbook", detection.runbook),
    ):  # fmt: skip
        if lines:
            console.print(Text("\n" + title, style="bold"))
            for line in lines:
                console.print(Text("  " + line))
    console.print(Text(f"\nSource: queries/detections/{detection.path.name}", style="dim"))


def show_demo(answer: dict[str, Any], to: OutputFormat) -> None:
    """Where the demo lies, what was found, and how that compares with what was planted."""
    import polars as pl

    if to is OutputFormat.json:
        write(to_json(answer) + "\n")
        return
    show_cases(answer["hunt"])
    planted = pl.DataFrame(answer["planted"]).select(
        "step", "tenant_id", "network", "events", pl.col("rank").cast(pl.Int64).alias("found in case")
    )
    emit_frame(planted, to, title="What was planted, and the case that holds it")
    talk, t = stderr(), answer["totals"]
    spent = ", ".join(f"{name} {s} s" for name, s in answer["seconds"].items())
    talk.print(f"{t['records']:,} records ({answer['raw_bytes'] / 1e6:.0f} MB of logs, {t['files']} files). {spent}.", markup=False)
    talk.print(f"Report:  {answer['report'][0]}", markup=False)
    talk.print(f"Archive: {answer['archive']}   try: gatehound sql -a {answer['archive']} \"show tables\"", markup=False)
