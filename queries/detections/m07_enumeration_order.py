"""Enumeration order: an actor opens new mailboxes in the order of a list, or at a steady beat.

---
id = "M07"
title = "Mailboxes of others opened in the order of a list"
hypothesis = "A script that takes mailboxes walks the address book from one end to the other; people do not."
family = "mailbox_access"
severity = "low"
tables = ["edge_days", "context_days", "mailboxes", "tenants", "networks"]
needs = ["edge_days"]
identity = ["tenant_id", "actor_id", "kind", "source", "first_day"]
explanation = "{actor_id:Name} opened {n_mailboxes:count mailbox/mailboxes} of others[ in tenant {tenant_id}] {first_seen:span}[ from {source_networks:nets}] {how}. {normal}"
step = "{first_seen:Days}, {actor_id:name} opened {n_mailboxes:count mailbox/mailboxes} of others {how}."
why = "{normal}"
false_positives = [
  "a backup, archive or migration that begins its work, or is extended to further mailboxes",
  "an administrator's script that runs over a list of mailboxes",
]
blind_spots = [
  "fewer than min_mailboxes mailboxes, or an order that no table knows (by department, from a stolen list)",
  "a script that shuffles its list and waits at random",
  "mailboxes that the actor opened before from the same network: a known crawler hides whoever works like it",
]
runbook = [
  "`mailbox_id`, `first_ts`: list the first access to each mailbox in order of time over the days of the finding",
  "`ldap_filter_class`, `entries_returned`: look for a directory search that returned these mailboxes in the 14 days before",
  "`src_net`, `client_fp`: compare source and client with those of the actor in the 90 days before",
]

attack = [
  { technique = "T1119", name = "Automated Collection", tactics = ["collection"] },
  { technique = "T1087.003", name = "Email Account", tactics = ["discovery"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a mailbox that the actor opened is known" },
  { name = "span_days", default = 30, help = "days before the window whose new mailboxes still belong to the order" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol, or the actor at a new network, must go back" },
  { name = "min_mailboxes", default = 8, help = "mailboxes below which an order is chance" },
  { name = "min_tau", default = 0.8, help = "Kendall's rank correlation with an order, from which it counts as followed" },
  { name = "max_p", default = 0.001, help = "its probability by chance, divided by the number of orders that are tried" },
  { name = "min_run", default = 8, help = "mailboxes one after the other in exactly the order, from which it counts as followed in part" },
  { name = "max_spread", default = 0.1, help = "median deviation of the time between mailboxes, as a share of the median, up to which it is a beat" },
]

[[subjects]]
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner' group by tenant_id, actor_id having date_diff('day', min(date), cast($window_to as date)) > $min_history_days)"
reason = "nobody who opens mailboxes of others has been in the logs for more than $min_history_days days"

[evidence]
table = "access_events"
where = "mailbox_id is not null and outcome <> 'failure' and coalesce(logon_type, '') <> 'owner'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", src_net = "evidence_networks" }
---

Orders that are tried: address, display name and mailbox GUID, where the table of mailboxes has the latter two. Only
mailboxes that are new to the actor, or opened from a network that is new to it, make a sequence.
"""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.statistics import kendall_tau

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

LONGEST = 2000  # mailboxes of one sequence that are looked at
PAUSE = 3600.0  # seconds without a new mailbox that end a beat; slower beats are what X07 looks for

# One row per mailbox of a sequence: first access, and places in the orders.
SEQUENCES = """
with uses as (
    select coalesce(tenant_id, '') as tenant_key, actor_id, mailbox_id, src_net, min(first_ts) as first_ts,
        max(last_ts) as last_ts, arg_min(protocol, first_ts) as protocol, min(date) as first_day,
        list(distinct credential_id) as credential_ids, list(distinct app_id) as app_ids,
        bool_or(actor_type in ('service_principal', 'service_account', 'computer') or actor_id = app_id) as is_service
    from edge_days
    where date between $first and $last and coalesce(logon_type, '') <> 'owner'
        and coalesce(actor_type, '') not in ('system', 'anonymous')
    group by all
),
logs as (
    select coalesce(tenant_id, '') as tenant_key, protocol, min(date) as began from context_days
    where date between $first and $last group by all
),
pairs as (
    select tenant_key, actor_id, mailbox_id, min(first_ts) as first_ts, min(first_day) as first_day, max(last_ts) as last_ts,
        arg_min(protocol, first_ts) as protocol, list_distinct(list(src_net)) as nets,
        list_distinct(flatten(list(credential_ids))) as credential_ids, list_distinct(flatten(list(app_ids))) as app_ids,
        bool_or(is_service) as is_service
    from uses group by 1, 2, 3
),
nets as (
    select n.*, min(n.first_day) over (partition by n.tenant_key, n.actor_id) as began
    from (
        select tenant_key, actor_id, src_net, min(first_day) as first_day from uses where src_net is not null group by all
    ) as n
),
steps as (
    select p.tenant_key, p.actor_id, 'new_pairs' as kind, '' as source, p.mailbox_id, p.first_ts, p.last_ts, p.nets,
        p.credential_ids, p.app_ids, p.is_service
    from pairs as p join logs as l using (tenant_key, protocol)
    where p.first_day >= greatest($from - $span::integer, l.began + $history::integer)
    union all
    select u.tenant_key, u.actor_id, 'new_network', u.src_net, u.mailbox_id, min(u.first_ts), max(u.last_ts), [u.src_net],
        any_value(u.credential_ids), any_value(u.app_ids), bool_or(u.is_service)
    from nets as n join uses as u using (tenant_key, actor_id, src_net)
    where n.first_day >= $from - $span::integer and n.first_day >= n.began + $history::integer
    group by u.tenant_key, u.actor_id, u.src_net, u.mailbox_id
),
known as (
    select tenant_key, actor_id, kind, source from steps
    group by all having count(*) >= $least and max(first_ts)::date >= $from
)
select s.*, m.display_name, m.mailbox_guid, coalesce(m.vip, false) as vip,
    coalesce(t.onboarded_at > s.first_ts - interval 30 day, false) as is_new_tenant
from steps as s
semi join known using (tenant_key, actor_id, kind, source)
left join mailboxes as m on lower(m.mailbox_id) = s.mailbox_id
left join tenants as t on t.tenant_id = s.tenant_key
order by s.tenant_key, s.actor_id, s.kind, s.source, s.first_ts, s.mailbox_id
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Actors that open mailboxes in the order of a list.

    Args:
        con: connection with edge_days, context_days, mailboxes and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per tenant and actor; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    given = {
        "first": begin - timedelta(days=params["baseline_days"] + params["span_days"]), "last": end, "from": begin,
        "span": params["span_days"], "history": params["min_history_days"], "least": params["min_mailboxes"],
    }  # fmt: skip
    steps = con.sql(SEQUENCES, params=given).pl()
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _, group in steps.group_by("tenant_key", "actor_id", "kind", "source", maintain_order=True):
        row = _judge(group.head(LONGEST), params)
        who = (group["tenant_key"][0], group["actor_id"][0])
        if row and (who not in found or row["confidence"] > found[who]["confidence"]):
            found[who] = row
    if not found:
        return pl.DataFrame()
    rows = list(found.values())
    for row in rows:
        row["is_declared_net"] = is_declared(con, row["source_networks"] or [])
    frame = pl.DataFrame(rows, schema_overrides={"is_declared_net": pl.Boolean}, infer_schema_length=None)
    return frame.sort("first_seen", "tenant_id", "actor_id")


def _judge(steps: pl.DataFrame, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finding of one sequence, where it follows an order or a beat."""
    orders = {
        "address": steps["mailbox_id"], "display name": steps["display_name"].str.to_lowercase(),
        "mailbox GUID": steps["mailbox_guid"].str.to_lowercase(),
    }  # fmt: skip
    tried = {
        name: values.rank("dense").cast(pl.Float64).to_numpy()
        for name, values in orders.items()
        if values.null_count() == 0
    }
    times = steps["first_ts"].dt.epoch("us").to_numpy() / 1e6
    followed = _order(times, tried, params)
    beat = _beat(times, params)
    if followed is None and beat is None:
        return None
    how = [text for text in (followed and followed[1], beat and f"about every {beat}") if text]
    return _row(steps, kind_of_order=followed[0] if followed else "beat", how=" and ".join(how), both=len(how) > 1)


def _order(
    times: "NDArray[np.float64]", orders: Mapping[str, "NDArray[np.float64]"], params: Mapping[str, Any]
) -> tuple[str, str] | None:
    """The order that is followed best, and how, in words."""
    place = np.unique(times, return_inverse=True)[1].astype(float)
    best: tuple[float, str, str] | None = None
    for name, ranks in orders.items():
        told = kendall_tau(place, ranks)
        if abs(told.tau) >= params["min_tau"] and told.p <= params["max_p"] / max(1, len(orders)):
            word = "" if told.tau > 0 else "backwards "
            text = f"{word}in the order of their {name} (rank correlation {abs(told.tau):.2f})"
            if best is None or abs(told.tau) > best[0]:
                best = (abs(told.tau), name, text)
    if best is None:
        for name, ranks in orders.items():
            run = _longest_run(ranks)
            by_chance = 2 * ranks.size * len(orders) / math.factorial(min(run, 20))
            if run >= params["min_run"] and by_chance <= params["max_p"] and (best is None or run > best[0]):
                best = (run, name, f"of which {run} one after the other in the order of their {name}")
    return (best[1], best[2]) if best else None


def _longest_run(ranks: "NDArray[np.float64]") -> int:
    """Length of the longest stretch that only rises, or only falls."""
    best = 1
    for sign in (1, -1):
        length = 1
        for step in np.sign(np.diff(ranks)) * sign:
            length = length + 1 if step > 0 else 1
            best = max(best, length)
    return best


def _beat(times: "NDArray[np.float64]", params: Mapping[str, Any]) -> str | None:
    """The time between one mailbox and the next in words, where it is always the same."""
    gaps = np.diff(times)
    gaps = gaps[(gaps > 0) & (gaps <= PAUSE)]
    if gaps.size < params["min_mailboxes"]:
        return None
    median = float(np.median(gaps))
    spread = float(np.median(np.abs(gaps - median))) / median
    if spread >= params["max_spread"] or median < 1:
        return None
    return f"{median:.0f} seconds" if median < 120 else f"{median / 60:.0f} minutes"


def _row(steps: pl.DataFrame, *, kind_of_order: str, how: str, both: bool) -> dict[str, Any]:
    first = steps.row(0, named=True)
    n, n_vip = steps.height, int(steps["vip"].sum())
    nets = sorted({net for held in steps["nets"].to_list() for net in held if net is not None})
    ids = {
        name: sorted({value for held in steps[name].to_list() for value in held or () if value is not None}) or None
        for name in ("credential_ids", "app_ids")
    }
    source = first["source"] or None
    normal = "It had not used this network before." if source else "It had opened none of them before."
    return ids | {
        "tenant_id": first["tenant_key"] or None, "tenant_ids": [first["tenant_key"] or None],
        "actor_id": first["actor_id"], "kind": first["kind"], "source": first["source"],
        "first_day": first["first_ts"].date(), "first_seen": first["first_ts"], "last_seen": steps["last_ts"].max(),
        "order": kind_of_order, "how": how, "normal": normal, "n_mailboxes": n,
        "mailboxes": sorted(steps["mailbox_id"]), "principal_ids": [first["actor_id"]],
        "source_networks": nets or None, "evidence_networks": [source] if source else None,
        "is_service": bool(steps["is_service"].any()), "severity": "low",
        "confidence": (0.5 if first["is_new_tenant"] else 0.8) + (0.2 if both else 0.0),
        "impact": 1.5 if n_vip else 1.0,
    }  # fmt: skip
