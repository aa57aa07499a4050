"""Derived tables: one module per table, found because it is there.

Each module exposes

- ``TABLE``: the contract it fills;
- ``PERIOD``: ``"day"`` or ``"month"``, what one call of `build` covers;
- ``SOURCES``: the tables it reads;
- ``build(day, tables)``: the rows of that day (of that month for a monthly table) as a LazyFrame in the contract's
  columns and in one fixed order of rows, so that the same events give the same rows whatever files they came in.

The caller hands over the event tables of the day and of the day before, since a session may begin before midnight;
`build` keeps to its own day. A monthly table gets the daily tables of its month.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from graphlib import TopologicalSorter
from typing import Literal

import polars as pl

Build = Callable[[date, Mapping[str, pl.LazyFrame]], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Derived:
    """One derived table: its contract's name, what it covers, what it reads, and how it is built."""

    table: str
    period: Literal["day", "month"]
    sources: tuple[str, ...]
    build: Build


@cache
def derived() -> tuple[Derived, ...]:
    """All derived tables, each after those that it reads, otherwise in the order of their names."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
        module = importlib.import_module(f"{__name__}.{name}")
        found[module.TABLE] = Derived(module.TABLE, module.PERIOD, module.SOURCES, module.build)
    graph = {table: [source for source in found[table].sources if source in found] for table in sorted(found)}
    return tuple(found[table] for table in TopologicalSorter(graph).static_order())
