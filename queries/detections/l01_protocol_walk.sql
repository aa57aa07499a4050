/*---
id = "L01"
title = "One new network uses several protocols of a tenant"
hypothesis = "Whoever holds several stolen service credentials tries them one after the other from one place."
family = "lateral_movement"
severity = "high"
tables = ["context_days", "first_seen", "credentials", "bindings", "networks", "tenants"]
needs = ["context_days"]
identity = ["tenant_id", "source", "first_day"]
explanation = "{source_networks:Nets}, new to tenant {tenant_id}, reached {path:protocols} within {hours:count hour}[ and tried {n_refused:some more protocol} in vain], as {actor_ids:names}: {first_seen:span}, {n_ops:count operation}[ on {n_items:some item}].[ {remark}]"
false_positives = [
  "set-up of the integrations of a new tenant: all protocols on one day",
  "a new branch office or a migration of the integration server",
  "a penetration test",
]
blind_spots = [
  "a walk that uses another network for each protocol",
  "a source that the tenant's service accounts used before",
  "ordinary users: their networks change too often",
  "a thief within a network that the vendor declares as its own, with clients that the tenant knows",
  "protocols whose logs were not ingested",
]
runbook = [
  "`protocol`, `first_ts`: list the steps in order of time from access_events for the 72 hours after the first one",
  "`principal_id`, `credential_id`: list all accounts used from the source in the 30 days after, and rotate each",
  "`mailbox_id`: list the mailboxes touched from the `src_net` within 30 days",
  "`outcome`: count the refused attempts of the same `src_net` in the 30 days before the first success",
]

attack = [
  { technique = "T1021.007", name = "Cloud Services", tactics = ["lateral-movement"] },
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1087", name = "Account Discovery", tactics = ["discovery"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the first use that count as history, at most" },
  { name = "min_active_days", default = 21, help = "distinct active days that a tenant must have before the source appears" },
  { name = "fast_hours", default = 72, help = "hours within which a walk counts in full" },
  { name = "slow_days", default = 30, help = "days within which a slow walk still counts" },
  { name = "new_tenant_days", default = 30, help = "days after onboarding in which a walk is set-up work rather than an intrusion" },
  { name = "known_days", default = 14, help = "days since when the tenant must have known one of the accounts for networks of one autonomous system to count as one source" },
  { name = "max_change_rate", default = 0.05, help = "new networks a day above which a sign-in with its own interface from a new one is ordinary" },
]

[[subjects]]
sql = "select exists (select 1 from tenant_days group by tenant_id having count(*) > $min_active_days)"
reason = "no tenant has more than $min_active_days days with service accounts: no source can be new to it"

[evidence]
table = "access_events"
where = ""
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "source_networks" }
---*/
with service_use as (
    select date, tenant_id, protocol, principal_id, credential_id, app_id, src_net, src_asn, src_class, client_fp, outcome,
        n_ops, items, first_ts, last_ts
    from service_days(
        cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome in ('success', 'failure')
        and action <> 'probe'
        and tenant_id is not null
        and src_net is not null
),

tenant_days as (
    select distinct tenant_id, date from service_use where outcome = 'success'
),

first_nets as (
    select tenant_id, src_net, max(src_asn) as src_asn, min(first_ts) as first_ts
    from service_use
    group by tenant_id, src_net
),

first_asns as (
    select tenant_id, src_asn, min(first_ts) as first_ts
    from service_use
    where src_asn is not null
    group by tenant_id, src_asn
),

-- Service accounts used it before the baseline.
known_longer as (
    select distinct tenant_id, attr_type, attr_value
    from first_seen
    where date <= cast($window_from as date) - cast($baseline_days as integer)
        and first_ts < cast($window_from as date) - cast($baseline_days as integer)
        and n_days > 0
        and entity_type = 'credential'
        and entity_id in (select h.credential_id from held_credentials() as h)
        and attr_type in ('src_net', 'src_asn')
),

-- Anybody at the tenant used it before, ordinary users too.
known_to_users as (
    select entity_id as tenant_id, attr_value as src_net, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'tenant' and attr_type = 'src_net' and n_days > 0 and date <= cast($window_to as date)
    group by entity_id, attr_value
),

actor_starts as (
    select tenant_id, coalesce(principal_id, app_id) as actor_id, min(first_ts) as first_ts
    from service_use
    where outcome = 'success'
    group by tenant_id, coalesce(principal_id, app_id)
),

-- Where an account that the tenant knew came in: a new application in the same data centre is somebody else.
entered as (
    select distinct u.tenant_id, u.src_net
    from service_use as u
    inner join first_nets as n on u.tenant_id = n.tenant_id and u.src_net = n.src_net
    inner join actor_starts as s
        on u.tenant_id = s.tenant_id and coalesce(u.principal_id, u.app_id) = s.actor_id
        and s.first_ts < n.first_ts - to_days(cast($known_days as integer))
    where n.first_ts >= $window_from
),

new_nets as (
    select n.tenant_id, n.src_net, n.first_ts,
        if(a.first_ts >= $window_from and ka.attr_value is null and e.src_net is not null, 'AS' || n.src_asn, n.src_net) as source
    from first_nets as n
    left join entered as e on n.tenant_id = e.tenant_id and n.src_net = e.src_net
    left join first_asns as a on n.tenant_id = a.tenant_id and n.src_asn = a.src_asn
    left join known_longer as ka
        on n.tenant_id = ka.tenant_id and ka.attr_type = 'src_asn' and cast(n.src_asn as varchar) = ka.attr_value
    left join known_longer as kn
        on n.tenant_id = kn.tenant_id and kn.attr_type = 'src_net' and n.src_net = kn.attr_value
    where n.first_ts >= $window_from and kn.attr_value is null
),

new_sources as (
    select s.tenant_id, s.source, s.first_ts, count(*) as n_active_days
    from (select tenant_id, source, min(first_ts) as first_ts from new_nets group by tenant_id, source) as s
    inner join tenant_days as d
        on s.tenant_id = d.tenant_id and d.date < cast(s.first_ts as date)
        and d.date >= cast(s.first_ts as date) - cast($baseline_days as integer)
    group by s.tenant_id, s.source, s.first_ts
    having count(*) >= $min_active_days
),

new_use as (
    select u.*, s.source, s.first_ts as arrived_at
    from service_use as u
    inner join new_nets as n on u.tenant_id = n.tenant_id and u.src_net = n.src_net
    inner join new_sources as s on n.tenant_id = s.tenant_id and n.source = s.source
    where u.first_ts < s.first_ts + to_days(cast($slow_days as integer))
),

-- A sign-in and the interface that the same application or credential then uses are one step.
steps as (
    select tenant_id, source, protocol, min(first_ts) as first_ts,
        min(first_ts) filter (where outcome = 'success') as ok_ts,
        list(distinct coalesce(app_id, credential_id, principal_id) order by coalesce(app_id, credential_id, principal_id)) as users,
        list(distinct credential_id order by credential_id) filter (where credential_id is not null) as step_credentials
    from new_use
    group by tenant_id, source, protocol
),

legs as (
    select s.*,
        s.protocol = 'oauth' and exists (
            select 1 from steps as o
            where o.tenant_id = s.tenant_id and o.source = s.source and o.protocol in ('ews', 'graph', 'exchange', 'directory')
                and (list_has_any(o.users, s.users) or list_has_any(o.step_credentials, s.step_credentials))
        ) as is_sign_in_of_other
    from steps as s
),

walks as (
    select tenant_id, source, min(first_ts) as first_step, max(first_ts) as last_step,
        count(*) as n_protocols,
        count(*) filter (where not is_sign_in_of_other) as n_legs,
        count(*) filter (where ok_ts is not null) as n_ok,
        count(*) filter (where ok_ts is not null and not is_sign_in_of_other) as n_ok_legs,
        list(protocol order by first_ts, protocol) filter (where ok_ts is not null) as path
    from legs
    group by tenant_id, source
    having count(*) filter (where ok_ts is not null) >= 2
        or (count(*) filter (where ok_ts is not null) >= 1 and count(*) filter (where ok_ts is null) >= 2)
),

net_starts as (
    select src_net, min(first_ts) as first_ts
    from new_use
    group by src_net
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
declared_nets as (
    select n.src_net, max(r.kind) as kind
    from net_starts as n
    inner join declared_networks() as r
        on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
        and n.first_ts between r.valid_from and r.valid_to
    group by n.src_net
),

first_clients as (
    select tenant_id, client_fp, min(first_ts) as first_ts
    from service_use
    where client_fp is not null
    group by tenant_id, client_fp
),

-- How often the actors of a walk changed their network before: cloud egress makes one integration walk every day.
actor_histories as (
    select n.tenant_id, n.source, n.actor_id, count(distinct u.src_net) as n_nets, count(distinct u.date) as n_days
    from (select distinct tenant_id, source, arrived_at, coalesce(principal_id, app_id) as actor_id from new_use) as n
    inner join service_use as u
        on n.tenant_id = u.tenant_id and n.actor_id = coalesce(u.principal_id, u.app_id)
        and n.arrived_at > u.first_ts and u.outcome = 'success'
    group by n.tenant_id, n.source, n.actor_id
),

steadiness as (
    select tenant_id, source, min((n_nets - 0.5) / (n_days + 1)) as net_change_rate
    from actor_histories
    group by tenant_id, source
),

tenant_totals as (
    select count(distinct tenant_id) as n_all_tenants from service_use where last_ts >= $window_from
),

spreads as (
    select n.source, count(distinct u.tenant_id) as n_spread
    from (select distinct source, src_net from new_nets) as n
    inner join service_use as u on n.src_net = u.src_net and u.last_ts >= $window_from
    group by n.source
),

described as (
    select u.tenant_id, u.source, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, u.app_id) order by coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.src_net order by u.src_net) as source_networks,
        list(distinct u.src_asn order by u.src_asn) filter (where u.src_asn is not null) as source_asns,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items,
        bool_and(d.kind is not null or u.src_class in ('vendor_egress', 'vendor', 'corporate', 'microsoft')) as is_declared,
        coalesce(bool_and(coalesce(d.kind, u.src_class) in ('vendor_egress', 'vendor')), false) as is_vendor,
        bool_or(k.first_ts < u.arrived_at and cast(k.first_ts as date) < cast(u.arrived_at as date)) as is_known_to_users,
        -- A client that comes to the source days after the walk took no part in it: T04 looks at that one.
        bool_or(c.first_ts between u.arrived_at and w.last_step + to_hours(cast($fast_hours as integer))) as is_new_client
    from new_use as u
    inner join walks as w on u.tenant_id = w.tenant_id and u.source = w.source
    left join declared_nets as d on u.src_net = d.src_net
    left join first_clients as c on u.tenant_id = c.tenant_id and u.client_fp = c.client_fp
    left join known_to_users as k on u.tenant_id = k.tenant_id and u.src_net = k.src_net
    group by u.tenant_id, u.source
),

weighed as (
    select d.*, w.n_protocols, w.n_legs, w.n_ok, w.n_ok_legs, w.path,
        date_diff('hour', w.first_step, w.last_step) + 1 as hours,
        w.last_step - w.first_step <= to_hours(cast($fast_hours as integer)) as is_fast,
        coalesce(t.onboarded_at > w.first_step - to_days(cast($new_tenant_days as integer)), false) as is_new_tenant,
        -- A sign-in with its own interface is how one integration works: alone it tells little more than its new source.
        w.n_ok_legs < 2 and w.n_legs < 3 as is_one_integration,
        a.n_all_tenants >= 10 and p.n_spread > 0.3 * a.n_all_tenants and not coalesce(d.is_new_client, false) as is_wide,
        c.net_change_rate
    from described as d
    inner join walks as w on d.tenant_id = w.tenant_id and d.source = w.source
    inner join spreads as p on d.source = p.source
    left join steadiness as c on d.tenant_id = c.tenant_id and d.source = c.source
    cross join tenant_totals as a
    left join tenants as t on d.tenant_id = t.tenant_id
)

select tenant_id, source, cast(first_seen as date) as first_day, first_seen, last_seen, path, n_protocols, n_ok,
    n_protocols - n_ok as n_refused, n_legs, hours,
    list_distinct(list_concat(coalesce(principal_ids, []), coalesce(app_ids, []))) as who,
    concat_ws(
        ' ',
        if(is_one_integration, 'A sign-in and the interface that it opens count as one step.', null),
        case
            when is_wide then 'Many tenants show it at once, with known clients: ask the vendor about a change of egress.'
            when is_declared and not coalesce(is_new_client, false) then 'No new client was seen.'
            when is_declared then 'The network is declared, but a client is new.'
            when is_new_client then 'A client is new as well.'
        end,
        if(is_known_to_users, 'Users of the tenant were seen there before.', null),
        if(is_new_tenant, 'The tenant was onboarded shortly before.', null),
        if(is_fast, null, 'The steps lie days apart.')
    ) as remark,
    credential_ids, principal_ids, actor_ids, app_ids, source_networks, source_asns, client_fps, n_ops, n_items, is_declared,
    is_new_client as has_new_client,
    case
        when is_new_tenant or (is_declared and not coalesce(is_new_client, false)) then 'low'
        when is_one_integration or is_declared or is_wide then 'medium'
        else 'high'
    end as severity,
    least(1.0, 0.6 + 0.2 * (n_legs - 2 + n_ok_legs - 2)) * if(is_fast, 1.0, 0.7) * if(is_known_to_users, 0.6, 1.0)
    * if(is_one_integration, 0.5, 1.0) as confidence,
    1.0 as impact
from weighed
-- The vendor's own network, declared for that time, with the clients that the tenant knows: what all its integrations do.
where not (is_vendor and not coalesce(is_new_client, false))
    -- One integration alone is told where it had a place of its own before: a new one is new everywhere (T05, L05).
    and (not is_one_integration or coalesce(net_change_rate <= $max_change_rate, false))
order by first_seen, tenant_id, source
