"""Derived tables: one module per table, found because it is there.

Each module exposes

- ``TABLE``: the contract it fills;
- ``PERIOD``: ``"day"`` or ``"month"``, what one call of `build` covers;
- ``SOURCES``: the tables it reads;
- ``REACH``, for a daily table: how many days before and after its own day `build` looks at, ``(1, 0)`` where the module
  does not say otherwise. An event of a day is felt by so many days after and before it;
- ``build(days, tables)``: the rows of these consecutive days (of the month of the first for a monthly table) as a
  LazyFrame in the contract's columns and in one fixed order of rows, so that the same events give the same rows
  whatever files they came in, and however many days are built at once: a rule that looks at other days looks at those
  that lie in reach of the row's own day.
- ``parts(days, tables)``, where a day may have too many rows for one frame: the same rows in several frames.

The caller hands over the event tables of the days in reach, since a session may begin before midnight and a message
may leave days after it came; `build` keeps to its own days: a day without events of its own has no rows. A
monthly table gets the daily tables of its month.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from graphlib import TopologicalSorter
from typing import Literal

import polars as pl

DAY_BEFORE = (1, 0)

Parts = Callable[[Sequence[date], Mapping[str, pl.LazyFrame]], Iterator[pl.LazyFrame]]
Build = Callable[[Sequence[date], Mapping[str, pl.LazyFrame]], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Derived:
    """One derived table: its contract's name, what it covers, what it reads, how it is built, days in reach."""

    table: str
    period: Literal["day", "month"]
    sources: tuple[str, ...]
    build: Build
    reach: tuple[int, int] = DAY_BEFORE
    parts: Parts | None = None

    def read(self, days: Sequence[date]) -> list[date]:
        """Days that the rows of `days` depend on (for a monthly table those of the month that begins on the first)."""
        before, after = (0, 30) if self.period == "month" else self.reach
        first = days[0] - timedelta(days=before)
        return [first + timedelta(days=n) for n in range((days[-1] - first).days + after + 1)]

    def felt(self, day: date) -> list[date]:
        """Days (or the first of the month) whose rows depend on events of `day`."""
        if self.period == "month":
            return [day.replace(day=1)]
        before, after = self.reach
        return [day + timedelta(days=n) for n in range(-after, before + 1)]


@cache
def derived() -> tuple[Derived, ...]:
    """All derived tables, each after those that it reads, otherwise in the order of their names."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
        module = importlib.import_module(f"{__name__}.{name}")
        reach = getattr(module, "REACH", DAY_BEFORE)
        parts = getattr(module, "parts", None)
        found[module.TABLE] = Derived(module.TABLE, module.PERIOD, module.SOURCES, module.build, reach, parts)
    graph = {table: [source for source in found[table].sources if source in found] for table in sorted(found)}
    return tuple(found[table] for table in TopologicalSorter(graph).static_order())
