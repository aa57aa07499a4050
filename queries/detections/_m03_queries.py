"""What M03 asks: candidates of each kind, and the rows behind them."""

SERVICES = "('service_principal', 'service_account', 'computer')"
OWN = "(logon_type = 'owner' or (logon_type is null and principal_id = mailbox_id))"

THROTTLED = """
with hits as (
    select coalesce(tenant_id, '') as tenant_key, actor_id, mailbox_id, date, min(first_ts) as first_ts,
        arg_min(src_net, (first_ts, src_net)) as src_net, bool_and(is_own) as is_own
    from throttled_days
    where date between $first and $last
    group by all
),
habits as (
    select distinct h.tenant_key, h.actor_id, h.mailbox_id, h.date from hits as h
    join hits as b
        on b.tenant_key = h.tenant_key and b.actor_id = h.actor_id and b.mailbox_id = h.mailbox_id
        and b.date < h.date - $settle::integer
    where h.date >= $from
),
owner_nets as (
    select entity_id as actor_id, attr_value as src_net, min(first_ts) as since
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net'
        and entity_id in (select actor_id from hits where is_own and date >= $from)
    group by all
)
select h.tenant_key, h.actor_id, h.mailbox_id, h.date, h.first_ts, h.is_own
from hits as h
anti join habits as b using (tenant_key, actor_id, mailbox_id, date)
left join owner_nets as n on n.actor_id = h.actor_id and n.src_net = h.src_net
where h.date >= $from
    and (not h.is_own or (h.src_net is not null and coalesce(n.since >= h.first_ts - interval 3 day, true)
        and exists (select 1 from owner_nets as o where o.actor_id = h.actor_id and o.since < h.first_ts - interval 14 day)))
order by all
"""

# One record with many operations, from a network that the actor had not used in its active days before.
FOLDED = f"""
with big as (
    select coalesce(tenant_id, '') as tenant_key, coalesce(principal_id, app_id) as actor_id, mailbox_id, date, src_net,
        max(op_count) as most
    from access_events
    where date between $from and $last and op_count >= $many and mailbox_id is not null and outcome <> 'failure'
        and coalesce(principal_id, app_id) is not null and not coalesce({OWN}, false)
        and action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment')
    group by all
),
before as (
    select b.tenant_key, b.actor_id, b.src_net, b.date, count(distinct e.date) as n_active,
        bool_or(e.src_net = b.src_net) as is_known
    from (select distinct tenant_key, actor_id, src_net, date from big) as b
    join edge_days as e
        on coalesce(e.tenant_id, '') = b.tenant_key and e.actor_id = b.actor_id and e.date < b.date
        and e.date >= b.date - $baseline::integer
    where e.date between $first and $last
    group by all
)
select b.tenant_key, b.actor_id, b.mailbox_id, b.date, b.most
from big as b join before as k using (tenant_key, actor_id, src_net, date)
where k.n_active >= $active and not coalesce(k.is_known, false)
order by all
"""

PAIR_DAYS = """
create or replace temp table m03_days as
select coalesce(tenant_id, '') as tenant_key, actor_id, mailbox_id, date, sum(n_ops)::double as n
from edge_days
where date between $first and $last and coalesce(logon_type, '') <> 'owner'
group by 1, 2, 3, 4
"""

# Days of a pair that stand out from its own history, or (for a young pair) from the actor's with any mailbox.
VOLUMES = """
with candidates as (select * from m03_days where date >= $from and n >= $excess),
own as (
    select c.tenant_key, c.actor_id, c.mailbox_id, c.date, max(d.n) as highest, min(d.date) as since, count(*) as n_active,
        coalesce(sum(d.n) filter (where d.date >= c.date - $rate::integer), 0) as total,
        coalesce(sum(d.n ** 2) filter (where d.date >= c.date - $rate::integer), 0) as squares
    from candidates as c
    join m03_days as d
        on d.tenant_key = c.tenant_key and d.actor_id = c.actor_id and d.mailbox_id = c.mailbox_id
        and d.date < c.date and d.date >= c.date - $baseline::integer
    group by all
),
actors as (
    select c.tenant_key, c.actor_id, c.date, max(d.n) as highest, count(distinct d.date) as n_active
    from (select distinct tenant_key, actor_id, date from candidates) as c
    join m03_days as d
        on d.tenant_key = c.tenant_key and d.actor_id = c.actor_id and d.date < c.date
        and d.date >= c.date - $baseline::integer
    group by all
),
tests as (select date, count(*) as n_tests from m03_days where date >= $from group by date)
select c.tenant_key, c.actor_id, c.mailbox_id, c.date, c.n, t.n_tests,
    coalesce(o.n_active >= $history, false) as has_history,
    coalesce(o.highest, 0) as highest, coalesce(o.total, 0) as total, coalesce(o.squares, 0) as squares,
    least($rate, c.date - coalesce(o.since, c.date - 1)) as n_days, a.highest as actor_highest
from candidates as c
join tests as t using (date)
join actors as a using (tenant_key, actor_id, date)
left join own as o using (tenant_key, actor_id, mailbox_id, date)
where a.n_active >= $history
order by all
"""

# Near the limit for the first time: as many operations were not seen of the pair before.
NEAR = """
select c.tenant_key, c.actor_id, c.mailbox_id, c.date, c.n
from m03_days as c
where c.date >= $from and c.n >= $near
    and not exists (
        select 1 from m03_days as d
        where d.tenant_key = c.tenant_key and d.actor_id = c.actor_id and d.n >= $near and d.date < c.date - $settle::integer
    )
order by c.n desc, c.date, c.tenant_key, c.actor_id, c.mailbox_id
"""

RECORDS = """
select c.tenant_key, c.actor_id, c.mailbox_id, c.date, count(*) as n
from access_events as a
join m03_near as c
    on a.date = c.date and a.mailbox_id = c.mailbox_id and coalesce(a.tenant_id, '') = c.tenant_key
    and coalesce(a.principal_id, a.app_id) = c.actor_id
where a.date between $from and $last and a.access_kind = 'bind' and a.outcome <> 'failure'
group by all
having count(*) between $near and 1000
order by all
"""

# Throttled rows name the mailbox as the log does; the other hits as edge_days does.
DETAILS = f"""
with rows as (
    select r.run, r.date, a.ts as first_ts, a.ts as last_ts, a.tenant_id, a.mailbox_id, a.src_net, a.credential_id,
        a.app_id, a.protocol, least(coalesce(a.op_count, 1), 274877906944) as n_ops,
        least(coalesce(a.item_count, 0), 274877906944) as items,
        a.principal_type in {SERVICES} or a.principal_id is null as is_service
    from m03_hits as r
    join access_events as a
        on a.date = r.date and a.mailbox_id = r.mailbox_id and coalesce(a.tenant_id, '') = r.tenant_key
        and coalesce(a.principal_id, a.app_id) = r.actor_id
    where r.blind_ts is not null and a.date between $from and $last and a.outcome <> 'failure'
    union all
    select r.run, r.date, e.first_ts, e.last_ts, e.tenant_id, e.mailbox_id, e.src_net, e.credential_id, e.app_id,
        e.protocol, e.n_ops, e.items, e.actor_type in {SERVICES} or e.actor_id = e.app_id
    from m03_hits as r
    join edge_days as e
        on e.date = r.date and e.mailbox_id = r.mailbox_id and coalesce(e.tenant_id, '') = r.tenant_key
        and e.actor_id = r.actor_id
    where r.blind_ts is null and e.date between $from and $last
)
select a.run, min(a.first_ts) as first_seen, max(a.last_ts) as last_seen, list(distinct a.tenant_id) as tenant_ids,
    list(distinct a.mailbox_id order by a.mailbox_id) as mailboxes, count(distinct a.mailbox_id)::bigint as n_mailboxes,
    list(distinct a.src_net order by a.src_net) filter (where a.src_net is not null) as source_networks,
    list(distinct a.credential_id order by a.credential_id)
        filter (where a.credential_id is not null) as credential_ids,
    list(distinct a.app_id order by a.app_id) filter (where a.app_id is not null) as app_ids,
    list(distinct a.protocol order by a.protocol) as protocols,
    sum(a.n_ops)::bigint as n_ops, sum(a.items)::bigint as n_items, bool_or(a.is_service) as is_service,
    bool_or(coalesce(m.vip, false)) as has_vip, bool_or(m.kind = 'journal') as has_journal,
    bool_or(t.onboarded_at > a.date - interval 30 day) as is_new_tenant
from rows as a
left join mailboxes as m on lower(m.mailbox_id) = a.mailbox_id
left join tenants as t on t.tenant_id = a.tenant_id
group by a.run
"""
