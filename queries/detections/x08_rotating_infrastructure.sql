/*---
id = "X08"
title = "One credential from ever-changing networks"
hypothesis = "Who hides behind rented or hijacked connections uses each of them for a few calls only."
family = "exfiltration"
severity = "high"
tables = ["context_days", "networks"]
needs = ["context_days"]
identity = ["entity_kind", "entity_tenant", "entity_id", "first_day"]
explanation = "{entity_id:Name} was used from {n_nets:count network} on one day[ in {n_asns:some autonomous system}], with a median of {ops_per_net} operations from each: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][ at {tenant_ids:tenants}]. In {n_history:count active day} before, the most on one day was {usual_nets}.[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} was used from {n_nets:count network} on one day."
why = "In {n_history:count active day} before, the most on one day was {usual_nets}."
false_positives = [
  "the vendor moves the integration to functions of a cloud without fixed addresses: many tenants show it at once",
  "a user who travels with a mobile connection that changes its network often",
  "a privacy relay or a company's proxy service that spreads connections",
]
blind_spots = [
  "fewer networks a day than min_nets",
  "an entity whose networks always changed: its own habit covers the thief's",
  "logs that show a proxy's address instead of the client's",
]
runbook = [
  "`src_net`, `src_asn`: list the networks in order of time for the day and look up who owns them (residential, hosting, proxy services)",
  "`action`, `n_ops`: compare what was done with the 60 days before",
  "`client_fp`, `user_agent`: see whether one client stands behind all networks of the day",
  "`principal_id`: look for refused sign-ins from the same networks in the 14 days before",
]

attack = [
  { technique = "T1090.002", name = "External Proxy", tactics = ["command-and-control"] },
  { technique = "T1090.003", name = "Multi-hop Proxy", tactics = ["command-and-control"] },
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before a day that count as history, at most" },
  { name = "min_active_days", default = 14, help = "active days that a history must have" },
  { name = "min_nets", default = 5, help = "networks on a day, at least, of a service credential" },
  { name = "min_user_nets", default = 8, help = "the same of a person's account" },
  { name = "lift", default = 3.0, help = "how many times the most networks of a day before there must be" },
  { name = "ops_per_net", default = 3.0, help = "operations of a network on the day, at most, in the median" },
  { name = "new_share", default = 0.8, help = "share of the networks that the entity never used before" },
  { name = "wide_share", default = 0.3, help = "share of all tenants from which it looks like a change of infrastructure" },
]

[[subjects]]
sql = "select exists (select 1 from judged where last_ts >= $window_from and n_history >= $min_active_days)"
reason = "nobody seen in the window, from an undeclared network, has $min_active_days active days before"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "evidence_networks" }
---*/
with uses as (
    select date, tenant_id, protocol, principal_id, app_id, credential_id, src_net, src_asn, src_class, client_fp, n_ops, items, first_ts,
        last_ts, coalesce(principal_type, '') in ('service_principal', 'service_account', 'computer') as is_service
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and first_ts < $window_to and outcome = 'success' and action <> 'probe' and src_net is not null
        and coalesce(src_class, '') not in ('vendor_egress', 'vendor', 'corporate', 'microsoft', 'private')
),

-- A certificate or key may open many tenants; a password or an account belongs to one.
entity_nets as (
    select if(is_shared, 'credential', 'principal') as entity_kind, if(is_shared, '', coalesce(tenant_id, '')) as entity_tenant,
        if(is_shared, credential_id, coalesce(principal_id, app_id)) as entity_id, date, src_net,
        bool_or(is_service or is_shared) as is_service,
        max(src_asn) as src_asn, sum(n_ops) as n_ops, min(first_ts) as first_ts, max(last_ts) as last_ts
    from (select *, coalesce(is_service and credential_id not like 'pw:%', false) as is_shared from uses) as u
    where if(is_shared, credential_id, coalesce(principal_id, app_id)) is not null
    group by all
),

entity_days as (
    select entity_kind, entity_tenant, entity_id, date, bool_or(is_service) as is_service, count(*) as n_nets, median(n_ops) as ops_per_net,
        count(distinct src_asn) as n_asns, min(first_ts) as first_ts, max(last_ts) as last_ts
    from entity_nets
    group by entity_kind, entity_tenant, entity_id, date
),

-- The three days just before are left out, so that some days of it do not make it usual.
judged as (
    select *, max(n_nets) over history as usual_nets, count(*) over history as n_history
    from entity_days
    window history as (
        partition by entity_kind, entity_tenant, entity_id order by date
        range between interval ($baseline_days) day preceding and interval 4 day preceding
    )
),

candidates as (
    select *
    from judged
    where last_ts >= $window_from and n_history >= $min_active_days and ops_per_net <= $ops_per_net
        and n_nets >= greatest(if(is_service, $min_nets, $min_user_nets), $lift * usual_nets)
),

day_nets as (
    select c.entity_kind, c.entity_tenant, c.entity_id, c.date, n.src_net, n.first_ts
    from candidates as c
    inner join entity_nets as n using (entity_kind, entity_tenant, entity_id, date)
),

known_nets as (
    select d.entity_kind, d.entity_tenant, d.entity_id, d.date, d.src_net
    from day_nets as d
    inner join entity_nets as n
        on d.entity_kind = n.entity_kind and d.entity_tenant = n.entity_tenant and d.entity_id = n.entity_id and d.src_net = n.src_net
        and d.date - 3 > n.date
    group by d.entity_kind, d.entity_tenant, d.entity_id, d.date, d.src_net
),

net_starts as (
    select src_net, min(first_ts) as first_ts
    from day_nets
    group by src_net
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
declared_nets as (
    select distinct n.src_net
    from net_starts as n
    inner join declared_networks() as r
        on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
        and n.first_ts between r.valid_from and r.valid_to
),

strange_nets as (
    select d.*
    from day_nets as d
    left join known_nets as k using (entity_kind, entity_tenant, entity_id, date, src_net)
    left join declared_nets as r on d.src_net = r.src_net
    where k.src_net is null and r.src_net is null
),

hits as (
    select c.*
    from candidates as c
    inner join (
        select entity_kind, entity_tenant, entity_id, date, count(*) as n_new from strange_nets group by all
    ) as s using (entity_kind, entity_tenant, entity_id, date)
    where s.n_new >= $new_share * c.n_nets and s.n_new >= if(c.is_service, $min_nets, $min_user_nets)
),

runs as (
    select *, sum(is_start) over (partition by entity_kind, entity_tenant, entity_id order by date) as run
    from (
        select *, if(date - lag(date) over (partition by entity_kind, entity_tenant, entity_id order by date) <= 3, 0, 1) as is_start
        from hits
    ) as h
),

busiest as (
    select entity_kind, entity_tenant, entity_id, run, min(date) as first_day, max(date) as last_day, count(*) as n_days,
        max(n_nets) as n_nets, max(n_asns) as n_asns, max(ops_per_net) as ops_per_net, min(usual_nets) as usual_nets,
        min(n_history) as n_history, bool_or(is_service) as is_service
    from runs
    group by entity_kind, entity_tenant, entity_id, run
),

described as (
    select b.entity_kind, b.entity_tenant, b.entity_id, b.run, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.tenant_id order by u.tenant_id) filter (where u.tenant_id is not null) as tenant_ids,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct coalesce(u.principal_id, u.app_id)) as actor_ids, list(distinct u.src_net order by u.src_net) as source_networks,
        list(distinct u.src_net order by u.src_net) as evidence_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        list(distinct u.protocol order by u.protocol) as protocols, cast(sum(u.n_ops) as bigint) as n_ops,
        cast(sum(u.items) as bigint) as n_items, count(distinct u.tenant_id) as n_tenants,
        count(distinct u.src_net) filter (where u.src_class in ('residential', 'hosting', 'cloud', 'tor', 'proxy')) as n_rented
    from busiest as b
    inner join strange_nets as s
        on b.entity_kind = s.entity_kind and b.entity_tenant = s.entity_tenant and b.entity_id = s.entity_id
        and s.date between b.first_day and b.last_day
    inner join uses as u
        on s.src_net = u.src_net and s.date = u.date and u.date >= cast($window_from as date)
        and b.entity_id = if(b.entity_kind = 'credential', u.credential_id, coalesce(u.principal_id, u.app_id))
        and (b.entity_kind = 'credential' or b.entity_tenant = coalesce(u.tenant_id, ''))
    group by b.entity_kind, b.entity_tenant, b.entity_id, b.run
),

-- Many identities at once, in many tenants: a change of infrastructure, not a thief.
waves as (
    select count(distinct t.tenant) as n_hit_tenants,
        (select count(distinct u.tenant_id) from uses as u where u.last_ts >= $window_from) as n_all_tenants
    from (select unnest(tenant_ids) as tenant from described) as t
),

-- What a credential's finding tells is not told again for its account.
shown as (
    select d.*, b.first_day, b.n_days, b.n_nets, b.n_asns, b.ops_per_net, b.usual_nets, b.n_history, b.is_service,
        w.n_all_tenants >= 10 and w.n_hit_tenants > $wide_share * w.n_all_tenants and b.is_service as is_wide
    from described as d
    inner join busiest as b using (entity_kind, entity_tenant, entity_id, run)
    cross join waves as w
    where d.entity_kind = 'credential'
        or not exists (
            select 1 from described as o
            where o.entity_kind = 'credential' and list_contains(o.principal_ids, d.entity_id)
        )
)

select *, false as is_declared, cast(null as boolean) as is_declared_net,
    concat_ws(
        ' ',
        if(is_wide, 'Many tenants show it at once: ask the vendor about a change of infrastructure.', null),
        if(n_rented > 0, n_rented || ' of the networks are known as rented or residential.', null),
        if(len(client_fps) = 1, 'One client stands behind all of them.', null)
    ) as remark,
    case when is_wide then 'low' when is_service then 'high' else 'medium' end as severity,
    least(1.0, 0.5 + 0.05 * n_nets) as confidence, if(n_tenants > 1, 2.0, 1.0) as impact
from shown
order by first_seen, entity_kind, entity_tenant, entity_id
