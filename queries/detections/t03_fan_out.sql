/*---
id = "T03"
title = "One new network at several tenants"
hypothesis = "The same stranger appears at several customers of the same gateway."
family = "tenant_connection"
severity = "critical"
tables = ["context_days", "first_seen", "credentials", "bindings", "networks"]
needs = ["context_days"]
identity = ["level", "source", "first_day"]
explanation = "{source_networks:Nets} appeared at {n_tenants} of {n_all_tenants} active tenants ({tenant_ids:list})[ with {credential_ids:names}][, {unusual_client}]: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}]. {known_before}[ {remark}]"
false_positives = [
  "the vendor opens a new egress range: many tenants at once, the same client, and a declared network",
  "a consultant or managed-service provider who works for several customers with service accounts",
  "a security scanner that several customers use",
]
blind_spots = [
  "a source that two or more tenants knew before, such as a large cloud's network",
  "tenants with fewer active days before than min_active_days",
  "an actor who uses another network for each tenant",
  "ordinary users: only service credentials are compared across tenants",
]
runbook = [
  "`tenant_id`, `first_ts`: draw tenant by day from context_days for the `src_net` over the 45 days around the finding",
  "`credential_id`: check whether one credential serves all the tenants, and list every tenant that it opened in the 90 days before",
  "`src_net`: ask the vendor whether the range is theirs, and since when; compare with networks valid on the day of `first_ts`",
  "`action`, `items`: list what was read in each tenant in the 24 hours after the first success",
]

attack = [
  { technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] },
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the first use that count as history, at most" },
  { name = "min_active_days", default = 21, help = "distinct active days that a tenant must have before the source appears" },
  { name = "spread_days", default = 45, help = "days within which the source must reach the tenants" },
  { name = "min_tenants", default = 2, help = "tenants that must share the source when a credential, an application or the gateway's own credentials connect them" },
  { name = "min_tenants_unrelated", default = 3, help = "tenants that must share the source otherwise" },
]

[[requires]]
sql = "select count(distinct tenant_id) >= 2 from context_days where date >= cast($window_from as date) - 90 and date <= cast($window_to as date)"
reason = "fewer than two tenants are told apart in context_days"

[[subjects]]
sql = "select count(*) >= $min_tenants from (select tenant_id from tenant_days group by tenant_id having count(*) > $min_active_days) as t"
reason = "fewer than $min_tenants tenants have more than $min_active_days days with service accounts: nothing can be new to several"

[evidence]
table = "access_events"
where = ""
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "source_networks", client_fp = "evidence_clients" }
---*/
-- Private addresses mean another network at each tenant.
with service_use as (
    select date, tenant_id, protocol, principal_id, principal_type, credential_id, app_id, src_net, src_asn, src_class,
        client_fp, action, outcome, n_ops, items, first_ts, last_ts,
        credential_id in (select h.credential_id from held_credentials() as h)
            or principal_id in (select h.principal_id from held_principals() as h) as is_held
    from service_days(
        cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome in ('success', 'failure')
        and action <> 'probe'
        and tenant_id is not null
        and src_net is not null
        and coalesce(src_class, '') <> 'private'
        and not regexp_matches(src_net, '^(10\.|127\.|169\.254\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.|f[cd]|fe80|::)')
),

valued_use as (
    select 'asn' as level, 'AS' || src_asn as source, * from service_use where src_asn is not null
    union all
    select 'net' as level, src_net as source, * from service_use
    union all
    select 'net and client' as level, src_net || ' ' || client_fp as source, * from service_use where client_fp is not null
),

tenant_days as (
    select distinct tenant_id, date from service_use where outcome = 'success'
),

tenant_sources as (
    select level, source, tenant_id, min(first_ts) as first_ts from valued_use group by level, source, tenant_id
),

known_to_tenants as (
    select if(attr_type = 'src_asn', 'asn', 'net') as level, if(attr_type = 'src_asn', 'AS' || attr_value, attr_value) as source,
        entity_id as tenant_id, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'tenant' and attr_type in ('src_net', 'src_asn') and n_days > 0
        and date <= cast($window_to as date)
    group by attr_type, attr_value, entity_id
),

-- New to a tenant: first seen in the window, by a tenant that had a history by then.
new_at_tenants as (
    select t.level, t.source, t.tenant_id, t.first_ts
    from tenant_sources as t
    inner join tenant_days as d
        on t.tenant_id = d.tenant_id and d.date < cast(t.first_ts as date)
        and d.date >= cast(t.first_ts as date) - cast($baseline_days as integer)
    where t.first_ts >= $window_from
        and not exists (
            select 1 from known_to_tenants as k
            where k.level = t.level and k.source = t.source and k.tenant_id = t.tenant_id
                and cast(k.first_ts as date) < cast(t.first_ts as date)
        )
    group by t.level, t.source, t.tenant_id, t.first_ts
    having count(*) >= $min_active_days
),

arrivals as (
    select level, source, min(first_ts) as first_ts, count(distinct tenant_id) as n_tenants
    from new_at_tenants
    group by level, source
    having count(distinct tenant_id) >= $min_tenants
),

tenants_before as (
    select a.level, a.source, count(distinct b.tenant_id) as n_tenants_before
    from arrivals as a
    inner join (
        select * from tenant_sources
        union all
        select * from known_to_tenants
    ) as b on a.level = b.level and a.source = b.source and a.first_ts > b.first_ts
    group by a.level, a.source
),

new_use as (
    select u.*
    from valued_use as u
    inner join new_at_tenants as n on u.level = n.level and u.source = n.source and u.tenant_id = n.tenant_id
    inner join arrivals as a on u.level = a.level and u.source = a.source
    where n.first_ts < a.first_ts + to_days(cast($spread_days as integer))
),

-- What one stranger carries from tenant to tenant.
links as (
    select *, count(distinct tenant_id) over (partition by level, source, link) as n_tenants
    from (
        select level, source, src_net, tenant_id, 'credential ' || credential_id as link
        from new_use where credential_id not like 'pw:%'
        union
        select level, source, src_net, tenant_id, 'application ' || app_id as link
        from new_use where app_id is not null
        union
        select level, source, src_net, tenant_id, 'credentials that the gateway holds' as link
        from new_use where is_held
    ) as l
),

connecting as (
    select level, source, arg_max(link, n_tenants) as shared
    from links
    where n_tenants >= $min_tenants
    group by level, source
),

-- Customers of one provider that have nothing in common but the provider are not one stranger: where something connects tenants,
-- the finding is about the networks that it came from, and not about all others of the autonomous system.
shared_use as (
    select u.*
    from new_use as u
    left join connecting as c on u.level = c.level and u.source = c.source
    where u.level <> 'asn' or c.shared is null
        or exists (
            select 1 from links as l
            where l.level = u.level and l.source = u.source and l.src_net = u.src_net and l.n_tenants >= $min_tenants
        )
),

net_starts as (
    select src_net, min(first_ts) as first_ts
    from shared_use
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
    select client_fp, min(first_ts) as first_ts from service_use where client_fp is not null group by client_fp
),

tenant_totals as (
    select count(distinct tenant_id) as n_all_tenants from service_use where last_ts >= $window_from
),

data_tenants as (
    select level, source, count(distinct tenant_id) as n_data_tenants
    from shared_use
    where outcome = 'success'
        and (items > 0 or action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment', 'retr', 'top'))
    group by level, source
),

described as (
    select u.level, u.source, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.tenant_id order by u.tenant_id) as tenant_ids,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, u.app_id) order by coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.src_net order by u.src_net) as source_networks,
        list(distinct u.src_asn order by u.src_asn) filter (where u.src_asn is not null) as source_asns,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        list(distinct u.protocol order by u.protocol) as protocols,
        count(distinct u.tenant_id) as n_tenants,
        count(distinct u.tenant_id) filter (where u.outcome = 'success') as n_success_tenants,
        cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items,
        bool_and(d.kind is not null or u.src_class in ('vendor_egress', 'vendor', 'corporate', 'microsoft')) as is_declared,
        coalesce(bool_or(f.first_ts >= a.first_ts), false) as is_new_client,
        -- At one tenant only it is nothing that fans out: T04 looks at that one.
        count(distinct u.tenant_id) filter (where f.first_ts >= a.first_ts) >= $min_tenants as is_new_client_spread
    from shared_use as u
    inner join arrivals as a on u.level = a.level and u.source = a.source
    left join declared_nets as d on u.src_net = d.src_net
    left join first_clients as f on u.client_fp = f.client_fp
    group by u.level, u.source
),

-- A finer level tells nothing new where a coarser one is reported; a client on a known network must be new everywhere.
fanning as (
    select d.*, coalesce(b.n_tenants_before, 0) as n_tenants_before, coalesce(c.shared, 'nothing') as shared,
        coalesce(t.n_data_tenants, 0) as n_data_tenants
    from described as d
    left join tenants_before as b on d.level = b.level and d.source = b.source
    left join connecting as c on d.level = c.level and d.source = c.source
    left join data_tenants as t on d.level = t.level and d.source = t.source
    where coalesce(b.n_tenants_before, 0) <= 1
        and d.n_tenants >= if(c.shared is null, $min_tenants_unrelated, $min_tenants)
        and (d.level <> 'net and client' or coalesce(d.is_new_client, false))
),

coarsest as (
    select f.*
    from fanning as f
    where not exists (
        select 1 from fanning as c
        where list_has_all(c.source_networks, f.source_networks) and list_has_all(c.tenant_ids, f.tenant_ids)
            and case c.level when 'asn' then 1 when 'net' then 2 else 3 end
            < case f.level when 'asn' then 1 when 'net' then 2 else 3 end
    )
),

classified as (
    select c.*, t.n_all_tenants,
        case
            when c.is_declared and not c.is_new_client_spread and c.n_tenants > 0.3 * t.n_all_tenants
                then 'infrastructure_change'
            when c.is_declared and not c.is_new_client_spread then 'declared_network'
            when c.is_declared then 'new_client_on_declared_network'
            when not coalesce(c.is_new_client, false) and t.n_all_tenants >= 10 and c.n_tenants > 0.3 * t.n_all_tenants
                then 'infrastructure_change_unverified'
            when c.n_success_tenants = 0 then 'fan_out_refused'
            else 'fan_out'
        end as class
    from coarsest as c
    cross join tenant_totals as t
)

select level, source, cast(first_seen as date) as first_day, first_seen, last_seen, class, shared, tenant_ids, credential_ids,
    principal_ids, actor_ids, app_ids, source_networks, source_asns, client_fps,
    if(level = 'net and client', client_fps, null) as evidence_clients,
    if(level = 'net and client', 'with a client that nobody had used before', null) as unusual_client,
    if(n_tenants_before = 0, 'No tenant had seen it before.', 'One tenant had seen it before.') as known_before,
    case class
        when 'infrastructure_change'
            then 'This looks like a change of the vendor''s egress: declared network, known clients, many tenants at once.'
        when 'declared_network' then 'The network is declared and no new client was seen.'
        when 'new_client_on_declared_network' then 'The network is declared, but a client is new.'
        when 'infrastructure_change_unverified'
            then 'Many tenants show it at once, with known clients: ask the vendor about a change of egress.'
        when 'fan_out_refused' then 'All attempts were refused.'
        else if(is_new_client, 'A client is new as well.', null)
    end as remark,
    protocols, n_tenants, n_success_tenants,
    n_data_tenants, n_all_tenants, n_tenants_before, n_ops, n_items, round(n_tenants / n_all_tenants, 3) as share_of_tenants,
    is_declared, if(is_declared, is_new_client_spread, is_new_client) as is_new_client,
    case
        when class = 'infrastructure_change' then 'info'
        when class = 'declared_network' then 'low'
        when class in ('new_client_on_declared_network', 'infrastructure_change_unverified', 'fan_out_refused') then 'medium'
        when n_data_tenants >= 2 then 'critical'
        else 'high'
    end as severity,
    least(1.0, 0.5 + 0.25 * (n_tenants - 1)) as confidence,
    2.0 as impact
from classified
order by first_seen, level, source
