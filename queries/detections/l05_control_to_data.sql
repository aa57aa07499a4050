/*---
id = "L05"
title = "A new key or permission is used to read mail"
hypothesis = "Who adds a key, a permission or a role to get at mail uses it soon."
family = "lateral_movement"
severity = "high"
tables = ["change_events", "context_days", "edge_days", "first_seen", "credentials", "bindings", "mailboxes", "tenants"]
needs = []
identity = ["tenant_id", "kind", "beneficiary", "changed_day"]
explanation = "{beneficiary:Name} got {granted} on {changed_at}[ from {changed_by}] and used it to read mail, {hours:count hour} later at first: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][ in {n_mailboxes:some mailbox/mailboxes}][ from {source_networks:nets}].[ {remark}]"
step = "On {changed_at}, {beneficiary:name} got {granted}[ from {changed_by}], and used it to read mail {hours:count hour} later."
why = "[{remark}]"
false_positives = [
  "a new integration whose owner forgot to announce it: look for the change record and the vendor's onboarding",
  "a planned rotation that also moves the integration to other servers",
  "an administrator who helps users with their mailboxes, on request",
]
blind_spots = [
  "a key that is used from the application's own servers, while the application reads mail as it always did",
  "tenants whose directory audit (consent, credential and role events) was not ingested",
  "mail that is read without a log of it: no unified audit, no web services log",
  "a permission that is used more than slow_days later",
]
runbook = [
  "`change_events.op`: list all changes of the actor and of the target in the 30 days before and after the change",
  "`credential_id`: check the validity (over 365 days), the issuer and the display name of the new key in the change record of the day",
  "`mailbox_id`: list the mailboxes that the beneficiary opened in the 30 days after the change, and those of the 90 days before",
  "`src_net`: compare the networks of the actor on the day of the change with those of the 90 days before",
]

attack = [
  { technique = "T1098.001", name = "Additional Cloud Credentials", tactics = ["persistence", "privilege-escalation"] },
  { technique = "T1098.002", name = "Additional Email Delegate Permissions", tactics = ["persistence", "privilege-escalation"] },
  { technique = "T1098.003", name = "Additional Cloud Roles", tactics = ["persistence", "privilege-escalation"] },
  { technique = "T1550.001", name = "Application Access Token", tactics = ["lateral-movement"] },
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the change that count as history, at most" },
  { name = "fast_hours", default = 72, help = "hours between change and use within which a finding counts in full" },
  { name = "slow_days", default = 30, help = "days between change and use, at most" },
  { name = "dormant_days", default = 30, help = "days without use before the change from which an application counts as dormant" },
  { name = "lift", default = 5.0, help = "how many times the reading of the 28 days before that of the 7 days after must be" },
  { name = "min_excess", default = 50, help = "operations above the usual week that a jump must have" },
  { name = "max_change_rate", default = 0.05, help = "new networks a day above which a further new network of an application says nothing" },
  { name = "many_mailboxes", default = 5, help = "mailboxes given to one account within a day from which it is not everyday delegation" },
]

[[requires]]
sql = "select exists (select 1 from change_events where date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date))"
reason = "no directory or administrator audit of the window or the $slow_days days before was ingested: no change of keys, consents, roles or permissions is known"

[[branches]]
name = "keys and permissions of applications"
needs = ["context_days"]

[[branches]]
name = "roles and mailboxes given to accounts"
needs = ["edge_days"]

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "evidence_networks" }
---*/
-- change_events is small and read whole: it has no derived table.
with changes as (
    select event_uid, ts, tenant_id, op, actor_id, src_net as changer_net, credential_id,
        regexp_replace(lower(target_id), '^(application|serviceprincipal)_', '') as target_id, actor_type,
        lower(coalesce(new_value, '')) as setting
    from change_events
    where date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date)
        and outcome <> 'failure'
        and op in ('add_credential', 'update_credential', 'consent', 'add_app_role', 'add_role', 'mailbox_permission')
),

keys as (
    select *, 'key' as kind from changes where credential_id is not null and op in ('add_credential', 'update_credential')
),

-- Permissions that reach all mail, or that an application gets to read mail.
grants as (
    select *, 'permission' as kind
    from changes
    where op in ('consent', 'add_app_role')
        and regexp_matches(
            setting, 'full_access_as_app|mail\.read|mail\.send|mailboxsettings|ews\.accessasuser|exchange\.manageasapp|(imap|pop)\.access'
        )
),

-- To whom a role or a mailbox was given.
delegations as (
    select *,
        if(op = 'add_role', 'role', 'mailbox') as kind,
        coalesce(
            nullif(regexp_extract(setting, '(?:^|; )(?:user|trustee|member|securitygroup)=([^;]*)', 1), ''),
            if(op = 'add_role', target_id, null)
        ) as grantee
    from changes
    where (
            op = 'add_role' and regexp_matches(
                setting, 'applicationimpersonation|(company|global|exchange) administrator|tenantadmins|organization management'
            )
        )
        or (op = 'mailbox_permission' and coalesce(actor_type, '') <> 'system' and regexp_matches(setting, 'fullaccess|readpermission'))
),

-- Whose a key is stands in the sign-ins; whose a permission is stands in the change.
key_users as (
    select k.event_uid, k.ts, k.credential_id, u.tenant_id, u.id
    from keys as k
    inner join (
        select credential_id, tenant_id, unnest([principal_id, app_id]) as id, max(last_ts) as last_ts
        from context_days
        where date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date)
            and outcome = 'success'
            and credential_id in (select o.credential_id from keys as o)
        group by credential_id, tenant_id, principal_id, app_id
    ) as u on k.credential_id = u.credential_id and k.ts <= u.last_ts
    where u.id is not null
),

beneficiaries as (
    select distinct 'key' as kind, event_uid, ts, tenant_id, id, credential_id from key_users
    union all
    select kind, event_uid, ts, tenant_id, target_id as id, credential_id
    from keys
    where target_id is not null and event_uid not in (select o.event_uid from key_users as o)
    union all
    select kind, event_uid, ts, tenant_id, target_id as id, credential_id
    from grants
    where target_id is not null
),

uses as (
    select row_number() over () as use_id, date, tenant_id, protocol, principal_id, app_id, credential_id, src_net, client_fp,
        n_ops, items, first_ts, last_ts,
        protocol in ('ews', 'graph', 'imap', 'pop3', 'mapi', 'eas', 'owa', 'exchange')
        and action not in ('signin', 'auth', 'bind', 'connect', 'probe', 'config', 'proxy') as is_data
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) - cast($slow_days as integer)
        and date <= cast($window_to as date) and outcome = 'success' and action <> 'probe'
        and principal_type is distinct from 'user'
        and (principal_id in (select b.id from beneficiaries as b) or app_id in (select b.id from beneficiaries as b))
),

named_uses as (
    select principal_id as id, * from uses where principal_id is not null
    union all
    select app_id as id, * from uses where app_id is not null and app_id is distinct from principal_id
),

-- The same row may be named by both ids of one beneficiary. Only what is near a change is joined: there may be thousands.
linked as (
    select l.event_uid, l.kind, l.ts, l.new_key, u.*
    from (
        select distinct b.event_uid, b.kind, b.ts, b.credential_id as new_key, n.use_id
        from beneficiaries as b
        inner join named_uses as n
            on b.id = n.id and coalesce(b.tenant_id, '') = coalesce(n.tenant_id, '')
            and cast(b.ts as date) - cast($baseline_days as integer) <= n.date
            and b.ts + to_days(cast($slow_days as integer)) >= n.first_ts
    ) as l
    inner join uses as u on l.use_id = u.use_id
),

history_days as (
    select event_uid, tenant_id, date, src_net, max(last_ts) as last_ts,
        coalesce(sum(n_ops) filter (where is_data and date >= cast(ts as date) - 28), 0) as n_recent
    from linked
    where date < cast(ts as date)
    group by event_uid, tenant_id, date, src_net
),

histories as (
    select event_uid, tenant_id, count(distinct date) as n_days, max(last_ts) as last_before, count(distinct src_net) as n_nets,
        list(distinct src_net) filter (where src_net is not null) as nets, sum(n_recent) / 4.0 as usual_week
    from history_days
    group by event_uid, tenant_id
),

-- Reading by the beneficiary after the change; what another key demonstrably did is not the new key's.
readings as (
    select l.*, h.last_before, coalesce(h.usual_week, 0) as usual_week,
        coalesce(
            h.n_days >= 14 and (h.n_nets - 0.5) / (h.n_days + 1) <= $max_change_rate and not list_contains(h.nets, l.src_net),
            false
        ) as is_new_net
    from linked as l
    left join histories as h on l.event_uid = h.event_uid and l.tenant_id is not distinct from h.tenant_id
    where l.is_data and l.last_ts >= l.ts and l.first_ts <= l.ts + to_days(cast($slow_days as integer))
        and (l.kind <> 'key' or coalesce(l.credential_id, l.new_key) = l.new_key)
),

app_totals as (
    select event_uid, tenant_id, kind, new_key,
        coalesce(min(greatest(first_ts, ts)) filter (where is_new_net), min(greatest(first_ts, ts))) as first_seen,
        bool_or(is_new_net) as has_new_net,
        bool_and(last_before is null) as is_first_use,
        bool_and(coalesce(last_before < ts - to_days(cast($dormant_days as integer)), true)) as is_dormant,
        coalesce(sum(n_ops) filter (where date < cast(ts as date) + 7), 0)
        >= greatest($lift * max(usual_week), max(usual_week) + $min_excess) as is_jump
    from readings
    group by event_uid, tenant_id, kind, new_key
),

-- A rotation that the reference tables announce, from the usual servers, is what should happen.
planned as (
    select lower(replaced_by) as credential_id from credentials where replaced_by is not null
    union
    select lower(credential_id) from bindings where credential_id is not null
),

app_hits as (
    select *
    from app_totals
    where first_seen >= $window_from
        and (is_dormant or (kind = 'key' and (has_new_net or is_jump)))
        and not (kind = 'key' and not has_new_net and new_key in (select p.credential_id from planned as p))
),

app_rows as (
    select h.event_uid, h.kind, h.tenant_id, h.first_seen, h.has_new_net, h.is_first_use, h.is_dormant, h.is_jump, c.ts,
        c.actor_id as changed_by, c.changer_net, c.credential_id, coalesce(r.principal_id, r.app_id) as beneficiary,
        r.principal_id, r.app_id, r.src_net, r.client_fp, r.protocol, r.n_ops, r.items, r.last_ts
    from app_hits as h
    inner join changes as c on h.event_uid = c.event_uid
    inner join readings as r on h.event_uid = r.event_uid and h.tenant_id is not distinct from r.tenant_id and h.kind = r.kind
    where r.is_new_net or not h.has_new_net
),

-- Mailboxes of others that an account opened after it got the role or the mailbox, and never before.
edges as (
    select tenant_id, actor_id, mailbox_id, src_net, protocol, credential_id, app_id, sum(n_ops) as n_ops, sum(items) as items,
        min(first_ts) as first_ts, max(last_ts) as last_ts
    from edge_days
    where date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date)
        and (actor_id in (select d.grantee from delegations as d)
            or split_part(actor_id, '@', 1) in (select d.grantee from delegations as d))
        and coalesce(logon_type, '') <> 'owner'
    group by all
),

edges_before as (
    select distinct actor_id, mailbox_id
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) - cast($slow_days as integer)
        and date < cast($window_from as date) - cast($slow_days as integer)
        and actor_id in (select e.actor_id from edges as e)
),

opened as (
    select d.event_uid, d.kind, d.ts, d.actor_id as changed_by, d.changer_net, e.*,
        coalesce(m.vip, false) or m.kind = 'journal' as is_sensitive, d.actor_id in (d.grantee, e.actor_id) as is_self
    from delegations as d
    inner join edges as e
        on (d.grantee = e.actor_id or d.grantee = split_part(e.actor_id, '@', 1)) and d.tenant_id is not distinct from e.tenant_id
        and d.ts <= e.first_ts and d.ts + to_days(cast($slow_days as integer)) >= e.first_ts
        and (d.kind = 'role' or d.target_id = e.mailbox_id or d.target_id = split_part(e.mailbox_id, '@', 1))
    left join mailboxes as m on e.mailbox_id = lower(m.mailbox_id)
    where e.first_ts >= $window_from
        and not exists (select 1 from edges_before as o where o.actor_id = e.actor_id and o.mailbox_id = e.mailbox_id)
        and not exists (
            select 1 from edges as o where e.actor_id = o.actor_id and e.mailbox_id = o.mailbox_id and d.ts > o.first_ts
        )
),

-- Delegation of one mailbox to a colleague is everyday life.
unusual_delegations as (
    select kind, tenant_id, actor_id, cast(ts as date) as changed_day
    from opened
    group by kind, tenant_id, actor_id, cast(ts as date)
    having bool_or(is_self) or count(distinct mailbox_id) >= if(kind = 'role', 2, $many_mailboxes)
        or (bool_or(is_sensitive) and count(distinct mailbox_id) >= 2)
),

all_rows as (
    select *, cast(null as varchar) as mailbox_id, false as is_self, false as is_sensitive from app_rows
    union all by name
    select o.event_uid, o.kind, o.tenant_id, o.actor_id as beneficiary, o.ts, o.changed_by, o.changer_net,
        o.first_ts as first_seen, o.last_ts, o.actor_id as principal_id, o.app_id, o.src_net, o.protocol,
        o.n_ops, o.items, false as has_new_net, true as is_first_use, false as is_dormant,
        false as is_jump, o.mailbox_id, o.is_self, o.is_sensitive
    from opened as o
    inner join unusual_delegations as d
        on o.kind = d.kind and o.tenant_id is not distinct from d.tenant_id and o.actor_id = d.actor_id
        and cast(o.ts as date) = d.changed_day
),

-- Several changes for one beneficiary on a day are one.
grouped as (
    select tenant_id, if(kind = 'permission', 'key', kind) as kind, beneficiary, cast(ts as date) as changed_day,
        min(ts) as changed_at, max(changed_by) as changed_by, max(changer_net) as changer_net,
        list(distinct event_uid order by event_uid) as change_uids, list(distinct kind order by kind) as kinds,
        min(first_seen) as first_seen, max(last_ts) as last_seen,
        list(distinct credential_id order by credential_id) filter (where credential_id is not null) as credential_ids,
        list(distinct principal_id order by principal_id) filter (where principal_id is not null) as principal_ids,
        list(distinct app_id order by app_id) filter (where app_id is not null) as app_ids,
        list(distinct coalesce(principal_id, app_id)) as actor_ids,
        list(distinct src_net order by src_net) filter (where src_net is not null) as source_networks,
        list(distinct src_net order by src_net) as evidence_networks,
        list(distinct client_fp order by client_fp) filter (where client_fp is not null) as client_fps,
        list(distinct mailbox_id order by mailbox_id) filter (where mailbox_id is not null) as mailboxes,
        list(distinct protocol order by protocol) as protocols, cast(sum(n_ops) as bigint) as n_ops, cast(sum(items) as bigint) as n_items,
        bool_or(has_new_net) as has_new_net, bool_and(is_first_use) as is_first_use, bool_and(is_dormant) as is_dormant,
        bool_or(is_jump) as is_jump, bool_or(is_self) as is_self, bool_or(is_sensitive) as is_sensitive
    from all_rows
    group by all
),

-- The changer's own network, new to the changer.
changers as (
    select g.changed_by, g.changer_net, min(f.first_ts) as first_ts, min(f.first_any) as first_any
    from (select distinct changed_by, changer_net from grouped where changer_net is not null) as g
    inner join (
        select entity_id, attr_value, first_ts, min(first_ts) over (partition by entity_id) as first_any
        from first_seen
        where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
            and entity_id in (select o.changed_by from grouped as o)
    ) as f on g.changed_by = f.entity_id and g.changer_net = f.attr_value
    group by g.changed_by, g.changer_net
)

select g.*, g.first_seen - g.changed_at <= to_hours(cast($fast_hours as integer)) as is_fast,
    cast(date_diff('hour', g.changed_at, g.first_seen) as bigint) as hours, cast(len(g.mailboxes) as bigint) as n_mailboxes,
    false as is_declared, cast(null as boolean) as is_declared_net, true as is_service,
    case
        when g.kinds = ['permission'] then 'a permission to read mail'
        when g.kinds = ['key'] then 'a new key'
        when g.kind = 'key' then 'a key and a permission to read mail'
        when g.kind = 'role' then 'an administrative role'
        else 'access to the mailbox'
    end as granted,
    coalesce(c.first_ts >= g.changed_at - to_days(1) and c.first_any < g.changed_at - to_days(21), false) as is_new_changer_net,
    concat_ws(
        ' ',
        case
            when g.is_self then 'The account gave it to itself.'
            when g.has_new_net then 'The network is new to the application.'
            when g.kind = 'key' and g.is_first_use then 'The application had never been used before.'
            when g.is_dormant then 'The application had not been used for a long time.'
            when g.is_jump then 'The reading is a multiple of what is usual.'
        end,
        if(
            c.first_ts >= g.changed_at - to_days(1) and c.first_any < g.changed_at - to_days(21),
            'The change came from a network that is new to who made it.', null
        ),
        if(t.onboarded_at > g.changed_at - to_days(30), 'The tenant was onboarded shortly before.', null)
    ) as remark,
    case
        when t.onboarded_at > g.changed_at - to_days(30) then 'low'
        when c.first_ts >= g.changed_at - to_days(1) and c.first_any < g.changed_at - to_days(21) then 'high'
        when g.has_new_net or g.is_self or (g.is_dormant and not g.is_first_use) then 'high'
        else 'medium'
    end as severity,
    if(g.first_seen - g.changed_at <= to_hours(cast($fast_hours as integer)), 1.0, 0.7)
    * if(g.kind = 'mailbox' and not g.is_self, 0.6, 1.0) as confidence,
    if(g.is_sensitive or len(g.mailboxes) >= 5, 1.5, 1.0) as impact
from grouped as g
left join changers as c on g.changed_by = c.changed_by and g.changer_net = c.changer_net
left join tenants as t on g.tenant_id = t.tenant_id
order by g.first_seen, g.tenant_id, g.beneficiary
