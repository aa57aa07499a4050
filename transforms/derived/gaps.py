"""gaps: how long a service identity waits between two uses, by network and day.

A machine that calls on a timer shows it in its gaps, and a state of 76 numbers a day tells of it for all time. The gap
over midnight stands in no day: it is that between the `last_ts` of one state and the `first_ts` of the next, and
`merged` adds it, so that days merge to what one pass over all of them gives.

Only identities kept in detail (see context_days) and rows that bear the client's address count: of a POP3 session the
login, not its summary. Failures and health probes are left out. Requests of one call are gaps of seconds; who looks
for a timer leaves the short bins out.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import polars as pl

from transforms.derived._parts import finish, table, within
from transforms.derived.context_days import in_detail

TABLE = "gaps"
PERIOD = "day"
SOURCES = ("access_events", "credentials", "bindings", "contexts", "mailboxes")
REACH = (0, 0)

WHO = ("tenant_id", "principal_id", "app_id", "credential_id", "protocol", "src_net")
KEY = ("date", *WHO)
BINS = 76
# Lower edges of the bins but the first, in microseconds: a third of an octave each, as `periodicity` wants them.
EDGES_US = [round(1_000_000 * 2 ** (k / 3)) for k in range(BINS - 1)]
CENTRES_S = [0.5, *(2 ** ((k + 0.5) / 3) for k in range(BINS - 1))]

_READ = ("date", "ts", *WHO, "principal_type", "logon_type")
_BACK_END = "be:"  # of Exchange's POP3 and IMAP: the address is that of the front end


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The gaps of `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        gaps of `days`; one row for each identity and network, also with a single use and no gap.
    """
    told = within(days) & pl.col("src_net").is_not_null() & (pl.col("outcome") != "failure")
    used = (pl.col("action") != "probe") & ~pl.col("op_raw").str.to_lowercase().str.starts_with(_BACK_END).fill_null(
        value=False
    )
    uses = in_detail(table(tables, "access_events").filter(told & used).select(_READ), tables).filter("detail")
    # Held, machines being few: what follows numbers its rows and looks at them twice.
    ordered = uses.select(*KEY, "ts").sort(*KEY, "ts").collect(engine="streaming")
    numbered = _numbered(ordered, KEY).with_columns(
        pl.when(~pl.col("first")).then(pl.col("ts").diff().dt.total_microseconds()).alias("gap")
    )
    sums = numbered.group_by("run", maintain_order=True).agg(
        pl.col(KEY).first(),
        pl.len().cast(pl.Int64).alias("n"),
        (pl.col("gap").max() / 1e6).alias("longest_s"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )
    return finish(_with_hist(sums, _binned(numbered)), TABLE, KEY)


def merged(states: pl.LazyFrame) -> pl.LazyFrame:
    """One state for each identity and network, of states that follow each other in time.

    Args:
        states: rows of gaps, in any order; each lies in time wholly before or after the others of its identity.

    Returns:
        the columns of gaps; `date` is that of the first state.
    """
    rows = _numbered(states.sort(*WHO, "first_ts", "last_ts").collect(engine="streaming"), WHO)
    between = (pl.col("first_ts") - pl.col("last_ts").shift(1)).dt.total_microseconds().clip(0)
    rows = rows.with_columns(pl.when(~pl.col("first")).then(between).alias("gap"))
    own = rows.select("run", "hist", bin=pl.int_ranges(0, pl.col("hist").list.len())).explode("hist", "bin")
    own = own.filter(pl.col("hist") > 0).select("run", "bin", n="hist")
    sums = rows.group_by("run", maintain_order=True).agg(
        pl.col(WHO).first(),
        pl.col("date").min(),
        pl.col("n").sum(),
        pl.max_horizontal(pl.col("longest_s").max(), pl.col("gap").max() / 1e6).alias("longest_s"),
        pl.col("first_ts").min(),
        pl.col("last_ts").max(),
    )
    return finish(_with_hist(sums, pl.concat([own, _binned(rows)])), TABLE, KEY)


def _numbered(ordered: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
    """Adds `first` (first row of its key) and `run`, the number of the key, to rows in the key's order."""
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in key)
    # The first row of all has nothing before it.
    first = ~same | (pl.int_range(pl.len()) == 0)
    return ordered.with_columns(first.alias("first")).with_columns(
        pl.col("first").cum_sum().cast(pl.Int64).alias("run")
    )


def _binned(rows: pl.DataFrame) -> pl.DataFrame:
    """Gaps by bin: [run, bin, n]."""
    edges = pl.lit(pl.Series(EDGES_US, dtype=pl.Int64))
    known = rows.filter(pl.col("gap").is_not_null())
    placed = known.select("run", edges.search_sorted(pl.col("gap"), side="right").cast(pl.Int64).alias("bin"))
    return placed.group_by("run", "bin").agg(pl.len().cast(pl.Int64).alias("n"))


def _with_hist(sums: pl.DataFrame, counted: pl.DataFrame) -> pl.LazyFrame:
    """Adds the histogram, all bins of it, to one row for each run in their order."""
    bins = np.zeros((sums.height, BINS), np.int64)
    # Runs are numbered from 1.
    np.add.at(bins, (counted["run"].to_numpy() - 1, counted["bin"].to_numpy()), counted["n"].to_numpy())
    hist = pl.Series("hist", bins, dtype=pl.Array(pl.Int64, BINS)).cast(pl.List(pl.Int64))
    return sums.with_columns(hist).lazy()
