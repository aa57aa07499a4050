"""Contracts as code uses them: ODCS YAML (Open Data Contract Standard 3.2) compiled to schemas and row rules.

A contract is read when it is first asked for, and then kept. The names of its tables, columns and rules are ours, so
they are trusted; what stands in the rows is not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_contracts.cast import converted
from data_contracts.errors import RefusedError, UsageError
from data_contracts.rules import Rule, column_rules, divide, sql_rule

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = Path(__file__).parent
_SUFFIX = ".odcs.yaml"
_KIND = re.compile(r"^  - \{property: kind, value: (\w+)\}$", re.MULTILINE)
_COUNT_OF_BAD_ROWS = re.compile(r"^select count\(\*\) from \$\{table\} where (.+)$", re.DOTALL)

_DTYPES: dict[str, pl.DataType] = {
    "VARCHAR": pl.String(),
    "BIGINT": pl.Int64(),
    "INTEGER": pl.Int32(),
    "DOUBLE": pl.Float64(),
    "BOOLEAN": pl.Boolean(),
    "DATE": pl.Date(),
    "TIMESTAMP WITH TIME ZONE": pl.Datetime("us", "UTC"),
    "VARCHAR[]": pl.List(pl.String()),
    "BIGINT[]": pl.List(pl.Int64()),
    "BLOB": pl.Binary(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a contract. `type` is DuckDB's name of the type; bounds are inclusive."""

    name: str
    type: str
    description: str
    required: bool = False
    enum: tuple[str, ...] | None = None
    minimum: Any = None
    maximum: Any = None
    pattern: str | None = None
    max_length: int | None = None
    unique: bool = False
    ocsf: str | None = None
    ecs: str | None = None
    low_cardinality: bool = False

    @property
    def dtype(self) -> pl.DataType:
        """Polars type."""
        return _DTYPES[self.type]

    @property
    def is_time(self) -> bool:
        """Whether bounds are points in time."""
        return self.type in ("DATE", "TIMESTAMP WITH TIME ZONE")


@dataclass(frozen=True)
class Contract:
    """What every row of a table must be."""

    name: str
    description: str
    grain: str
    kind: str
    columns: tuple[Column, ...]
    sorted_by: tuple[str, ...] = ()
    partitioned_by: str | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)  # name of a rule to the SQL of a bad row

    @cached_property
    def polars_schema(self) -> pl.Schema:
        """Column names to Polars types, in order."""
        return pl.Schema({column.name: column.dtype for column in self.columns})

    @cached_property
    def arrow_schema(self) -> "pa.Schema":
        """The same for pyarrow; required columns are not nullable."""
        import pyarrow as pa

        types = {
            "VARCHAR": pa.string(),
            "BIGINT": pa.int64(),
            "INTEGER": pa.int32(),
            "DOUBLE": pa.float64(),
            "BOOLEAN": pa.bool_(),
            "DATE": pa.date32(),
            "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
            "VARCHAR[]": pa.list_(pa.string()),
            "BIGINT[]": pa.list_(pa.int64()),
            "BLOB": pa.binary(),
        }
        return pa.schema([pa.field(c.name, types[c.type], nullable=not c.required) for c in self.columns])

    def column(self, name: str) -> Column:
        """One column by name. Raises UsageError."""
        for column in self.columns:
            if column.name == name:
                return column
        raise UsageError(f"table {self.name} has no column {name}")

    def conform(self, lf: pl.LazyFrame) -> pl.LazyFrame:
        """Exactly the contract's columns, in order and typed: missing ones null, others dropped.

        A value that its type cannot hold becomes null; `unreadable` tells which rows lose one.
        """
        given = lf.collect_schema()
        return lf.select(
            converted(c.name, given[c.name], c.dtype) if c.name in given else pl.lit(None, c.dtype).alias(c.name)
            for c in self.columns
        )

    def unreadable(self, given: Mapping[str, pl.DataType]) -> list[Rule]:
        """Rules for a frame before `conform`: a value is there that its column's type cannot hold.

        Args:
            given: schema of that frame, e.g. text columns read from CSV.
        """
        found = []
        for c in self.columns:
            if c.name in given and given[c.name] != c.dtype:
                lost = pl.col(c.name).is_not_null() & converted(c.name, given[c.name], c.dtype).is_null()
                reason = f"contract: {c.name} cannot be read as {c.type}"
                found.append(Rule(f"{c.name}_type", reason, lost, lost.any(), "false", "type", c.name))
        return found

    def refusals(self) -> list[Rule]:
        """Row rules, in the order in which they are tried."""
        return list(self._rules)

    def split(self, df: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows that keep the contract, and rows that do not, with the first broken rule's text in the column `reason`.

        In the refused rows it stands in place of a column `reason` of the table's own.

        Args:
            df: typed as `conform` leaves it. A column that it lacks counts as null; other columns are kept.
        """
        given = df.schema
        wrong = [c for c in self.columns if given.get(c.name) != c.dtype]
        lacking = [pl.lit(None, c.dtype).alias(c.name) for c in wrong if c.name not in given]
        wrong_type = [converted(c.name, given[c.name], c.dtype) for c in wrong if c.name in given]
        return divide(df.with_columns(lacking + wrong_type) if wrong else df, self._rules)

    @cached_property
    def _rules(self) -> tuple[Rule, ...]:
        rules = [rule for column in self.columns for rule in column_rules(column)]
        return tuple(rules + [sql_rule(name, condition) for name, condition in self.conditions.items()])


def names(kind: str | None = None) -> tuple[str, ...]:
    """Names of all tables, sorted; with `kind` (event, register, reference, derived) only those."""
    return tuple(name for name, its_kind in _kinds().items() if kind in (None, its_kind))


@cache
def contract(name: str) -> Contract:
    """The contract of a table. Raises UsageError when there is none of that name."""
    if name not in _kinds():
        raise UsageError(f"there is no table {name}", f"tables are: {', '.join(_kinds())}")
    path = FOLDER / f"{name}{_SUFFIX}"
    try:
        return _compiled(_document(path))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path}: not a contract as gatehound reads it: {error}") from error


def check_all() -> dict[str, list[str]]:
    """Problems of every contract by the standard's published JSON schema: table to texts, none when valid."""
    import json
    from importlib.resources import files

    from jsonschema import Draft201909Validator

    schema = json.loads((files("open_data_contract_standard") / "schema.json").read_text("utf-8"))
    validator = Draft201909Validator(schema)
    return {
        name: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(_document(_path(name)))]
        for name in names()
    }


def _path(name: str) -> Path:
    return FOLDER / f"{name}{_SUFFIX}"


@cache
def _kinds() -> dict[str, str]:
    """Kind of every table. Read by one line of each file, since parsing them all takes longer than a command may."""
    found = {}
    for path in sorted(FOLDER.glob(f"*{_SUFFIX}")):
        kind = _KIND.search(path.read_text("utf-8"))
        found[path.name.removesuffix(_SUFFIX)] = kind[1] if kind else ""
    return found


def _document(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text("utf-8"), Loader=loader)  # noqa: S506 - both loaders are safe ones


def _compiled(document: Any) -> Contract:
    (table,) = document["schema"]
    properties = _properties(table)
    partition = [p["name"] for p in table["properties"] if p.get("partitioned")]
    return Contract(
        name=table["name"],
        description=document["description"]["purpose"],
        grain=table["dataGranularityDescription"],
        kind=properties["kind"],
        columns=tuple(_column(p) for p in table["properties"]),
        sorted_by=tuple(properties.get("sortedBy", ())),
        partitioned_by=partition[0] if partition else None,
        conditions={quality["name"]: _condition(quality) for quality in table.get("quality", ())},
    )


def _column(item: Mapping[str, Any]) -> Column:
    options, properties, kind = item.get("logicalTypeOptions", {}), _properties(item), item["physicalType"]
    if kind not in _DTYPES:
        raise ValueError(f"type {kind} of column {item['name']} is not known")
    return Column(
        name=item["name"],
        type=kind,
        description=item["description"],
        required=item.get("required", False),
        enum=tuple(choice["value"] for choice in item["enum"]) if "enum" in item else None,
        minimum=_bound(options.get("minimum"), kind),
        maximum=_bound(options.get("maximum"), kind),
        pattern=options.get("pattern"),
        max_length=options.get("maxLength"),
        unique=item.get("unique", False),
        ocsf=properties.get("ocsf"),
        ecs=properties.get("ecs"),
        low_cardinality=properties.get("lowCardinality", False),
    )


def _properties(item: Mapping[str, Any]) -> dict[str, Any]:
    return {entry["property"]: entry["value"] for entry in item.get("customProperties", ())}


def _bound(value: Any, kind: str) -> Any:
    if isinstance(value, str) and kind == "TIMESTAMP WITH TIME ZONE":
        return datetime.fromisoformat(value)
    return value


def _condition(quality: Mapping[str, Any]) -> str:
    query = _COUNT_OF_BAD_ROWS.match(quality["query"])
    if quality["type"] != "sql" or quality.get("mustBe") != 0 or query is None:
        raise ValueError(f"quality rule {quality['name']} is not a count of bad rows that must be 0")
    return query[1]
