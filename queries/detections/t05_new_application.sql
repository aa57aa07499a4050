/*---
id = "T05"
title = "Application reads mail in a way never seen before"
hypothesis = "Who holds a stolen key or an unlawful consent reads mail through an application or an interface that nobody used for it before."
family = "tenant_connection"
severity = "high"
tables = ["change_events", "context_days", "edge_days", "first_seen", "credentials", "bindings", "mailboxes", "networks"]
needs = ["context_days"]
identity = ["level", "tenant_id", "entity_id", "value", "first_day"]
explanation = "{app_id:Name} {what}[ as {principal_ids:names}] at tenant {tenant_id}: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][, {n_mailboxes:some mailbox/mailboxes} of others]. {normal}[ {remark}]"
step = "{first_seen:Days}, {app_id:name} {what}[ as {principal_ids:names}]."
why = "{normal}"
false_positives = [
  "a newly approved application: look for the consent and who gave it",
  "a vendor's release that changes the interface for all customers within days",
  "an application of the platform's maker that this list of well-known ones does not have",
]
blind_spots = [
  "an application that read mail in the tenant before, used by someone else now",
  "logs without application ids, and servers on the customer's own site, which log none",
  "ordinary users who begin to use an application that the tenant knows",
  "which interface application (Graph, Exchange Online) was called: the protocol stands for it",
  "tenants with fewer active days before than min_active_days",
]
runbook = [
  "`app_id`: look up the application's name and publisher, and list its rows in access_events for the 24 hours after the first",
  "`op`, `target_id`, `actor_id`: list consents, app roles and credentials for the application in change_events over the 30 days before",
  "`mailbox_id`: list the mailboxes that the application opened within 30 days, and whose they are",
  "`src_net`, `credential_id`: compare its sources and keys with those of the tenant's other applications over the 90 days before",
]

attack = [
  { technique = "T1550.001", name = "Application Access Token", tactics = ["lateral-movement"] },
  { technique = "T1528", name = "Steal Application Access Token", tactics = ["credential-access"] },
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the first use that count as history, at most" },
  { name = "min_active_days", default = 21, help = "distinct active days that the tenant, the account or the application must have before" },
  { name = "burn_in_days", default = 14, help = "first days of a history, in which every application is new" },
  { name = "min_surprise", default = 1.5, help = "-log10 of the entity's own daily probability of a new value; lowered to what a short history can reach" },
  { name = "consent_days", default = 30, help = "days before the first use in which an approval excuses it" },
  { name = "release_share", default = 0.3, help = "share of an application's tenants, of at least three, that take up an interface within seven days when a release brings it" },
]

[[requires]]
sql = "select exists (select 1 from context_days where date >= cast($window_from as date) - 90 and date <= cast($window_to as date) and app_id is not null)"
reason = "no row of context_days names an application"

[[subjects]]
sql = "select exists (select 1 from entity_days group by level, tenant_id, entity_id having count(*) > $min_active_days)"
reason = "no tenant, account or application has more than $min_active_days days on which the logs name applications"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", app_id = "app_id", "coalesce(principal_id, '')" = "evidence_principals", protocol = "evidence_protocols" }
---*/
-- Clients and services of Microsoft's own, which come with every tenant; its command-line tools are not among them.
with first_party as (
    select unnest([
        '00000002-0000-0ff1-ce00-000000000000', '00000003-0000-0ff1-ce00-000000000000', '00000003-0000-0000-c000-000000000000',
        '00000002-0000-0000-c000-000000000000', 'd3590ed6-52b3-4102-aeff-aad2292ab01c', '27922004-5251-4030-b22d-91ecd9a37ea4',
        '1fec8e78-bce4-4aaf-ab1b-5451cc387264', '5e3ce6c0-2b1f-4285-8d4b-75ee78787346', '9199bf20-a13f-4107-85dc-02114787ef48',
        '4765445b-32c6-49b0-83e6-1d93765276ca', 'ab9b8c07-8f02-4f72-87fa-80105867a763', '89bee1f7-5e6e-4d8a-9f3d-ecd601259da7'
    ]) as app_id
),

-- Rows of ordinary users carry no action: where they touched items, the application read.
app_use as (
    select date, tenant_id, protocol, principal_id, credential_id, app_id, src_net, src_class, client_fp, action, n_ops, items,
        first_ts, last_ts,
        principal_type in ('service_principal', 'service_account', 'computer') or principal_id is null
            or principal_id in (select h.principal_id from held_principals() as h) as is_service,
        action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment', 'retr', 'top')
            or (action = 'any' and items > 0) as is_reading
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer)
        and date <= cast($window_to as date) and first_ts < $window_to
        and outcome = 'success' and action <> 'probe' and app_id is not null and tenant_id is not null
),

-- What may be new: an application that reads in a tenant, one that a service account reads with, an interface of it.
valued_use as (
    select 'tenant' as level, tenant_id as entity_id, app_id as value, *
    from app_use
    where is_reading and app_id not in (select f.app_id from first_party as f)
    union all
    select 'principal' as level, principal_id as entity_id, app_id as value, *
    from app_use
    where is_reading and is_service and principal_id is not null
    union all
    select 'interface' as level, app_id as entity_id, protocol as value, *
    from app_use
    where is_reading and is_service and app_id not in (select f.app_id from first_party as f)
),

first_values as (
    select level, tenant_id, entity_id, value, min(first_ts) as first_ts, cast(min(first_ts) as date) as first_day,
        bool_or(is_service) as is_service
    from valued_use
    group by level, tenant_id, entity_id, value
),

-- Days on which the value could have shown: of the whole tenant, or of the account's or the application's own reading.
tenant_days as (
    select tenant_id, date from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and outcome = 'success' and tenant_id is not null and app_id is not null
    group by tenant_id, date
),

entity_days as (
    select 'tenant' as level, tenant_id, tenant_id as entity_id, date from tenant_days
    union all
    select distinct level, tenant_id, entity_id, date from valued_use where level <> 'tenant'
),

new_values as (
    select * from first_values where first_ts >= $window_from
),

novel_days as (
    select level, tenant_id, entity_id, first_day as date, bool_or(is_service) as has_service
    from first_values
    group by level, tenant_id, entity_id, first_day
),

histories as (
    select n.level, n.tenant_id, n.entity_id, n.value, n.first_ts, n.first_day, n.is_service, count(*) as n_active_days,
        count(*) filter (where d.date >= b.begins + cast($burn_in_days as integer)) as n,
        count(*) filter (where d.date >= b.begins + cast($burn_in_days as integer) and v.date is not null) as k
    from new_values as n
    inner join entity_days as d
        on n.level = d.level and n.tenant_id = d.tenant_id and n.entity_id = d.entity_id and n.first_day > d.date
        and n.first_day - cast($baseline_days as integer) <= d.date
    inner join (
        select level, tenant_id, entity_id, min(date) as begins from entity_days group by level, tenant_id, entity_id
    ) as b on n.level = b.level and n.tenant_id = b.tenant_id and n.entity_id = b.entity_id
    left join novel_days as v
        on d.level = v.level and d.tenant_id = v.tenant_id and d.entity_id = v.entity_id and d.date = v.date
    group by n.level, n.tenant_id, n.entity_id, n.value, n.first_ts, n.first_day, n.is_service
    having count(*) >= $min_active_days
),

-- Known from before the baseline; an application that only signed in since then has not read before.
known_longer as (
    select distinct tenant_id, entity_type, entity_id, attr_type, attr_value
    from first_seen
    where date <= cast($window_from as date) - cast($baseline_days as integer)
        and first_ts < cast($window_from as date) - cast($baseline_days as integer)
        and n_days > 0 and entity_type in ('tenant', 'principal') and attr_type = 'app_id'
),

silent_before as (
    select n.level, n.tenant_id, n.entity_id, n.value, count(distinct u.date) as n_signin_days
    from new_values as n
    inner join app_use as u
        on n.tenant_id = u.tenant_id and n.value = u.app_id and n.first_day > u.date
        and n.first_day - cast($baseline_days as integer) <= u.date
        and (n.level = 'tenant' or n.entity_id = u.principal_id)
    where n.level <> 'interface' and not u.is_reading
    group by n.level, n.tenant_id, n.entity_id, n.value
),

surprising as (
    select h.*, coalesce(s.n_signin_days, 0) as n_signin_days, (h.k + 0.5) / (h.n + 1) as p_new,
        -log10((h.k + 0.5) / (h.n + 1)) as surprise
    from histories as h
    left join silent_before as s
        on h.level = s.level and h.tenant_id = s.tenant_id and h.entity_id = s.entity_id and h.value = s.value
    where (coalesce(s.n_signin_days, 0) >= 3 or not exists (
        select 1 from known_longer as k
        where k.entity_type = h.level and k.tenant_id = h.tenant_id and k.entity_id = h.entity_id and k.attr_value = h.value
    ))
    and (
        (h.level = 'tenant' and h.is_service)
        or -log10((h.k + 0.5) / (h.n + 1)) >= least($min_surprise, log10(2.0 * (h.n + 1))) - 1e-9
    )
),

-- A release: the application's tenants take up the interface within a week of each other.
releases as (
    select n.entity_id, n.value, a.n_app_tenants, count(distinct n.tenant_id) as n_took_up
    from first_values as n
    inner join (
        select entity_id, count(distinct tenant_id) as n_app_tenants from first_values where level = 'interface' group by entity_id
    ) as a on n.entity_id = a.entity_id
    where n.level = 'interface'
    group by n.entity_id, n.value, a.n_app_tenants
    having count(distinct n.tenant_id) >= 3 and max(n.first_day) - min(n.first_day) <= 7
        and count(distinct n.tenant_id) > $release_share * a.n_app_tenants
),

-- The small table of changes is read whole for the days in question; a target may be named in a value as well.
changes as (
    select event_uid, tenant_id, ts, lower(actor_id) as actor_id, src_net, src_class, lower(coalesce(target_id, '')) as target_id,
        lower(coalesce(app_id, '') || ' ' || coalesce(attr, '') || ' ' || coalesce(new_value, '')) as words, op
    from change_events
    where date >= cast($window_from as date) - cast($consent_days as integer) - 1 and date <= cast($window_to as date)
        and outcome <> 'failure'
),

logged_consents as (
    select distinct tenant_id from changes where op in ('consent', 'add_app', 'add_app_role', 'update_app', 'add_credential')
),

-- The unified audit repeats the directory's changes without an address: the record of the same minute that has one tells the place.
repeats as (
    select distinct c.event_uid
    from changes as c
    inner join changes as t
        on c.tenant_id = t.tenant_id and c.op = t.op and c.actor_id = t.actor_id
        and t.ts between c.ts - interval 1 minute and c.ts + interval 1 minute
    where c.src_net is null and t.src_net is not null
),

tenant_nets as (
    select entity_id as tenant_id, attr_value as src_net, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'tenant' and attr_type = 'src_net' and date <= cast($window_to as date)
    group by entity_id, attr_value
),

consents as (
    select s.tenant_id, s.value, max(c.ts) as consented_at,
        bool_and(
            coalesce(c.src_class, '') in ('corporate', 'vendor_egress', 'vendor')
            or coalesce(t.first_ts < c.ts - interval 7 day, false)
        ) as is_known_net
    from surprising as s
    inner join changes as c
        on s.tenant_id = c.tenant_id and c.op in ('consent', 'add_app', 'add_app_role')
        and s.first_ts >= c.ts and s.first_ts - to_days(cast($consent_days as integer)) <= c.ts
        and (lower(s.value) = c.target_id or contains(c.words, lower(s.value)))
    left join tenant_nets as t on c.tenant_id = t.tenant_id and c.src_net = t.src_net
    where s.level in ('tenant', 'principal') and c.event_uid not in (select r.event_uid from repeats as r)
    group by s.tenant_id, s.value
),

others_mailboxes as (
    select s.level, s.tenant_id, s.entity_id, s.value,
        list(distinct e.mailbox_id order by e.mailbox_id) as mailboxes, count(distinct e.mailbox_id) as n_mailboxes,
        bool_and(coalesce(m.kind, 'user') in ('shared', 'room', 'service')) as is_shared_only,
        bool_or(coalesce(m.vip, false)) as has_vip, bool_or(coalesce(m.kind, '') = 'journal') as has_journal
    from (select *, if(level = 'interface', entity_id, value) as app_id from surprising) as s
    inner join edge_days as e
        on s.tenant_id = e.tenant_id and s.first_day <= e.date
        and s.app_id = e.app_id and (s.level <> 'interface' or s.value = e.protocol)
        and (s.level <> 'principal' or s.entity_id = e.actor_id)
    left join mailboxes as m on e.mailbox_id = lower(m.mailbox_id)
    where e.date >= cast($window_from as date) and e.date <= cast($window_to as date)
        and e.first_ts < $window_to and coalesce(e.logon_type, '') <> 'owner'
    group by s.level, s.tenant_id, s.entity_id, s.value
),

described as (
    select s.level, s.tenant_id, s.entity_id, s.value, s.first_day, s.is_service, s.n_active_days, s.surprise, s.p_new,
        s.n_signin_days, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen, min(u.app_id) as app_id,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, '') order by coalesce(u.principal_id, '')) as evidence_principals,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        list(distinct u.protocol order by u.protocol) as protocols, cast(sum(u.n_ops) as bigint) as n_ops,
        cast(sum(u.items) as bigint) as n_items
    from surprising as s
    inner join valued_use as u
        on s.level = u.level and s.tenant_id = u.tenant_id and s.entity_id = u.entity_id and s.value = u.value
    where u.last_ts >= $window_from
    group by s.level, s.tenant_id, s.entity_id, s.value, s.first_day, s.is_service, s.n_active_days, s.surprise, s.p_new,
        s.n_signin_days
),

-- A new application is told once: at the tenant where it is new to the whole tenant.
classified as (
    select d.*, c.consented_at, coalesce(c.is_known_net, false) as is_consented_from_known,
        c.consented_at is not null as is_consented, l.tenant_id is not null as has_changes,
        m.mailboxes, m.n_mailboxes, coalesce(m.is_shared_only, false) as is_shared_only,
        coalesce(m.has_vip, false) as has_vip, coalesce(m.has_journal, false) as has_journal,
        r.value is not null as is_release
    from described as d
    left join consents as c on d.tenant_id = c.tenant_id and d.value = c.value and d.level <> 'interface'
    left join logged_consents as l on d.tenant_id = l.tenant_id
    left join others_mailboxes as m
        on d.level = m.level and d.tenant_id = m.tenant_id and d.entity_id = m.entity_id and d.value = m.value
    left join releases as r on d.level = 'interface' and d.entity_id = r.entity_id and d.value = r.value
    where not (d.level = 'principal' and exists (
        select 1 from described as t where t.level = 'tenant' and t.tenant_id = d.tenant_id and t.value = d.value
    ))
    and not (coalesce(c.is_known_net, false) and coalesce(m.is_shared_only, false))
)

select level, tenant_id, entity_id, value, first_day, first_seen, last_seen, app_id, [app_id] as app_ids, principal_ids,
    credential_ids, source_networks, client_fps, protocols, mailboxes, n_mailboxes, n_ops, n_items, n_active_days,
    round(surprise, 2) as surprise, p_new, is_service, is_consented, is_consented_from_known, is_release,
    case when level = 'principal' then evidence_principals end as evidence_principals,
    case when level = 'interface' then [value] end as evidence_protocols,
    case level
        when 'tenant' then 'read mail for the first time'
        when 'principal' then 'was used for the first time'
        else 'read mail over ' || upper(value) || ' for the first time'
    end as what,
    case level
        when 'tenant' then 'In ' || n_active_days || ' active days before, the tenant had no mail read by it'
        when 'principal' then 'In ' || n_active_days || ' active days before, the account had not used it'
        else 'In ' || n_active_days || ' active days before, it had never done so'
    end || if(n_signin_days >= 3, ', though it signed in on ' || n_signin_days || ' days.', '.') as normal,
    case
        when is_release then 'Many of its tenants took the interface up in the same week: probably a release.'
        when is_consented
            then 'An approval of it was logged on ' || strftime(consented_at, '%Y-%m-%d')
                || if(is_consented_from_known, ', from a known network.', ', from no known network.')
        when level = 'interface' then null
        when has_changes then 'No approval of it was logged in the days before.'
        else 'No approvals are logged for the tenant.'
    end as remark,
    case
        when is_release or is_consented_from_known then 'low'
        when level = 'tenant' and (is_service or coalesce(n_mailboxes, 0) > 0) then 'high'
        else 'medium'
    end as severity,
    least(1.0, if(level = 'tenant', 0.7, 0.5) + surprise / 5) as confidence,
    case when has_journal then 2.0 when coalesce(n_mailboxes, 0) >= 5 or has_vip then 1.5 else 1.0 end as impact
from classified
order by first_seen, level, tenant_id, entity_id, value
