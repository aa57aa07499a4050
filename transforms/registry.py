"""Which formats there are, which of them reads a piece of evidence, and how its records pass through them.

Formats are found because their file is in transforms/formats. Those that are written through syslog share one envelope:
each line goes to the format that knows its program.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache

import polars as pl

from data_contracts.errors import UsageError
from transforms import syslog
from transforms.model import IGNORED, QUARANTINED, SYSLOG_SCHEMA, Context, Format, Framing, Head, Match

SYSLOG = "syslog"
_LEAST_SCORE = 0.3
_NAMED_PROGRAMS = 20  # reasons are counted by name for so many programs; hostile lines may invent more
_NOT_SYSLOG = "line is no syslog line"


@cache
def formats() -> tuple[Format, ...]:
    """All formats, sorted by name."""
    import transforms.formats as folder

    names = sorted(m.name for m in pkgutil.iter_modules(folder.__path__))
    return tuple(importlib.import_module(f"transforms.formats.{name}").FORMAT for name in names)


@dataclass(frozen=True, slots=True)
class Choice:
    """The format that reads a piece of evidence; `name` is "syslog" when its lines go to several."""

    name: str
    match: Match
    format: Format | None = None  # one that is not found by its file: a mapping

    @property
    def framing(self) -> Framing:
        return self.match.framing


def choose(head: Head, forced: str | None = None) -> Choice | str:
    """The format whose claim on the content is strongest, or the reason why there is none.

    Raises:
        UsageError: `forced` names no format.
    """
    if forced is not None:
        return _forced(head, forced)
    if not head.data:
        return "the file is empty"
    claims = [(f.name, m) for f in formats() if f.sniff and (m := f.sniff(head)) is not None]
    if (match := syslog.sniff(head)) is not None:
        claims.append((SYSLOG, match))
    claims = [c for c in claims if c[1].score >= _LEAST_SCORE]
    if not claims:
        binary = head.data.count(b"\x00") > len(head.data) // 100
        return "no format recognises the content" + (" (binary data)" if binary else "")
    name, match = max(claims, key=lambda c: (c[1].score, c[0]))
    return Choice(name, match)


def _forced(head: Head, forced: str) -> Choice:
    found = next((f for f in formats() if f.name == forced), None)
    own = found is not None and found.sniff is not None and found.sniff(head) is not None
    if forced == SYSLOG or (found is not None and found.programs is not None and not own):
        match = syslog.sniff(head) or Match(0.0, "given", "lines")
        return Choice(SYSLOG, Match(match.score, "given: " + match.reason, match.framing, match.variant))
    if found is None or found.sniff is None:
        known = ", ".join([SYSLOG, *(f.name for f in formats())])
        raise UsageError(f"--format {forced}: there is no such format", f"one of {known}")
    match = found.sniff(head) or Match(0.0, "nothing recognised", "lines")
    return Choice(forced, Match(match.score, "given: " + match.reason, match.framing, match.variant))


def given(head: Head, fmt: Format, framing: Framing) -> Choice | str:
    """A format that the caller brings along, whatever the content; or the reason why it cannot read it."""
    if not head.data:
        return "the file is empty"
    return Choice(fmt.name, Match(1.0, "given: " + fmt.title, framing), fmt)


def parse(choice: Choice, records: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Rows of one block: exactly one a record, with `disposition`, `reason` and the columns that formats fill."""
    damaged = records.filter(pl.col("damage").is_not_null())
    whole = records.filter(pl.col("damage").is_null()).drop("damage") if damaged.height else records.drop("damage")
    rows = _parse_syslog(whole, ctx) if choice.name == SYSLOG else _one(choice, whole, ctx)
    if not damaged.height:
        return rows
    refused = damaged.select(
        "record_no", "byte_offset", "byte_length", pl.lit(QUARANTINED).alias("disposition"),
        (pl.lit("framing: ") + pl.col("damage")).alias("reason"),
    )  # fmt: skip
    return pl.concat([rows, refused], how="diagonal")


def _one(choice: Choice, records: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    fmt = choice.format or next(f for f in formats() if f.name == choice.name)
    return fmt.parse(records.lazy(), ctx).collect()


def _parse_syslog(records: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    enveloped = syslog.envelope(records.lazy(), ctx).collect()
    programs = enveloped.get_column("program").unique()
    parts: list[pl.DataFrame] = []
    claimed: list[str] = []
    for fmt in formats():
        if fmt.programs is None:
            continue
        mine = programs.filter(programs.str.contains(f"^(?:{fmt.programs})$").fill_null(value=False)).to_list()
        mine = [p for p in mine if p not in claimed]
        if not mine:
            continue
        claimed += mine
        lines = enveloped.filter(pl.col("program").is_in(mine)) if len(mine) < len(programs) else enveloped
        parts.append(fmt.parse(lines.select(list(SYSLOG_SCHEMA)).lazy(), ctx).collect())
        ctx.carry.setdefault("formats", set()).add(fmt.name)
    rest = enveloped.filter(~pl.col("program").is_in(claimed).fill_null(value=False)) if claimed else enveloped
    if rest.height:
        parts.append(_unknown(rest, ctx))
    return pl.concat(parts, how="diagonal") if parts else _empty()


def _unknown(rest: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Lines of programs that no format knows, and lines that are no syslog lines."""
    named: list[str] = ctx.carry.setdefault("unknown_programs", [])
    counts = rest.get_column("program").drop_nulls().value_counts(sort=True)
    for program in counts.get_column("program").to_list():
        if len(named) < _NAMED_PROGRAMS and program not in named and program and _plain(program):
            named.append(program)
    program = pl.col("program")
    reason = (
        pl.when(pl.col("raw").str.strip_chars() == "").then(pl.lit("blank line"))
        .when(program.is_null()).then(pl.lit("parse: " + _NOT_SYSLOG))
        .when(program == "").then(pl.lit("syslog line without a program"))
        .when(program.is_in(named)).then(pl.lit("no format for program ") + program)
        .otherwise(pl.lit("no format for the program"))
    )  # fmt: skip
    refused = program.is_null() & (pl.col("raw").str.strip_chars() != "")
    return rest.select(
        "record_no", "byte_offset", "byte_length",
        pl.when(refused).then(pl.lit(QUARANTINED)).otherwise(pl.lit(IGNORED)).alias("disposition"),
        reason.alias("reason"),
    )  # fmt: skip


def _plain(program: str) -> bool:
    return len(program) <= 40 and program.isascii() and all(c.isalnum() or c in "-_./@" for c in program)


def _empty() -> pl.DataFrame:
    kinds = {"record_no": pl.Int64, "byte_offset": pl.Int64, "byte_length": pl.Int64}
    return pl.DataFrame(schema=kinds | {"disposition": pl.String, "reason": pl.String})


def read_by(choice: Choice, ctx: Context) -> str:
    """Name of what read a piece of evidence, once it is read: several formats of one syslog file joined by +."""
    if choice.name != SYSLOG:
        return choice.name
    return "+".join(sorted(ctx.carry.get("formats", ()))) or SYSLOG
