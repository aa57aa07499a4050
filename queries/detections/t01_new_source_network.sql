/*---
id = "T01"
title = "Service credential used from a new network"
hypothesis = "A stolen key is used from a place where the key has never been."
family = "tenant_connection"
severity = "high"
tables = ["context_days", "first_seen", "credentials", "bindings", "networks", "gateway_jobs"]
needs = ["context_days"]
identity = ["entity_kind", "entity_tenant", "entity_id", "source", "first_day"]
explanation = "{entity_id:Name} was used from {source_networks:nets} for the first time: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][ at {tenant_ids:tenants}]. In {n_active_days:count active day} before it had never been used from there; it shows a new source on about {p_new:one_in}.[ {remark}]"
false_positives = [
  "the vendor opens a new egress range: look whether the network is declared, how many tenants show it, and whether the vendor announced it",
  "a disaster-recovery test or a move of the integration to another region",
  "IPv6 or NAT64 is switched on for the same machines",
]
blind_spots = [
  "a source inside a network that the credential used before, such as the vendor's own range",
  "a credential with fewer active days before than min_active_days",
  "a credential whose source changes so often that a new one says nothing (cloud egress)",
  "rows without a client address, and logs that show a proxy's address instead of the client's",
]
runbook = [
  "`src_net`: list all sources of the credential in context_days over the 90 days before the finding and compare them with the published ranges of the vendor",
  "`action`, `n_ops`: compare what was done from the new source with what the credential did in the 30 days before",
  "`tenant_id`: look for other tenants reached from the same `src_net` within 14 days either way",
  "`client_fp`: compare the client of the new source with that of the 90 days before",
]

attack = [
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the first use that count as history, at most" },
  { name = "min_active_days", default = 21, help = "distinct active days that an entity must have before its first use of the source" },
  { name = "burn_in_days", default = 14, help = "first days of a history, in which every source is new" },
  { name = "settle_days", default = 14, help = "last days of a history that are left out of the entity's own rate of new sources, so that an actor who keeps changing sources does not make that normal" },
  { name = "min_surprise", default = 1.5, help = "-log10 of the entity's own daily probability of a new source; lowered to what a short history can reach" },
]

[[subjects]]
sql = "select exists (select 1 from source_days)"
reason = "no service credential or account shows a client address"

[[subjects]]
sql = "select exists (select 1 from source_days group by entity_kind, entity_tenant, entity_id having count(distinct date) > $min_active_days)"
reason = "no service credential or account has more than $min_active_days active days: nothing can be new to it"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "tenant_ids", "coalesce(credential_id, '')" = "evidence_credentials", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "source_networks" }
---*/
with journal_readers as (
    select lower(coalesce(credential_id, 'pw:' || principal_id)) as credential_id from bindings where scope = 'journal'
),

service_use as (
    select date, tenant_id, protocol, principal_id, principal_type, credential_id, app_id, src_net, src_asn, src_class,
        client_fp, action, n_ops, items, first_ts, last_ts
    from service_days(
        cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome = 'success' and action <> 'probe' and src_net is not null
),

-- A password belongs to one tenant, a certificate or key may open many; a replaced key hands its history on, up to its
-- end, and without the days of its compromise.
entity_use as (
    select 'credential' as entity_kind,
        case when u.credential_id like 'pw:%' then coalesce(u.tenant_id, '') else '' end as entity_tenant,
        u.credential_id as entity_id, false as is_inherited, u.*
    from service_use as u
    where u.credential_id is not null
    union all
    select 'credential' as entity_kind,
        case when s.successor_id like 'pw:%' then coalesce(u.tenant_id, '') else '' end as entity_tenant,
        s.successor_id as entity_id, true as is_inherited, u.*
    from service_use as u
    inner join replaced_credentials() as s
        on u.credential_id = s.credential_id and u.first_ts < s.retired_at
        and (u.last_ts < s.compromised_from or u.first_ts > s.compromised_to)
    union all
    select 'principal' as entity_kind, coalesce(tenant_id, '') as entity_tenant, coalesce(principal_id, app_id) as entity_id,
        false as is_inherited, *
    from service_use
    where coalesce(principal_id, app_id) is not null
),

source_days as (
    select entity_kind, entity_tenant, entity_id, src_net, max(src_asn) as src_asn, date, min(first_ts) as first_ts,
        min(first_ts) filter (where not is_inherited) as own_ts
    from entity_use group by entity_kind, entity_tenant, entity_id, src_net, date
),

known_longer as (
    select distinct entity_type as entity_kind, coalesce(tenant_id, '') as tenant_id, entity_id, attr_type, attr_value
    from first_seen
    where date <= cast($window_from as date) - cast($baseline_days as integer)
        and first_ts < cast($window_from as date) - cast($baseline_days as integer)
        and n_days > 0 and entity_type in ('credential', 'principal') and attr_type in ('src_net', 'src_asn')
),

first_nets as (
    select entity_kind, entity_tenant, entity_id, src_net, max(src_asn) as src_asn, min(first_ts) as first_ts,
        min(own_ts) as own_ts
    from source_days group by entity_kind, entity_tenant, entity_id, src_net
),

first_asns as (
    select entity_kind, entity_tenant, entity_id, src_asn, min(first_ts) as first_ts
    from source_days where src_asn is not null group by entity_kind, entity_tenant, entity_id, src_asn
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
declared_nets as (
    select n.src_net, max(r.kind) as kind
    from (select src_net, min(first_ts) as first_ts from first_nets group by src_net) as n
    inner join declared_networks() as r
        on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
        and n.first_ts between r.valid_from and r.valid_to
    group by n.src_net
),

-- That a declared network comes into use does not make its users changeable.
churn_nets as (
    select f.* from first_nets as f where not exists (select 1 from declared_nets as d where d.src_net = f.src_net)
),

fresh_asns as (
    select a.entity_kind, a.entity_tenant, a.entity_id, a.src_asn
    from first_asns as a
    where a.first_ts >= $window_from
        and not exists (
            select 1 from known_longer as k
            where k.entity_kind = a.entity_kind and k.entity_id = a.entity_id and k.attr_type = 'src_asn'
                and (a.entity_tenant = '' or a.entity_tenant = k.tenant_id) and k.attr_value = cast(a.src_asn as varchar)
        )
),

-- The coarsest new level: the autonomous system where it is known and new, else the network.
new_nets as (
    select n.entity_kind, n.entity_tenant, n.entity_id, n.src_net, n.own_ts as first_ts,
        if(f.src_asn is null, 'net', 'asn') as level, if(f.src_asn is null, n.src_net, 'AS' || f.src_asn) as source
    from first_nets as n
    left join fresh_asns as f using (entity_kind, entity_tenant, entity_id, src_asn)
    where n.first_ts >= $window_from and n.own_ts is not null
        and not exists (
            select 1 from known_longer as k
            where k.entity_kind = n.entity_kind and k.entity_id = n.entity_id and k.attr_type = 'src_net'
                and (n.entity_tenant = '' or n.entity_tenant = k.tenant_id) and k.attr_value = n.src_net
        )
),

new_sources as (
    select entity_kind, entity_tenant, entity_id, level, source, min(first_ts) as first_ts, cast(min(first_ts) as date) as first_day
    from new_nets group by entity_kind, entity_tenant, entity_id, level, source
),

-- Days of the entities that show a new source, and whether a day brought one.
entity_days as (
    select s.entity_kind, s.entity_tenant, s.entity_id, s.date,
        min(s.date) over (partition by s.entity_kind, s.entity_tenant, s.entity_id) as first_day,
        bool_or(n.src_net is not null) as has_new_net,
        bool_or(a.src_asn is not null) as has_new_asn
    from source_days as s
    semi join new_sources using (entity_kind, entity_tenant, entity_id)
    left join churn_nets as n
        on s.entity_kind = n.entity_kind and s.entity_tenant = n.entity_tenant and s.entity_id = n.entity_id
        and s.src_net = n.src_net and s.date = cast(n.first_ts as date)
    left join first_asns as a
        on s.entity_kind = a.entity_kind and s.entity_tenant = a.entity_tenant and s.entity_id = a.entity_id
        and s.src_asn = a.src_asn and s.date = cast(a.first_ts as date)
    group by s.entity_kind, s.entity_tenant, s.entity_id, s.date
),

histories as (
    select s.entity_kind, s.entity_tenant, s.entity_id, s.level, s.source, s.first_day as source_day,
        count(*) as n_active_days,
        count(*) filter (where d.date >= d.first_day + cast($burn_in_days as integer)) as n_all,
        count(*) filter (
            where d.date >= d.first_day + cast($burn_in_days as integer)
                and if(s.level = 'asn', d.has_new_asn, d.has_new_net)
        ) as k_all,
        count(*) filter (
            where d.date >= d.first_day + cast($burn_in_days as integer)
                and d.date < s.first_day - cast($settle_days as integer)
        ) as n_settled,
        count(*) filter (
            where d.date >= d.first_day + cast($burn_in_days as integer)
                and d.date < s.first_day - cast($settle_days as integer)
                and if(s.level = 'asn', d.has_new_asn, d.has_new_net)
        ) as k_settled
    from new_sources as s
    inner join entity_days as d
        on s.entity_kind = d.entity_kind and s.entity_tenant = d.entity_tenant and s.entity_id = d.entity_id
        and s.first_day > d.date and s.first_day - cast($baseline_days as integer) <= d.date
    group by s.entity_kind, s.entity_tenant, s.entity_id, s.level, s.source, s.first_day
    having count(*) >= $min_active_days
),

-- A history too short for a rate of its own takes that of its class: same kind of principal, same protocol.
short_classes as (
    select distinct u.entity_kind, u.principal_type, u.protocol
    from entity_use as u
    semi join (select * from histories where n_settled < 14 and n_all < 14) as h using (entity_kind, entity_tenant, entity_id)
),

class_members as (
    select distinct u.entity_kind, u.entity_tenant, u.entity_id, u.principal_type, u.protocol
    from entity_use as u
    inner join short_classes as c
        on u.entity_kind = c.entity_kind and u.protocol = c.protocol
        and u.principal_type is not distinct from c.principal_type
),

member_days as (
    select s.entity_kind, s.entity_tenant, s.entity_id, s.date,
        min(s.date) over (partition by s.entity_kind, s.entity_tenant, s.entity_id) as first_day
    from (select distinct entity_kind, entity_tenant, entity_id, date from source_days) as s
    semi join class_members using (entity_kind, entity_tenant, entity_id)
),

class_days as (
    select m.entity_kind, m.principal_type, m.protocol, d.date, count(*) as n
    from class_members as m
    inner join member_days as d using (entity_kind, entity_tenant, entity_id)
    where d.date >= d.first_day + cast($burn_in_days as integer)
    group by m.entity_kind, m.principal_type, m.protocol, d.date
),

class_news as (
    select m.entity_kind, m.entity_tenant, m.entity_id, m.principal_type, m.protocol, d.date, n.src_net, n.src_asn
    from class_members as m
    inner join member_days as d using (entity_kind, entity_tenant, entity_id)
    inner join churn_nets as n
        on m.entity_kind = n.entity_kind and m.entity_tenant = n.entity_tenant and m.entity_id = n.entity_id
        and d.date = cast(n.first_ts as date)
    where d.date >= d.first_day + cast($burn_in_days as integer)
),

class_histories as (
    select h.entity_kind, h.entity_tenant, h.entity_id, h.level, h.source, sum(d.n) as n
    from histories as h
    inner join class_members as m using (entity_kind, entity_tenant, entity_id)
    inner join class_days as d
        on m.entity_kind = d.entity_kind and m.protocol = d.protocol
        and m.principal_type is not distinct from d.principal_type and h.source_day > d.date
        and h.source_day - cast($baseline_days as integer) <= d.date
    group by h.entity_kind, h.entity_tenant, h.entity_id, h.level, h.source
),

-- A stranger who goes from one member of the class to the next does not make himself usual.
class_novelties as (
    select h.entity_kind, h.entity_tenant, h.entity_id, h.level, h.source,
        count(distinct concat_ws(' ', d.entity_tenant, d.entity_id, d.principal_type, d.protocol, d.date)) as k
    from histories as h
    inner join class_members as m using (entity_kind, entity_tenant, entity_id)
    inner join class_news as d
        on m.entity_kind = d.entity_kind and m.protocol = d.protocol and m.principal_type is not distinct from d.principal_type
        and h.source_day > d.date and h.source_day - cast($baseline_days as integer) <= d.date
        and h.source <> d.src_net and h.source <> coalesce('AS' || d.src_asn, '')
    group by h.entity_kind, h.entity_tenant, h.entity_id, h.level, h.source
),

rates as (
    select h.entity_kind, h.entity_tenant, h.entity_id, h.level, h.source, h.n_active_days,
        case when h.n_settled >= 14 then h.n_settled when h.n_all >= 14 then h.n_all else coalesce(c.n, h.n_all) end as n,
        case when h.n_settled >= 14 then h.k_settled when h.n_all >= 14 or c.n is null then h.k_all else coalesce(v.k, 0) end as k
    from histories as h
    left join class_histories as c using (entity_kind, entity_tenant, entity_id, level, source)
    left join class_novelties as v using (entity_kind, entity_tenant, entity_id, level, source)
),

surprising as (
    select *, (k + 0.5) / (n + 1) as p_new, -log10((k + 0.5) / (n + 1)) as surprise
    from rates
    where -log10((k + 0.5) / (n + 1)) >= least($min_surprise, log10(2.0 * (n + 1))) - 1e-9
),

new_use as (
    select u.*, s.level, s.source from entity_use as u
    inner join new_nets using (entity_kind, entity_tenant, entity_id, src_net)
    inner join surprising as s using (entity_kind, entity_tenant, entity_id, level, source)
    where not u.is_inherited
),

-- What a credential's finding shows already is not shown again for its principal.
own_use as (
    select p.*
    from new_use as p
    where p.entity_kind = 'credential'
        or not exists (
            select 1 from new_use as c
            where c.entity_kind = 'credential' and c.credential_id = p.credential_id and c.src_net = p.src_net
                and c.tenant_id is not distinct from p.tenant_id
        )
),

known_clients as (
    select distinct u.entity_kind, u.entity_tenant, u.entity_id, s.source, u.client_fp
    from entity_use as u
    inner join new_sources as s using (entity_kind, entity_tenant, entity_id)
    where u.client_fp is not null and u.first_ts < s.first_ts
),

tenant_totals as (
    select count(distinct tenant_id) as n_all_tenants from service_use where last_ts >= $window_from
),

spreads as (
    select n.source, count(distinct u.tenant_id) as n_spread
    from (select distinct source, src_net from new_nets) as n
    inner join service_use as u on n.src_net = u.src_net and u.last_ts >= $window_from group by n.source
),

-- Where the gateway says itself that it worked from the network at the tenant, in the same days.
jobs as (
    select tenant_id, src_net, min(ts) as first_ts, max(ts) as last_ts
    from gateway_jobs
    where date between cast($window_from as date) and cast($window_to as date) and src_net is not null group by tenant_id, src_net
),

described as (
    select u.entity_kind, u.entity_tenant, u.entity_id, u.level, u.source,
        min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.tenant_id order by u.tenant_id) as tenant_ids,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct coalesce(u.credential_id, '') order by coalesce(u.credential_id, '')) as evidence_credentials,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, u.app_id) order by coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.src_net order by u.src_net) as source_networks,
        list(distinct u.src_asn order by u.src_asn) filter (where u.src_asn is not null) as source_asns,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        list(distinct u.protocol order by u.protocol) as protocols, list(distinct u.action order by u.action) as actions,
        count(distinct u.tenant_id) as n_tenants,
        cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items,
        bool_and(d.kind is not null or u.src_class in ('vendor_egress', 'vendor', 'corporate', 'microsoft')) as is_declared,
        bool_and(coalesce(d.kind, u.src_class) = 'microsoft') as is_microsoft,
        bool_and(coalesce(d.kind, u.src_class) in ('vendor_egress', 'vendor')) as is_vendor,
        if(count(u.client_fp) > 0, 'known client', 'no client in the logs') as known_clients,
        bool_or(u.client_fp is not null and k.client_fp is null) as is_new_client,
        bool_or(j.credential_id is not null) as is_journal,
        bool_and(coalesce(o.first_ts <= u.first_ts + interval 1 day and o.last_ts >= u.first_ts - interval 1 day, false)) as has_jobs
    from own_use as u
    left join jobs as o on u.tenant_id is not distinct from o.tenant_id and u.src_net = o.src_net
    left join declared_nets as d on u.src_net = d.src_net
    left join known_clients as k using (entity_kind, entity_tenant, entity_id, source, client_fp)
    left join (select distinct credential_id from journal_readers) as j
        on coalesce(u.credential_id, 'pw:' || u.principal_id) = j.credential_id
    group by u.entity_kind, u.entity_tenant, u.entity_id, u.level, u.source
),

classified as (
    select d.*, s.n_active_days, s.surprise, s.p_new, p.n_spread, t.n_all_tenants,
        case
            when d.is_microsoft and not d.is_new_client then 'microsoft_network'
            when d.is_declared and not d.is_new_client then 'declared_network'
            when d.is_declared then 'declared_network_new_client'
            when not d.is_new_client and t.n_all_tenants >= 10 and p.n_spread > 0.3 * t.n_all_tenants
                then 'infrastructure_change_unverified'
            else 'undeclared_network'
        end as class
    from described as d
    inner join surprising as s using (entity_kind, entity_tenant, entity_id, level, source)
    inner join spreads as p using (source)
    cross join tenant_totals as t
)

select entity_kind, entity_tenant, entity_id, level, source, cast(first_seen as date) as first_day, first_seen, last_seen,
    class,
    case
        when class = 'microsoft_network' then 'The network is Microsoft''s, and no new client was seen.'
        when class = 'declared_network' and is_vendor
            then 'This looks like a change of the vendor''s egress: declared network, ' || known_clients
            || if(has_jobs, ', and jobs of the gateway from there.', '.')
        when class = 'declared_network' then 'This looks like a move within declared networks: ' || known_clients || '.'
        when class = 'declared_network_new_client' then 'The network is declared, but its client was never seen with it before.'
        when class = 'infrastructure_change_unverified'
            then 'Many tenants show the source at once, with known clients: ask the vendor about a change of egress.'
        when is_new_client then 'Its client was never seen with it before.'
    end as remark, tenant_ids, credential_ids, evidence_credentials, principal_ids, actor_ids,
    app_ids, source_networks, source_asns, client_fps, protocols, actions, n_tenants, n_ops, n_items, n_active_days,
    round(surprise, 2) as surprise, p_new, round(p_new, 3) as share_new_days, is_declared, is_new_client,
    case class
        when 'microsoft_network' then 'info'
        when 'declared_network' then if(is_vendor and has_jobs, 'info', 'low')
        when 'undeclared_network' then 'high'
        else 'medium'
    end as severity,
    least(1.0, surprise / 2) * if(level = 'net' and len(source_asns) > 0, 0.8, 1.0) as confidence,
    if(n_tenants >= 2 or is_journal, 2.0, 1.0) as impact
from classified
order by first_seen, entity_kind, entity_tenant, entity_id, source
