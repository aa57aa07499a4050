"""Abuse of a delivery route or of a mailbox's SMTP password: a stranger sends with it.

---
id = "X05"
title = "Mail sent with an account from a strange network"
hypothesis = "A stolen route or mailbox password sends from the thief's machine: to people it never wrote to, or out with the loot."
family = "exfiltration"
severity = "medium"
tables = ["flow_days", "context_days", "failure_days", "tenants", "networks"]
needs = ["flow_days"]
identity = ["tenant_id", "account", "kind", "source", "first_day"]
explanation = "{account:Name} sent {sent}[ at tenant {tenant_id}][ from {source_networks:nets}] {first_seen:span}. {normal}[ {signs}]"
step = "{first_seen:Days}, {account:name} sent {sent}[ from {source_networks:nets}]."
why = "{normal}"
false_positives = [
  "a new office, relay or printer that uses the account and is not declared",
  "a person who travels and sends from a hotel",
  "a service provider that begins to send for the tenant",
]
blind_spots = [
  "an account without min_history_days days of history, and one whose networks change all the time",
  "a flood from the usual network to recipients that it may write to: a newsletter looks the same",
  "submission without authentication, by address alone",
  "logs that do not tell who was authenticated: Exchange's message tracking",
]
runbook = [
  "`sasl_username`, `src_net`: list the messages of the account from the network on the days of the finding (table messages), with subject, size and recipients",
  "`rcpt_domain`, `size_bytes`: compare sizes and recipients with those of the 45 days before: look for sizes that grow and for free mail services",
  "`src_net`, `src_asn`: look up who owns the network, and what else came from it in the 30 days before",
  "`outcome`, `src_net`: look for refused sign-ins from the network in the 3 days before the first success",
]

attack = [
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1048.003", name = "Exfiltration Over Unencrypted Non-C2 Protocol", tactics = ["exfiltration"] },
  { technique = "T1534", name = "Internal Spearphishing", tactics = ["lateral-movement"] },
  { technique = "T1071.003", name = "Mail Protocols", tactics = ["command-and-control"] },
]

parameters = [
  { name = "baseline_days", default = 45, help = "days before the window in which what an account used is known" },
  { name = "min_history_days", default = 14, help = "days for which an account must be known before" },
  { name = "max_surprise", default = 0.032, help = "share of days with a new network up to which a new one is a surprise; 0.032 is a surprise of 1.5" },
  { name = "min_msgs", default = 5, help = "messages from a strange network that are reported without a further sign" },
  { name = "new_share", default = 0.3, help = "share of the recipients in domains that the account never wrote to" },
  { name = "min_rcpts", default = 20, help = "recipients from which such a share means something" },
  { name = "lift", default = 3.0, help = "how many times the recipients of the busiest day before, or the usual size, there must be" },
  { name = "min_excess", default = 50, help = "recipients of a day from which its number is a sign" },
  { name = "many_senders", default = 5, help = "sender domains from which an account is a relay for others, so that a new one means nothing" },
  { name = "min_failures", default = 5, help = "refused sign-ins from the network before the first success, from which the password was guessed" },
]

[[requires]]
sql = "select exists (select 1 from flow_days where sasl_username is not null)"
reason = "no log tells who was authenticated when mail was submitted"

[evidence]
table = "access_events"
where = "protocol = 'smtp'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "evidence_tenants", principal_id = "evidence_principals", src_net = "source_networks" }
---

A newsletter and a spam run are alike in number; the source tells them apart. So there are two rules: an account is used
from a network that is new to it (and rarely shows a new one); or, from wherever, it relays for strangers to strangers.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from queries.cases import is_declared
from queries.text import count, one_in, size

if TYPE_CHECKING:
    import duckdb

RUN_GAP = 14  # days between the first uses of two strange networks that still belong together

FLOWS = """
create or replace temp table x05_flows as
select coalesce(f.tenant_id, '') as tenant_key, f.sasl_username as account, f.date, f.src_net, f.rcpt_domain,
    f.mail_from_domain, sum(f.msgs) as msgs, sum(f.rcpts) as rcpts, sum(f.bytes) as bytes, min(f.first_ts) as first_ts,
    max(f.last_ts) as last_ts,
    bool_or(coalesce(f.mail_from_domain, '') = '' or list_contains(t.domains, f.mail_from_domain)) as is_own_sender
from flow_days as f
left join (
    select tenant_id, list_transform(string_split(lower(domain), ';'), lambda d : trim(d)) as domains from tenants
) as t on t.tenant_id = f.tenant_id
where f.date between $first and $last and f.sasl_username is not null
group by all
"""

# Networks that an account used, by mail or by a sign-in to SMTP, with the days since it was known.
NETS = """
create or replace temp table x05_nets as
with uses as (
    select tenant_key, account, src_net, date, first_ts, last_ts from x05_flows where src_net is not null
    union all
    select coalesce(tenant_id, ''), lower(principal_id), src_net, date, first_ts, last_ts from context_days
    where date between $first and $last and protocol = 'smtp' and outcome = 'success' and src_net is not null
        and lower(principal_id) in (select account from x05_flows)
)
select tenant_key, account, src_net, min(date) as first_day, max(date) as last_day, min(first_ts) as first_ts,
    max(last_ts) as last_ts, min(min(date)) over (partition by tenant_key, account) as begins
from uses group by tenant_key, account, src_net
"""

STRANGE = """
select n.*, n.first_day - n.begins as n_history,
    (
        select list(distinct o.src_net) from x05_nets as o
        where o.tenant_key = n.tenant_key and o.account = n.account and o.first_day < n.first_day
            and o.first_day >= o.begins + 7
    ) as later_nets
from x05_nets as n
where n.first_day >= $from and n.first_day >= n.begins + $history::integer
order by all
"""

# What was sent from the strange networks, against all that the account sent before the first day there.
SENT = """
with here as (
    select s.place, f.* from x05_strange as s
    join x05_flows as f using (tenant_key, account, src_net)
),
before as (
    select s.place, f.*
    from (select place, tenant_key, account, min(first_day) as first_day from x05_strange group by all) as s
    join x05_flows as f using (tenant_key, account)
    where f.date < s.first_day
),
days as (select place, date, sum(rcpts) as rcpts from before group by all),
usual as (
    select b.place, sum(b.bytes) / greatest(sum(b.msgs), 1) as usual_size, (select max(rcpts) from days as d where d.place = b.place) as highest,
        count(distinct b.mail_from_domain) filter (where not b.is_own_sender) as n_foreign,
        list(distinct b.rcpt_domain) as rcpt_domains, list(distinct b.mail_from_domain) as from_domains
    from before as b group by b.place
),
busiest as (select place, max(rcpts) as rcpts from (select place, date, sum(rcpts) as rcpts from here group by all) as d group by place)
select h.place, sum(h.msgs)::bigint as n_msgs, sum(h.rcpts)::bigint as n_rcpts, sum(h.bytes)::bigint as n_bytes,
    coalesce(sum(h.rcpts) filter (where not coalesce(list_contains(u.rcpt_domains, h.rcpt_domain), false)), 0)::bigint as new_rcpts,
    count(distinct h.mail_from_domain) filter (
        where not h.is_own_sender and not coalesce(list_contains(u.from_domains, h.mail_from_domain), false)
    ) as n_new_senders,
    any_value(u.usual_size) as usual_size, any_value(u.highest)::bigint as highest, any_value(u.n_foreign) as n_foreign,
    any_value(b.rcpts)::bigint as busiest, list(distinct h.rcpt_domain order by h.rcpt_domain) as rcpt_domains
from here as h
left join usual as u using (place)
left join busiest as b using (place)
group by h.place
"""

GUESSES = """
select s.place, sum(f.failures)::bigint as n_failures, min(f.first_ts) as guessed_from
from x05_strange as s
join failure_days as f
    on coalesce(f.tenant_id, s.tenant_key) = s.tenant_key and f.src_net = s.src_net and f.protocol = 'smtp'
    and coalesce(lower(f.principal_id), s.account) = s.account and f.date between s.first_day - 3 and s.first_day
where f.date between $first and $last
group by s.place
"""

# Days on which an account relays from senders that are not the tenant's, new to it, to domains that are new to it.
RELAYED = """
with firsts as (
    select tenant_key, account, 'from' as kind, mail_from_domain as domain, min(date) as since from x05_flows group by all
    union all
    select tenant_key, account, 'to' as kind, rcpt_domain, min(date) from x05_flows group by all
),
judged as (
    select f.*, (not f.is_own_sender and s.since = f.date and r.since = f.date) as is_strange
    from x05_flows as f
    left join firsts as s
        on s.tenant_key = f.tenant_key and s.account = f.account and s.kind = 'from' and s.domain = f.mail_from_domain
    left join firsts as r
        on r.tenant_key = f.tenant_key and r.account = f.account and r.kind = 'to' and r.domain = f.rcpt_domain
),
accounts as (select tenant_key, account, min(date) as begins from x05_flows group by all)
select j.tenant_key, j.account, j.date as first_day, sum(j.rcpts) filter (where j.is_strange)::bigint as n_rcpts,
    sum(j.msgs) filter (where j.is_strange)::bigint as n_msgs, sum(j.bytes) filter (where j.is_strange)::bigint as n_bytes,
    list(distinct j.src_net order by j.src_net) filter (where j.is_strange and j.src_net is not null) as nets,
    min(j.first_ts) filter (where j.is_strange) as first_ts, max(j.last_ts) filter (where j.is_strange) as last_ts,
    list(distinct j.rcpt_domain order by j.rcpt_domain) filter (where j.is_strange) as rcpt_domains,
    any_value(j.date - a.begins) as n_history
from judged as j join accounts as a using (tenant_key, account)
where j.date >= $from and j.date >= a.begins + $history::integer
group by j.tenant_key, j.account, j.date
having sum(j.rcpts) filter (where j.is_strange) >= $least
    and sum(j.rcpts) filter (where j.is_strange) > $share * sum(j.rcpts)
order by all
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Accounts with which a stranger sends.

    Args:
        con: connection with flow_days, context_days, failure_days, tenants and networks.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per account and strange network (or day of relaying); no rows when there is nothing.
    """
    begin, last = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    span = {"first": begin - timedelta(days=params["baseline_days"]), "last": last}
    since = {"from": begin, "history": params["min_history_days"]}
    con.execute(FLOWS, span)
    try:
        con.execute(NETS, span)
        strange = _surprising(con, con.sql(STRANGE, params=since).pl(), params["max_surprise"])
        found = _from_strangers(con, strange, span, params)
        told = {(row["tenant_key"], row["account"]) for row in found}
        least = {"least": params["min_rcpts"], "share": params["new_share"]}
        relayed = con.sql(RELAYED, params=since | least).pl().iter_rows(named=True)
        found += [_relaying(row) for row in relayed if (row["tenant_key"], row["account"]) not in told]
    finally:
        con.execute("drop table if exists x05_nets")
        con.execute("drop table if exists x05_flows")
    return _described(con, found) if found else pl.DataFrame()


def _surprising(con: "duckdb.DuckDBPyConnection", nets: pl.DataFrame, most: float) -> pl.DataFrame:
    """Networks that are declared by nobody, of accounts that rarely show a new one; `place` numbers runs of them.

    What a thief goes through from one to the next counts together, and does not make the next one ordinary.
    """
    kept, before = list[dict[str, Any]](), dict[str, Any]()
    for net in nets.sort("tenant_key", "account", "first_day", "src_net").iter_rows(named=True):
        if is_declared(con, [net["src_net"]]):
            continue
        same = bool(before) and (before["tenant_key"], before["account"]) == (net["tenant_key"], net["account"])
        if same and (net["first_day"] - before["first_day"]).days <= RUN_GAP:
            before = net | {"place": before["place"], "rate": before["rate"]}
            kept.append(before)
            continue
        n_later = sum(not is_declared(con, [later]) for later in net["later_nets"] or ())
        rate = (n_later + 0.5) / (net["n_history"] - 7 + 1)
        if rate <= max(most, 0.5 / (net["n_history"] - 6)):
            before = net | {"place": len(kept), "rate": rate}
            kept.append(before)
    return pl.DataFrame(kept, infer_schema_length=None)


def _from_strangers(
    con: "duckdb.DuckDBPyConnection", strange: pl.DataFrame, span: Mapping[str, date], params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if strange.is_empty():
        return []
    con.register("x05_strange", strange.drop("later_nets").to_arrow())
    try:
        sent, guesses = con.sql(SENT).pl(), con.sql(GUESSES, params=dict(span)).pl()
    finally:
        con.unregister("x05_strange")
    runs = strange.group_by("place").agg(
        pl.col("tenant_key", "account", "first_day", "n_history", "rate").first(), pl.col("src_net").alias("nets"),
        pl.col("first_ts").min(), pl.col("last_ts").max(),
    )  # fmt: skip
    # The join's keys are of different widths.
    tables = [frame.with_columns(pl.col("place").cast(pl.Int64)) for frame in (runs, sent, guesses)]
    rows = tables[0].join(tables[1], on="place", how="left").join(tables[2], on="place", how="left")
    found = []
    for row in rows.sort("place").iter_rows(named=True):
        signs = _signs(row, params)
        n_msgs = row["n_msgs"] or 0
        guessed = (row["n_failures"] or 0) >= params["min_failures"]
        if not (signs and (n_msgs or guessed)) and n_msgs < params["min_msgs"]:
            continue
        found.append(row | {
            "kind": "strange_network", "source": row["nets"][0],
            "first_ts": min(row["first_ts"], row["guessed_from"]) if guessed else row["first_ts"], "nets": sorted(row["nets"]), "n_msgs": n_msgs,
            "signs": " ".join(signs) or None, "n_signs": len(signs),
            "severity": "high" if len(signs) >= 2 else "medium" if signs else "low", "confidence": 0.9 if signs else 0.6,
            "normal": f"In {count(row['n_history'], 'day')} before it was never used from there; it shows a new network "
            f"on {one_in(row['rate'])}.",
        })  # fmt: skip
    return found


def _signs(row: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """What else is odd about the mail from a strange network, a sentence each."""
    signs = []
    n_rcpts, n_msgs = row["n_rcpts"] or 0, row["n_msgs"] or 0
    if n_rcpts >= params["min_rcpts"] and row["new_rcpts"] > params["new_share"] * n_rcpts:
        signs.append(f"Of {count(n_rcpts, 'recipient')} {row['new_rcpts']:,} are in domains that it never wrote to.")
    if row["n_new_senders"] and (row["n_foreign"] or 0) < params["many_senders"]:
        signs.append("It sends in the name of domains that are not the tenant's.")
    if (row["busiest"] or 0) >= max(params["min_excess"], params["lift"] * (row["highest"] or 0)):
        signs.append(f"{count(row['busiest'], 'recipient')} on a day; before, at most {row['highest'] or 0:,}.")
    usual = row["usual_size"] or 0
    if n_msgs >= params["min_msgs"] and usual and row["n_bytes"] / n_msgs >= params["lift"] * usual:
        signs.append(f"A message is {size(row['n_bytes'] / n_msgs)} large; before, {size(usual)}.")
    if (row["n_failures"] or 0) >= params["min_failures"]:
        signs.append(f"{count(row['n_failures'], 'sign-in')} from there had been refused.")
    return signs


def _relaying(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(row) | {
        "kind": "relay", "source": "", "severity": "medium", "confidence": 0.7, "n_signs": 2, "n_failures": None,
        "signs": "Senders and recipients are strangers: neither belongs to the tenant, and the account never had them.",
        "normal": f"In {count(row['n_history'], 'day')} before it did not send for these senders.",
    }  # fmt: skip


def _described(con: "duckdb.DuckDBPyConnection", found: list[dict[str, Any]]) -> pl.DataFrame:
    rows = [
        {
            "tenant_id": row["tenant_key"] or None, "account": row["account"], "kind": row["kind"],
            "source": row["source"], "first_day": row["first_day"], "first_seen": row["first_ts"],
            "last_seen": row["last_ts"], "sent": _sent(row), "normal": row["normal"], "signs": row["signs"],
            "n_signs": row["n_signs"], "severity": row["severity"], "confidence": row["confidence"], "impact": 1.0,
            "n_msgs": row["n_msgs"], "n_rcpts": row.get("n_rcpts"), "n_bytes": row.get("n_bytes"),
            "n_failures": row["n_failures"], "rcpt_domains": row.get("rcpt_domains"), "source_networks": row["nets"],
            "principal_ids": [row["account"]], "evidence_principals": [row["account"], None],
            "evidence_tenants": [row["tenant_key"] or None], "protocols": ["smtp"], "is_service": False,
            "is_declared_net": is_declared(con, row["nets"]) if row["nets"] else None,
        }
        for row in found
    ]  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None).sort("first_seen", "tenant_id", "account", "source")


def _sent(row: Mapping[str, Any]) -> str:
    if not row["n_msgs"]:
        return "nothing yet"
    to = f" to {count(row['n_rcpts'], 'recipient')}" if row["n_rcpts"] else ""
    return count(row["n_msgs"], "message") + to + (f", {size(row['n_bytes'])}" if row["n_bytes"] else "")
