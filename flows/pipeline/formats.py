"""What the formats are and which columns they fill: told by reading their own samples."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import polars as pl

from data_contracts import contract, names
from data_contracts.errors import UsageError
from transforms import registry
from transforms.encodings import encoding_of
from transforms.enrich import References, enrich
from transforms.framing import HEAD_BYTES, Framer, head_of
from transforms.model import Context, Format

_COMMON = ("event_uid", "date", "ts_raw", "ts_basis", "tenant_basis", "evidence_id", "record_no", "byte_offset")
_IN_EVERY = {*_COMMON, "byte_length"}


def find(name: str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none.
    """
    found = next((f for f in registry.formats() if f.name == name), None)
    if found is None:
        raise UsageError(f"{name}: there is no such format", f"one of {', '.join(f.name for f in registry.formats())}")
    return found


def recognised_by(fmt: Format) -> str:
    """In words, how a format is recognised."""
    ways = ["its content"] if fmt.sniff else []
    if fmt.programs:
        ways.append(f"lines of the program {_shown(fmt.programs)} in a syslog file")
    return " or ".join(ways)


def _shown(programs: str) -> str:
    """A pattern of program names without its machinery."""
    return programs.replace("(?:", "(").replace(r"\.", ".")


@cache
def _folder() -> Path | None:
    """Where the samples are: beside the package in a checkout, inside of it once it is installed."""
    import transforms.formats

    package = Path(transforms.formats.__file__).parent
    places = (package.parents[1] / "tests" / "samples", package / "samples")
    return next((p for p in places if p.is_dir()), None)


def samples(fmt: Format) -> list[Path]:
    """The project's own samples of a format."""
    folder = _folder()
    named = [] if folder is None else [p for p in sorted(folder.iterdir()) if p.name.startswith(fmt.name)]
    return [p for p in named if _reads(fmt, p.read_bytes()[:HEAD_BYTES], p.name)]


def _reads(fmt: Format, head: bytes, name: str) -> bool:
    choice = registry.choose(head_of(head, name))
    if isinstance(choice, str):
        return False
    return choice.name == fmt.name or (choice.name == registry.SYSLOG and fmt.programs is not None)


def filled(fmt: Format) -> pl.DataFrame:
    """The columns that a format fills, as its samples show: table, column, rows, of, meaning.

    Columns that every event has are left out.
    """
    tables: dict[str, list[pl.DataFrame]] = {}
    for sample in samples(fmt):
        for table, rows in _events(fmt, sample).items():
            tables.setdefault(table, []).append(rows)
    told = []
    for table in sorted(tables):
        rows = pl.concat(tables[table], how="diagonal_relaxed")
        for column in contract(table).columns:
            count = rows.height - rows[column.name].null_count() if column.name in rows.columns else 0
            if count and column.name not in _IN_EVERY:
                told.append((table, column.name, count, rows.height, column.description))
    schema = {"table": pl.String, "column": pl.String, "rows": pl.Int64, "of": pl.Int64, "meaning": pl.String}
    return pl.DataFrame(told, schema=schema, orient="row")


def _events(fmt: Format, sample: Path) -> dict[str, pl.DataFrame]:
    """Event rows of a sample by table, without what other formats of the same file read."""
    head = sample.read_bytes()[:HEAD_BYTES]
    choice = registry.choose(head_of(head, sample.name))
    assert isinstance(choice, registry.Choice)
    ctx = Context(
        "0" * 64, choice.match.variant, year=2026, year_basis="given", not_after=datetime(2027, 1, 1, tzinfo=UTC)
    )
    with sample.open("rb") as stream:
        blocks = Framer(stream, choice.framing, encoding=encoding_of(head)).blocks()
        parsed = pl.concat([registry.parse(choice, records, ctx) for records in blocks], how="diagonal")
    tenants, networks, asn = (pl.DataFrame(schema=contract(n).polars_schema) for n in ("tenants", "networks", "asn"))
    refs = References(tenants, networks, asn)
    mine = parsed.filter(pl.col("disposition").is_in(names("event")))
    if choice.name == registry.SYSLOG:
        mine = mine.filter(pl.col("source") == fmt.name)
    return {
        str(table): enrich(rows.with_columns(pl.lit("0" * 64).alias("evidence_id")), str(table), refs)
        for (table,), rows in mine.group_by("disposition")
    }
