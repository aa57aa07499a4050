/*---
id = "L07"
title = "An identity of elsewhere reaches a tenant's mail"
hypothesis = "Who holds a partner's account or a shared certificate goes on from tenant to tenant."
family = "lateral_movement"
severity = "high"
tables = ["context_days", "first_seen", "tenants", "bindings"]
needs = ["context_days"]
identity = ["entity_kind", "entity_id", "first_day"]
explanation = "{entity_id:Name} reached {tenant_ids:tenants} for the first time: {first_seen:span}[, {n_done:ops}][, {n_reads:some operation} on mail][ on {n_items:some item}][, {n_refused:some refused attempt}][ from {source_networks:nets}]. {known}[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} reached {tenant_ids:tenants} for the first time[, with {n_refused:some refused attempt}]."
why = "{known}"
false_positives = [
  "a service firm that takes over further customers: look for the contract and the change record",
  "a new customer of the vendor that the reference tables (tenants, bindings) do not name yet",
  "a merger, after which accounts of one tenant work in the other",
]
blind_spots = [
  "identities that have an account of their own in each tenant, such as helpdesk@ of every customer",
  "tenants whose logs begin less than min_history_days before",
  "a single tenant of a multi-tenant archive: nothing to compare with",
  "calls for licences and settings are not mail and are not told",
]
runbook = [
  "`tenant_id`, `first_ts`: list the tenants that the identity reached in order of time for the 30 days around the finding",
  "`home_tenant_id`: find out whose identity it is, from the sign-ins of the day",
  "`mailbox_id`: list the mailboxes that it opened in each tenant in the 30 days after",
  "`change_events.op`: look for consent, partner or role changes for it in the new tenants in the 30 days before",
]

attack = [
  { technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] },
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1021.007", name = "Cloud Services", tactics = ["lateral-movement"] },
]

parameters = [
  { name = "baseline_days", default = 180, help = "days before the window in which an earlier use of the tenant is looked for" },
  { name = "min_history_days", default = 21, help = "days that a tenant's logs must reach back before the first use" },
  { name = "reach_days", default = 7, help = "days between two new tenants that belong together" },
  { name = "new_tenant_days", default = 30, help = "days after onboarding in which a vendor's certificate belongs there" },
  { name = "wide_share", default = 0.3, help = "share of all tenants from which a new use looks like a roll-out" },
]

[[requires]]
sql = "select count(distinct tenant_id) > 1 from first_seen where entity_type = 'tenant'"
reason = "the archive holds one tenant: there is no other that an identity could come from"

[[subjects]]
sql = "select exists (select 1 from tenant_starts where first_ts < $window_from)"
reason = "the logs of every tenant begin in the window: nobody can be new to a tenant"

[evidence]
table = "access_events"
where = ""
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "evidence_networks" }
---*/
with use_of_window as (
    select date, tenant_id, protocol, principal_id, principal_type, app_id, credential_id, src_net, client_fp, outcome, n_ops, items,
        first_ts, last_ts,
        protocol in ('ews', 'graph', 'imap', 'pop3', 'mapi', 'eas', 'owa', 'exchange')
        and action not in ('signin', 'auth', 'bind', 'connect', 'probe', 'config', 'proxy') as is_mail
    from context_days
    where date >= cast($window_from as date) and date <= cast($window_to as date) and first_ts < $window_to
        and tenant_id is not null and outcome in ('success', 'failure') and action <> 'probe'
        and (principal_id like '%@%' or principal_type is distinct from 'user' or credential_id not like 'pw:%')
),

entities as (
    select 'principal' as entity_kind, principal_id as entity_id, tenant_id, min(first_ts) as first_ts
    from use_of_window
    where principal_id like '%@%' and outcome = 'success'
    group by principal_id, tenant_id
    union all
    select 'credential' as entity_kind, credential_id as entity_id, tenant_id, min(first_ts) as first_ts
    from use_of_window
    where credential_id is not null and credential_id not like 'pw:%' and outcome = 'success'
    group by credential_id, tenant_id
),

-- Refused on mail where it has no history counts for an identity that is known elsewhere.
refused as (
    select 'principal' as entity_kind, principal_id as entity_id, tenant_id, min(first_ts) as first_ts, sum(n_ops) as n_refused
    from use_of_window
    where principal_id like '%@%' and outcome = 'failure' and protocol in ('ews', 'graph', 'exchange', 'powershell', 'oauth')
    group by principal_id, tenant_id
),

history as (
    select entity_type as entity_kind, entity_id, tenant_id, min(first_ts) as first_ts
    from first_seen
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and entity_type in ('principal', 'credential') and attr_type in ('any', 'protocol') and n_days > 0 and tenant_id is not null
        and (entity_type, entity_id) in (
            select (e.entity_kind, e.entity_id) from entities as e
            union
            select (r.entity_kind, r.entity_id) from refused as r
        )
    group by entity_type, entity_id, tenant_id
),

links as (
    select entity_kind, entity_id, tenant_id, min(first_ts) as first_ts, max(n_refused) as n_refused,
        count(*) over (partition by entity_kind, entity_id) as n_tenants
    from (
        select entity_kind, entity_id, tenant_id, first_ts, 0 as n_refused from history
        union all
        select entity_kind, entity_id, tenant_id, first_ts, 0 as n_refused from entities
        union all
        select r.entity_kind, r.entity_id, r.tenant_id, r.first_ts, r.n_refused
        from refused as r
        semi join history as h on r.entity_id = h.entity_id
    ) as l
    group by entity_kind, entity_id, tenant_id
),

domains as (
    select tenant_id, split_part(entity_id, '@', 2) as domain, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'principal' and attr_type = 'protocol' and entity_id like '%@%' and date <= cast($window_to as date)
        and date >= cast($window_from as date) - cast($baseline_days as integer)
    group by tenant_id, split_part(entity_id, '@', 2)
),

own_domains as (
    select tenant_id, trim(unnest(string_split(lower(domain), ';'))) as domain from tenants where domain is not null
),

tenant_starts as (
    select entity_id as tenant_id, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'tenant' and attr_type in ('any', 'protocol')
    group by entity_id
),

declared as (
    select lower(credential_id) as entity_id, tenant_id from bindings where credential_id is not null
    union
    select lower(principal_id) as entity_id, tenant_id from bindings where principal_id is not null
),

new_links as (
    select l.*,
        split_part(l.entity_id, '@', 2) as domain,
        l.n_tenants > 1 as is_elsewhere,
        case
            when contains(l.entity_id, '#ext#') then true
            when l.entity_kind <> 'principal' or l.tenant_id not in (select o.tenant_id from own_domains as o) then false
            else not exists (
                select 1 from own_domains as o where o.tenant_id = l.tenant_id and o.domain = split_part(l.entity_id, '@', 2)
            ) and not exists (
                select 1 from domains as d
                where d.tenant_id = l.tenant_id and d.domain = split_part(l.entity_id, '@', 2) and d.first_ts < $window_from
            )
        end as is_foreign
    from links as l
    inner join tenant_starts as s
        on l.tenant_id = s.tenant_id and s.first_ts <= l.first_ts - to_days(cast($min_history_days as integer))
    left join tenants as t on l.tenant_id = t.tenant_id
    left join declared as b on l.entity_id = b.entity_id and l.tenant_id = b.tenant_id
    where l.first_ts >= $window_from and b.entity_id is null
        and not coalesce(l.entity_kind = 'credential' and t.onboarded_at > l.first_ts - to_days(cast($new_tenant_days as integer)), false)
),

-- An account of the tenant itself that others use as well is the others' news.
pivots as (
    select *
    from new_links
    where is_foreign
        or (is_elsewhere and (entity_kind = 'credential' or not exists (
            select 1 from own_domains as o where o.tenant_id = new_links.tenant_id and o.domain = new_links.domain
        )))
),

-- Sign-ins name the credential, mail audit names the application: joined by who signed in.
actors as (
    select distinct p.entity_kind, p.entity_id, p.tenant_id, unnest([u.principal_id, u.app_id]) as id
    from pivots as p
    inner join use_of_window as u
        on p.tenant_id = u.tenant_id and if(p.entity_kind = 'credential', u.credential_id, u.principal_id) = p.entity_id
),

touched as (
    select distinct p.entity_kind, p.entity_id, p.first_ts as linked_at, u.*
    from pivots as p
    inner join use_of_window as u on p.tenant_id = u.tenant_id and p.first_ts <= u.last_ts
    where if(p.entity_kind = 'credential', u.credential_id, u.principal_id) = p.entity_id
        or (p.entity_kind = 'credential' and u.credential_id is null and exists (
            select 1 from actors as a
            where a.entity_kind = p.entity_kind and a.entity_id = p.entity_id and a.tenant_id = p.tenant_id
                and a.id = coalesce(u.principal_id, u.app_id)
        ))
),

per_tenant as (
    select entity_kind, entity_id, tenant_id, min(linked_at) as linked_at,
        coalesce(sum(n_ops) filter (where is_mail and outcome = 'success'), 0) as n_reads,
        coalesce(sum(n_ops) filter (where outcome = 'failure'), 0) as n_refused
    from touched
    group by entity_kind, entity_id, tenant_id
    having n_reads > 0 or (entity_kind = 'credential') or n_refused > 0
),

islands as (
    select *, sum(is_start) over (partition by entity_kind, entity_id order by linked_at) as island
    from (
        select *,
            if(
                linked_at - lag(linked_at) over (partition by entity_kind, entity_id order by linked_at)
                <= to_days(cast($reach_days as integer)), 0, 1
            ) as is_start
        from per_tenant
    ) as t
),

described as (
    select i.entity_kind, i.entity_id, i.island, min(i.linked_at) as first_seen, max(u.last_ts) as last_seen,
        list(distinct i.tenant_id order by i.tenant_id) as tenant_ids, count(distinct i.tenant_id) as n_tenants,
        count(distinct i.tenant_id) filter (where i.n_reads > 0) as n_read_tenants,
        cast(sum(u.n_ops) filter (where u.outcome = 'success') as bigint) as n_ops,
        cast(sum(u.n_ops) filter (where u.is_mail and u.outcome = 'success') as bigint) as n_reads,
        cast(sum(u.items) filter (where u.outcome = 'success') as bigint) as n_items,
        cast(sum(u.n_ops) filter (where u.outcome = 'failure') as bigint) as n_refused,
        list(distinct u.protocol order by u.protocol) as protocols,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
        list(distinct u.src_net order by u.src_net) as evidence_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps
    from islands as i
    inner join touched as u using (entity_kind, entity_id, tenant_id)
    group by i.entity_kind, i.entity_id, i.island
),

known_before as (
    select d.entity_kind, d.entity_id, d.island, count(distinct l.tenant_id) as n_before
    from described as d
    inner join links as l
        on d.entity_kind = l.entity_kind and d.entity_id = l.entity_id and not list_contains(d.tenant_ids, l.tenant_id)
    group by d.entity_kind, d.entity_id, d.island
),

-- What a credential's finding tells is not told again for its account.
shown as (
    select d.*, coalesce(k.n_before, 0) as n_before, (select count(*) from tenant_starts) as n_all_tenants
    from described as d
    left join known_before as k using (entity_kind, entity_id, island)
    where d.entity_kind = 'credential'
        or not exists (
            select 1 from described as o
            where o.entity_kind = 'credential' and list_contains(o.principal_ids, d.entity_id) and list_has_any(o.tenant_ids, d.tenant_ids)
        )
)

select *, n_ops as n_done, cast(first_seen as date) as first_day, false as is_declared,
    cast(null as boolean) as is_declared_net, entity_kind = 'credential' as is_service,
    if(
        n_before > 0, 'Before, it was used in ' || n_before || if(n_before = 1, ' other tenant.', ' other tenants.'),
        'Before, it was used nowhere.'
    ) as known,
    case
        when n_all_tenants >= 10 and n_tenants > $wide_share * n_all_tenants
            then 'So many tenants at once look like a roll-out: ask its owner.'
        when coalesce(n_reads, 0) = 0 then 'No mail was read, as far as the logs tell.'
    end as remark,
    case
        when n_all_tenants >= 10 and n_tenants > $wide_share * n_all_tenants then 'low'
        when n_read_tenants >= 2 or (n_read_tenants >= 1 and entity_kind = 'credential') then 'high'
        else 'medium'
    end as severity,
    if(n_read_tenants > 0, 1.0, 0.6) * if(n_before = 0 and n_tenants = 1, 0.6, 1.0) as confidence,
    if(n_tenants >= 2, 2.0, 1.0) as impact
from shown
order by first_seen, entity_kind, entity_id
