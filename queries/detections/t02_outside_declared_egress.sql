/*---
id = "T02"
title = "Credential used outside its declared egress"
hypothesis = "A credential that the gateway uses from declared networks only is used from another one: no statistics are needed."
family = "tenant_connection"
severity = "high"
tables = ["context_days", "credentials", "bindings", "contexts", "networks", "tenants"]
needs = ["context_days"]
identity = ["entity_kind", "entity_tenant", "entity_id", "source", "place"]
explanation = "{entity_id:Name} was used from {source_networks:nets}, outside the networks declared for it: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][ at {tenant_ids:tenants}][, {n_refused:some refused attempt} besides]. {list_state}[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} was used from {source_networks:nets}, outside the networks declared for it."
why = "{list_state}"
false_positives = [
  "the list of declared networks is out of date: compare its newest entry with the vendor's published ranges",
  "the address of a Microsoft server instead of the client's in audit records (reported as info where Microsoft's networks are declared)",
  "a person of the customer who tests the credential, or a support session of the vendor from an office network",
]
blind_spots = [
  "a thief who works from inside the declared networks",
  "credentials that neither the reference tables nor dated contexts name, and times for which no network is declared",
  "private addresses: a proxy or load balancer of the customer stands there instead of the client",
  "which of the vendor's regions may reach which tenant is not compared",
  "refused attempts with passwords: the whole internet guesses them",
]
runbook = [
  "`src_ip`: compare each address of the finding with the ranges that the vendor had published on the day of `ts`",
  "`action`, `item_count`: list what was done from outside in the 24 hours after the first success",
  "`credential_id`: list all sources of the credential over the 90 days before, and the tenants that it opened from outside",
  "`client_fp`, `user_agent`: compare the client with that seen inside the declared networks in the 30 days before",
]

attack = [
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] },
]

parameters = [
  { name = "client_days", default = 30, help = "days before the window whose clients inside the declared networks count as known" },
  { name = "large_share", default = 0.3, help = "share of the active tenants, of at least ten, above which an undeclared source with known clients is taken for a change of egress to be confirmed" },
]

[[requires]]
sql = "select exists (select 1 from networks where kind in ('vendor_egress', 'vendor')) or exists (select 1 from contexts where networks is not null)"
reason = "no egress is declared: networks has no vendor_egress, and contexts names no networks"

[[requires]]
sql = "select exists (select 1 from credentials) or exists (select 1 from bindings) or exists (select 1 from contexts)"
reason = "the reference tables credentials, bindings and contexts name no credential"

[[subjects]]
sql = "select exists (select 1 from judged_use)"
reason = "nobody whose networks are declared was seen with a client address in the window"

[evidence]
table = "access_events"
where = "outcome in ('success', 'failure')"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "tenant_ids", "coalesce(credential_id, '')" = "evidence_credentials", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "source_networks" }
---*/
with vendor_credentials as (
    select lower(credential_id) as credential_id, bool_or(owner = 'vendor') as is_vendors
    from credentials
    group by lower(credential_id)
),

bound as (
    select lower(principal_id) as principal_id, tenant_id, min(lower(credential_id)) as credential_id,
        bool_or(scope = 'journal') as is_journal
    from bindings
    where principal_id is not null
    group by lower(principal_id), tenant_id
),

bound_credentials as (
    select lower(credential_id) as credential_id, bool_or(scope = 'journal') as is_journal
    from bindings
    where credential_id is not null
    group by lower(credential_id)
),

recent_use as (
    select date, tenant_id, protocol, principal_id, principal_type, credential_id, app_id, src_net, src_asn, src_class,
        client_fp, action, outcome, n_ops, items, first_ts, last_ts
    from context_days
    where date >= cast($window_from as date) - cast($client_days as integer)
        and date <= cast($window_to as date) and first_ts < $window_to
        and outcome in ('success', 'failure') and action <> 'probe' and src_net is not null
),

-- A context with a name declares where that account comes from. A pattern for many does so for services; people it only
-- allows to come from there too. One that names everybody declares nothing.
patterns as (
    select distinct lower(principal_pattern) as principal_pattern
    from contexts
    where networks is not null and expired_at is null and trim(coalesce(principal_pattern, ''), '*? ') <> ''
),

patterned as (
    select distinct u.principal_id, p.principal_pattern
    from (select distinct principal_id, principal_type from recent_use where principal_id is not null) as u
    inner join patterns as p on u.principal_id glob p.principal_pattern
    where not regexp_matches(p.principal_pattern, '[*?\[]')
        or u.principal_type in ('service_principal', 'service_account', 'computer')
),

declaring_contexts as (
    select lower(credential_id) as credential_id, null as principal_id, networks, valid_from, valid_to
    from contexts
    where networks is not null and credential_id is not null and expired_at is null
    union all
    select null as credential_id, p.principal_id, c.networks, c.valid_from, c.valid_to
    from contexts as c
    inner join patterned as p on lower(c.principal_pattern) = p.principal_pattern
    where c.networks is not null and c.credential_id is null and c.expired_at is null
),

-- Audit records name the principal but not the key: its binding tells which key it is.
known_use as (
    select u.*, coalesce(u.credential_id, b.credential_id) as used_credential,
        coalesce(v.is_vendors, false) as is_vendors,
        coalesce(b.is_journal, false) or coalesce(bc.is_journal, false) as is_journal,
        v.credential_id is not null or b.principal_id is not null or bc.credential_id is not null as is_held
    from recent_use as u
    left join bound as b on u.principal_id = b.principal_id and u.tenant_id is not distinct from b.tenant_id
    left join vendor_credentials as v on coalesce(u.credential_id, b.credential_id) = v.credential_id
    left join bound_credentials as bc on coalesce(u.credential_id, b.credential_id) = bc.credential_id
),

vendor_list as (
    select count(*) as n_networks, max(valid_from) as newest
    from networks
    where kind in ('vendor_egress', 'vendor')
),

judged_use as (
    select case when used_credential is null then 'principal' else 'credential' end as entity_kind,
        case when used_credential is null or used_credential like 'pw:%' then coalesce(tenant_id, '') else '' end as entity_tenant,
        coalesce(used_credential, principal_id, app_id) as entity_id, row_number() over () as use_id, *
    from known_use
    where (is_held and (select v.n_networks from vendor_list as v) > 0)
        or used_credential in (select c.credential_id from declaring_contexts as c where c.credential_id is not null)
        or principal_id in (select c.principal_id from declaring_contexts as c where c.principal_id is not null)
),

ranges as (
    select kind, owner, null as credential_id, null as principal_id, valid_from, valid_to, first_net, last_net, is_whole
    from declared_networks()
    union all
    select 'context' as kind, null as owner, credential_id, principal_id, valid_from, valid_to, net_first(network) as first_net,
        net_last(network) as last_net, net_prefix(network) <= if(contains(network, ':'), 48, 24) as is_whole
    from (select *, trim(unnest(string_split(networks, ';'))) as network from declaring_contexts) as c
    where net_prefix(network) between 0 and if(contains(network, ':'), 128, 32)
),

-- Compared at /24 and /48, the size of src_net: a smaller declared range covers a part of the network only.
covered_nets as (
    select n.src_net, r.kind, r.owner, r.credential_id, r.principal_id, r.valid_from, r.valid_to, r.is_whole
    from (select distinct src_net from judged_use) as n
    inner join ranges as r on net_number(n.src_net) between r.first_net and r.last_net
),

-- A range speaks for a use when it is the vendor's, the owner's or Microsoft's, or a context gives it to just this caller.
use_ranges as (
    select u.use_id, c.kind, c.is_whole,
        c.kind = 'corporate' and (
            u.is_vendors or coalesce(lower(c.owner) not in (lower(t.name), lower(t.tenant_id), lower(t.acc)), false)
        ) as is_others,
        coalesce(c.valid_from, u.first_ts) <= u.first_ts and coalesce(c.valid_to, u.first_ts) >= u.first_ts as is_valid
    from judged_use as u
    inner join covered_nets as c on u.src_net = c.src_net
    left join tenants as t on u.tenant_id = t.tenant_id
    where (c.credential_id is null and c.principal_id is null) or c.credential_id = u.used_credential or c.principal_id = u.principal_id
),

declarations as (
    select use_id,
        bool_or(kind in ('vendor_egress', 'vendor', 'context') and is_whole and is_valid) as is_declared,
        bool_or(kind = 'corporate' and is_whole and is_valid and not is_others) as is_own_site,
        bool_or(kind = 'corporate' and is_whole and is_valid) as is_site,
        bool_or(kind = 'microsoft' and is_valid) as is_microsoft,
        bool_or(kind in ('vendor_egress', 'vendor', 'context') and is_whole) as is_declared_once,
        bool_or(kind in ('vendor_egress', 'vendor', 'context')) as is_part_declared
    from use_ranges
    group by use_id
),

-- Where addresses were compared with the declared networks when they were read, an address without a class lies outside.
enriched as (
    select bool_or(src_class in ('vendor_egress', 'vendor')) as is_known from judged_use
),

placed_use as (
    select u.*,
        case
            when coalesce(d.is_declared, false) or coalesce(u.src_class, '') in ('vendor_egress', 'vendor', 'private') then 'inside'
            when coalesce(d.is_own_site, false) or (u.src_class = 'corporate' and not u.is_vendors and d.is_site is not true) then 'inside'
            when coalesce(d.is_microsoft, false) or coalesce(u.src_class, '') = 'microsoft' then 'microsoft'
            when coalesce(d.is_site, false) or coalesce(u.src_class, '') = 'corporate' then 'corporate'
            when coalesce(d.is_declared_once, false) then 'declared_at_another_time'
            when coalesce(d.is_part_declared, false) and not coalesce(e.is_known, false) then 'partly_declared'
            else 'outside'
        end as place
    from judged_use as u
    left join declarations as d on u.use_id = d.use_id
    cross join enriched as e
    where not regexp_matches(u.src_net, '^(10\.|127\.|169\.254\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.|f[cd]|fe80|::)')
),

known_clients as (
    select distinct entity_kind, entity_tenant, entity_id, client_fp
    from placed_use
    where place = 'inside' and client_fp is not null and outcome = 'success'
),

outside_use as (
    select *, coalesce('AS' || src_asn, src_net) as source
    from placed_use
    where place <> 'inside' and last_ts >= $window_from and (outcome = 'success' or credential_id not like 'pw:%')
),

tenant_totals as (
    select count(distinct tenant_id) as n_all_tenants from recent_use where last_ts >= $window_from
),

spreads as (
    select source, count(distinct tenant_id) as n_spread from outside_use where outcome = 'success' group by source
),

described as (
    select u.entity_kind, u.entity_tenant, u.entity_id, u.source, u.place,
        min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.tenant_id order by u.tenant_id) as tenant_ids,
        list(distinct u.used_credential order by u.used_credential) filter (where u.used_credential is not null) as credential_ids,
        list(distinct coalesce(u.credential_id, '') order by coalesce(u.credential_id, '')) as evidence_credentials,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, u.app_id) order by coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.src_net order by u.src_net) as source_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        list(distinct u.protocol order by u.protocol) as protocols, list(distinct u.action order by u.action) as actions,
        count(distinct u.tenant_id) as n_tenants, bool_or(u.is_vendors) as is_vendors, bool_or(u.is_journal) as is_journal,
        bool_or(u.outcome = 'success') as has_success,
        bool_or(u.outcome = 'success' and (
            u.items > 0 or u.action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment', 'retr', 'top')
        )) as has_data,
        bool_or(u.client_fp is not null and k.client_fp is null) as is_new_client,
        coalesce(
            cast(sum(u.n_ops) filter (where u.outcome = 'success') as bigint), cast(sum(u.n_ops) as bigint)
        ) as n_ops,
        cast(sum(u.items) filter (where u.outcome = 'success') as bigint) as n_items,
        cast(sum(u.n_ops) filter (where u.outcome = 'failure') as bigint) as n_refused
    from outside_use as u
    left join known_clients as k using (entity_kind, entity_tenant, entity_id, client_fp)
    group by u.entity_kind, u.entity_tenant, u.entity_id, u.source, u.place
),

classified as (
    select d.*, t.n_all_tenants, v.n_networks, v.newest,
        d.place = 'outside' and not coalesce(d.is_new_client, false) and len(d.client_fps) > 0 and t.n_all_tenants >= 10
            and coalesce(s.n_spread, 0) > $large_share * t.n_all_tenants as is_wide
    from described as d
    left join spreads as s using (source)
    cross join tenant_totals as t
    cross join vendor_list as v
)

select entity_kind, entity_tenant, entity_id, source, place, first_seen, last_seen, tenant_ids, credential_ids,
    evidence_credentials, principal_ids, actor_ids, app_ids, source_networks, client_fps, protocols, actions, n_tenants,
    n_all_tenants, n_ops, n_items, if(has_success, n_refused, null) as n_refused, has_data, is_new_client, false as is_declared,
    case
        when n_networks = 0 then 'Declared are the networks of its dated contexts.'
        else 'The list of the vendor''s networks has ' || n_networks || if(n_networks = 1, ' entry', ' entries')
            || coalesce(', the newest from ' || strftime(newest, '%Y-%m-%d'), '') || '.'
    end as list_state,
    case
        when not has_success then 'All attempts were refused.'
        when place = 'microsoft' then 'The network is Microsoft''s: its servers stand for the client in some records.'
        when place = 'corporate' then 'The network is declared as a customer''s own.'
        when place = 'declared_at_another_time' then 'The network is declared, but not for that time.'
        when place = 'partly_declared' then 'A part of the network is declared; the rows do not tell which part was used.'
        when is_wide then 'Many tenants show it at once, with known clients: ask the vendor about a change of egress.'
        when is_new_client then 'Its client was never seen inside them.'
    end as remark,
    case
        when place = 'microsoft' then 'info'
        when not has_success or place = 'partly_declared' then 'low'
        when place in ('corporate', 'declared_at_another_time') or is_wide then 'medium'
        when has_data then 'critical'
        else 'high'
    end as severity,
    if(place in ('outside', 'corporate'), 1.0, 0.6) as confidence,
    if(n_tenants >= 2 or is_journal, 2.0, 1.0) as impact
from classified
order by first_seen, entity_kind, entity_tenant, entity_id, source, place
