/*---
id = "L02"
title = "One source goes on from one account to the next"
hypothesis = "Who holds several stolen accounts uses them one after the other from one place, where they never met."
family = "lateral_movement"
severity = "high"
tables = ["context_days", "credentials", "bindings", "networks"]
needs = ["context_days"]
identity = ["source", "first_day"]
explanation = "From {source_networks:nets} accounts that had never met were used one after the other: {path:list}, {first_seen:span}[ at {tenant_ids:tenants}], {n_ops:ops}[ on {n_items:some item}]. Score {score}.[ {remark}]"
step = "{first_seen:Days}, accounts that had never met were used one after the other from {source_networks:nets}: {path:list}."
why = "Before, these accounts had never shared a source."
false_positives = [
  "a jump host or an administrator's workstation that is new",
  "a job scheduler that gets further accounts",
  "a vendor's egress that is not declared: many tenants show it at once",
]
blind_spots = [
  "accounts that were used together before, such as those of one server",
  "a switch to an ordinary user's account: told by its own source only (T07)",
  "a source for each account",
  "steps more than switch_hours apart",
]
runbook = [
  "`principal_id`, `first_ts`: list all accounts used from the source in order of time for the 7 days around the switch",
  "`src_net`: look up whose the source is, and search it in the other tenants in the 30 days before and after",
  "`credential_id`: rotate each account of the path, and find out for the day where each of their secrets was stored",
  "`mailbox_id`: list what the last account of the path opened in the 14 days after",
]

attack = [
  { technique = "T1550", name = "Use Alternate Authentication Material", tactics = ["lateral-movement"] },
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1021", name = "Remote Services", tactics = ["lateral-movement"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the window that count as history" },
  { name = "min_active_days", default = 14, help = "active days that the second account must have before" },
  { name = "burn_in_days", default = 7, help = "first days of its history, in which every network is new" },
  { name = "switch_hours", default = 24, help = "hours between the use of the one and of the other account" },
  { name = "min_score", default = 5.0, help = "least score: the sum of -log10 of how usual the parts are, divided by how many accounts the source already served" },
  { name = "shared_tenants", default = 3, help = "tenants whose services use a network, from which meeting there means nothing (a vendor's egress)" },
  { name = "wide_share", default = 0.3, help = "share of all tenants at the source from which it looks like a change of infrastructure" },
]

[[subjects]]
sql = "select exists (select 1 from actor_totals where n_all >= $min_active_days)"
reason = "no service account has $min_active_days active days with a client address before the window"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { "coalesce(principal_id, app_id)" = "actor_ids", src_net = "source_networks" }
---*/
with uses as (
    select date, tenant_id, protocol, principal_id, app_id, credential_id, coalesce(principal_id, app_id) as actor_id, src_net, src_class,
        client_fp, n_ops, items, first_ts, last_ts,
        coalesce(principal_type, '') in ('service_principal', 'service_account', 'computer')
        or coalesce(credential_id in (select h.credential_id from held_credentials() as h), false)
        or coalesce(principal_id in (select h.principal_id from held_principals() as h), false) as is_service
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and first_ts < $window_to and outcome = 'success' and action <> 'probe' and src_net is not null
        and coalesce(principal_id, app_id) is not null
),

pairs as (
    select actor_id, src_net, bool_or(is_service) as is_service, max(src_class) as src_class, min(first_ts) as first_ts,
        min(date) as first_day, count(distinct date) as n_days
    from uses
    group by actor_id, src_net
),

actor_days as (
    select actor_id, date, min(date) over (partition by actor_id) as begins
    from (select distinct actor_id, date from uses where is_service) as d
),

actor_totals as (
    select d.actor_id, count(*) filter (where d.date >= d.begins + cast($burn_in_days as integer)) as n_days, count(*) as n_all
    from actor_days as d
    where d.date < cast($window_from as date)
    group by d.actor_id
),

news as (
    select p.actor_id, count(*) as k
    from pairs as p
    inner join (select actor_id, min(first_day) as begins from pairs group by actor_id) as b using (actor_id)
    where p.first_day >= b.begins + cast($burn_in_days as integer) and p.first_day < cast($window_from as date)
    group by p.actor_id
),

net_starts as (
    select src_net, min(first_ts) as first_ts
    from pairs
    where is_service
    group by src_net
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
declared_nets as (
    select distinct n.src_net
    from net_starts as n
    inner join declared_networks() as r
        on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
        and n.first_ts between r.valid_from and r.valid_to
    union
    select distinct src_net from pairs where src_class in ('vendor_egress', 'vendor', 'corporate', 'microsoft')
),

-- All customers of a vendor meet at its egress: having met there is no history.
meeting_places as (
    select src_net from declared_nets
    union
    select src_net from uses
    where is_service and date < cast($window_from as date)
    group by src_net
    having count(distinct tenant_id) >= $shared_tenants
),

-- A service account that rarely changes its network, at a source where it had never been.
arrivals as (
    select p.actor_id, p.src_net, p.first_ts, -log10((coalesce(n.k, 0) + 0.5) / (t.n_days + 1)) as surprise
    from pairs as p
    inner join actor_totals as t on p.actor_id = t.actor_id and t.n_all >= $min_active_days
    left join news as n on p.actor_id = n.actor_id
    where p.is_service and p.first_ts >= $window_from and p.src_net not in (select d.src_net from declared_nets as d)
),

sources as (
    select a.src_net, min(a.first_ts) as first_ts,
        (select count(*) from (select distinct p.actor_id from pairs as p) as d) as n_all_actors
    from arrivals as a
    group by a.src_net
),

guests_before as (
    select s.src_net, count(distinct p.actor_id) as n_before
    from sources as s
    inner join pairs as p on s.src_net = p.src_net and p.first_ts < s.first_ts - to_hours(cast($switch_hours as integer))
    group by s.src_net
),

-- What somebody at the source did on the day before the arrival.
steps as (
    select a.src_net, a.actor_id as second, a.first_ts, a.surprise, u.actor_id as first_one, max(u.first_ts) as used_at
    from arrivals as a
    inner join uses as u on a.src_net = u.src_net and a.actor_id <> u.actor_id
    where u.date >= cast($window_from as date) - 1 and u.first_ts <= a.first_ts
        and u.last_ts >= a.first_ts - to_hours(cast($switch_hours as integer))
    group by a.src_net, a.actor_id, a.first_ts, a.surprise, u.actor_id
),

strangers as (
    select s.*
    from steps as s
    where not exists (
        select 1
        from pairs as a
        inner join pairs as b on a.src_net = b.src_net
        where a.actor_id = s.first_one and b.actor_id = s.second and a.src_net <> s.src_net and a.first_ts < s.first_ts
            and b.first_ts < s.first_ts and a.src_net not in (select m.src_net from meeting_places as m)
    )
),

reached as (
    select actor_id, coalesce(tenant_id, '') || ' ' || protocol as resource, min(first_ts) as first_ts, count(distinct date) as n_days
    from uses
    where actor_id in (select s.first_one from strangers as s) or actor_id in (select s.second from strangers as s)
    group by all
),

-- The second account opens something that the first one never reached in all its days.
hops as (
    select s.src_net, s.first_one, s.second, s.used_at, s.first_ts, s.surprise,
        -log10(0.5 / (coalesce(max(f.n_days), 0) + 1)) as resource_surprise
    from strangers as s
    inner join reached as r on s.second = r.actor_id
    left join (select actor_id, max(n_days) as n_days from reached group by actor_id) as f on s.first_one = f.actor_id
    where not exists (select 1 from reached as o where o.actor_id = s.first_one and o.resource = r.resource)
    group by s.src_net, s.first_one, s.second, s.used_at, s.first_ts, s.surprise
),

scored as (
    select h.*,
        (h.surprise + h.resource_surprise + log10(greatest(1, s.n_all_actors / (1.0 + coalesce(g.n_before, 0)))))
        / log2(2 + coalesce(g.n_before, 0)) as score
    from hops as h
    inner join sources as s on h.src_net = s.src_net
    left join guests_before as g on h.src_net = g.src_net
),

-- The likeliest step to each account: the one used last before.
best as (
    select * from scored where score >= $min_score
    qualify row_number() over (partition by src_net, second order by used_at desc, score desc, first_one asc) = 1
),

paths as (
    select src_net, min(used_at) as first_ts, count(*) as n_hops, max(score) as top, min(cast(first_ts as date)) as first_day,
        list_distinct(list_concat(list(first_one), list(second))) as members
    from best
    group by src_net
),

described as (
    select p.src_net, p.first_day, p.n_hops, p.top, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.actor_id order by u.actor_id) as actor_ids, list(distinct u.protocol order by u.protocol) as protocols,
        list(distinct u.tenant_id order by u.tenant_id) filter (where u.tenant_id is not null) as tenant_ids,
        count(distinct u.tenant_id) as n_tenants,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null and u.is_service) as app_ids,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items
    from paths as p
    inner join uses as u
        on p.src_net = u.src_net and list_contains(p.members, u.actor_id)
        and p.first_ts - to_hours(cast($switch_hours as integer)) <= u.first_ts
    group by p.src_net, p.first_day, p.n_hops, p.top
),

orders as (
    select src_net, list(actor_id order by first_ts, actor_id) as path
    from (
        select u.src_net, u.actor_id, min(u.first_ts) as first_ts
        from uses as u
        inner join paths as p
            on u.src_net = p.src_net and list_contains(p.members, u.actor_id)
            and p.first_ts - to_hours(cast($switch_hours as integer)) <= u.first_ts
        group by u.src_net, u.actor_id
    ) as o
    group by src_net
),

totals as (
    select count(distinct tenant_id) as n_all_tenants from uses where date >= cast($window_from as date)
)

select d.*, d.src_net as source, [d.src_net] as source_networks, o.path, false as is_declared,
    cast(null as boolean) as is_declared_net, round(d.top + 0.5 * (d.n_hops - 1), 1) as score,
    t.n_all_tenants >= 10 and d.n_tenants > $wide_share * t.n_all_tenants as is_wide,
    if(
        t.n_all_tenants >= 10 and d.n_tenants > $wide_share * t.n_all_tenants,
        'Many tenants show the source: ask the vendor about a change of egress.', null
    ) as remark,
    case
        when t.n_all_tenants >= 10 and d.n_tenants > $wide_share * t.n_all_tenants then 'low'
        when d.n_hops >= 2 or d.n_tenants >= 2 then 'high'
        else 'medium'
    end as severity,
    least(1.0, d.top / 8) as confidence, if(d.n_tenants >= 2, 2.0, 1.0) as impact
from described as d
inner join orders as o on d.src_net = o.src_net
cross join totals as t
order by d.first_seen, d.src_net
