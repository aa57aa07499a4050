/*---
id = "L05"
title = "A new key or permission is used to read mail"
hypothesis = "Who adds a key, a permission or a role to get at mail uses it soon."
family = "lateral_movement"
severity = "high"
tables = ["change_events", "context_days", "edge_days", "first_seen", "credentials", "bindings", "rotations", "mailboxes", "tenants"]
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
  { name = "many_mailboxes", default = 5, help = "mailboxes given to one account within a day, or read by a new application, from which it is not everyday life" },
  { name = "rotation_days", default = 14, help = "days before and after its dates in which an announced rotation, or a binding that begins, explains a change" },
  { name = "most_changes", default = 100, help = "changes, and keys, that a finding lists at most" },
  { name = "known_days", default = 14, help = "days for which who makes a change must have used the network for it to be the usual place" },
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
-- change_events is small and read whole. The unified audit repeats changes without an address: the record that has one tells the place.
with changes as (
    select event_uid, ts, tenant_id, op, actor_id, actor_type, credential_id, lower(coalesce(new_value, '')) as setting,
        regexp_replace(lower(target_id), '^(application|serviceprincipal)_', '') as target_id, coalesce(src_net, any_value(src_net) over (
            partition by tenant_id, op, actor_id order by ts range between interval 1 minute preceding and interval 1 minute following
        )) as changer_net
    from change_events
    where outcome <> 'failure' and date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date)
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
    select *, if(op = 'add_role', 'role', 'mailbox') as kind,
        nullif(regexp_extract(setting, '(?:^|; )(?:user|trustee|member|securitygroup)=([^;]*)', 1), '') as named,
        coalesce(named, if(op = 'add_role', target_id, null)) as grantee
    from changes
    where (op = 'add_role'
            and regexp_matches(
                setting, 'applicationimpersonation|(company|global|exchange) administrator|tenantadmins|organization management'
            ))
        or (op = 'mailbox_permission' and coalesce(actor_type, '') <> 'system' and regexp_matches(setting, 'fullaccess|readpermission'))
),

-- Whose a key is stands in the sign-ins; whose a permission is stands in the change.
key_users as (
    select credential_id, tenant_id, max(last_ts) as last_ts, list_sort(list_distinct(flatten(list([principal_id, app_id])))) as ids
    from context_days
    where date >= cast($window_from as date) - cast($slow_days as integer) and date <= cast($window_to as date)
        and outcome = 'success' and credential_id in (select k.credential_id from keys as k)
        and coalesce(principal_id, app_id) is not null
    group by credential_id, tenant_id
),

beneficiaries as (
    select k.kind, k.event_uid, k.ts, k.credential_id, coalesce(u.tenant_id, k.tenant_id) as tenant_id,
        coalesce(u.ids, [k.target_id]) as ids
    from keys as k
    left join key_users as u on k.credential_id = u.credential_id and k.ts <= u.last_ts
    union all
    select kind, event_uid, ts, credential_id, tenant_id, [target_id] as ids from grants
),

-- What the reference tables announce; the audit names a key by its id in Entra, or by its thumbprint.
announced_keys as (
    select distinct k.event_uid
    from keys as k
    inner join announced($rotation_days) as a
        on k.credential_id = a.name and k.ts between a.begins and a.ends and a.tenant_key in ('', coalesce(k.tenant_id, ''))
),

-- The changes of a day for one beneficiary are one: there may be thousands.
units as (
    select row_number() over () as unit_id, kind, coalesce(tenant_id, '') as tenant_key, ids, cast(ts as date) as changed_day,
        event_uid in (select a.event_uid from announced_keys as a) as is_planned, min(ts) as ts, list(event_uid) as event_uids,
        list(distinct credential_id) filter (where credential_id is not null) as new_keys
    from beneficiaries
    group by kind, tenant_key, ids, changed_day, is_planned
),

unit_names as (
    select unit_id, tenant_key, changed_day, ts, unnest(ids) as id from units
),

uses as (
    select row_number() over () as use_id, date, tenant_id, protocol, principal_id, app_id, credential_id, src_net, src_class, client_fp,
        n_ops, items, first_ts, last_ts,
        protocol in ('ews', 'graph', 'imap', 'pop3', 'mapi', 'eas', 'owa', 'exchange')
        and action not in ('signin', 'auth', 'bind', 'connect', 'probe', 'config', 'proxy') as is_data
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) - cast($slow_days as integer)
        and date <= cast($window_to as date) and outcome = 'success' and action <> 'probe'
        and principal_type is distinct from 'user'
        and (principal_id in (select n.id from unit_names as n) or app_id in (select n.id from unit_names as n))
),

-- The same row may be named by both ids of one beneficiary.
linked as (
    select l.unit_id, t.kind, t.ts, t.new_keys, t.is_planned, u.*
    from (
        select distinct n.unit_id, d.use_id
        from unit_names as n
        inner join (
            select use_id, date, first_ts, coalesce(tenant_id, '') as tenant_key, unnest([principal_id, app_id]) as id from uses
        ) as d
            on n.id = d.id and n.tenant_key = d.tenant_key
            and d.date >= n.changed_day - cast($baseline_days as integer)
            and d.first_ts <= n.ts + to_days(cast($slow_days as integer))
    ) as l
    inner join units as t using (unit_id)
    inner join uses as u using (use_id)
),

-- A permission for an account of the gateway that its binding begins with.
announced_units as (
    select distinct l.unit_id
    from (select unit_id, ts, tenant_id, principal_id from linked where kind = 'permission') as l
    inner join announced($rotation_days) as a
        on l.principal_id = a.name and l.ts between a.begins and a.ends and a.tenant_key in ('', coalesce(l.tenant_id, ''))
),

histories as (
    select unit_id, count(distinct date) as n_days, max(last_ts) as last_before, count(distinct src_net) as n_nets,
        list(distinct src_net) filter (where src_net is not null) as nets,
        coalesce(sum(n_ops) filter (where is_data and date >= cast(ts as date) - 28), 0) / 4.0 as usual_week
    from linked
    where date < cast(ts as date)
    group by unit_id
),

-- Reading by the beneficiary after the change; what another key demonstrably did is not the new key's.
readings as (
    select l.*, h.last_before, coalesce(h.usual_week, 0) as usual_week,
        h.n_days >= 14 and (h.n_nets - 0.5) / (h.n_days + 1) <= $max_change_rate and not list_contains(h.nets, l.src_net) as new_net,
        coalesce(new_net, false) as is_new_net, coalesce(l.src_class, '') not in ('vendor_egress', 'vendor') as is_foreign
    from linked as l
    left join histories as h using (unit_id)
    where l.is_data and l.last_ts >= l.ts
        and (l.kind <> 'key' or l.credential_id is null or list_contains(l.new_keys, l.credential_id))
),

app_totals as (
    select unit_id, kind, is_planned,
        coalesce(min(greatest(first_ts, ts)) filter (where is_new_net), min(greatest(first_ts, ts))) as first_seen,
        bool_or(is_new_net) as has_new_net, bool_or(is_foreign) as is_foreign, bool_and(last_before is null) as is_first_use,
        bool_and(coalesce(last_before < ts - to_days(cast($dormant_days as integer)), true)) as is_dormant,
        coalesce(sum(n_ops) filter (where date < cast(ts as date) + 7), 0)
        >= greatest($lift * max(usual_week), max(usual_week) + $min_excess) as is_jump
    from readings
    group by unit_id, kind, is_planned
),

-- What the reference tables announce for that time, from the usual servers or the vendor's own, is what should happen.
app_hits as (
    select *
    from app_totals
    where first_seen >= $window_from
        and (is_dormant or (kind = 'key' and (has_new_net or is_jump)))
        and (has_new_net or (is_first_use and is_foreign) or not (is_planned or unit_id in (select a.unit_id from announced_units as a)))
),

app_rows as (
    select h.unit_id, h.kind, r.tenant_id, h.first_seen, h.has_new_net, h.is_first_use, h.is_dormant, h.is_jump, r.ts, r.use_id,
        coalesce(r.principal_id, r.app_id) as beneficiary, r.principal_id, r.app_id, r.src_net, r.client_fp, r.protocol, r.n_ops, r.items,
        r.last_ts
    from app_hits as h
    inner join readings as r using (unit_id)
    where r.is_new_net or not h.has_new_net
),

-- Mailboxes of others that an account opened after it got the role (for any mailbox: '') or the mailbox, and never before.
given_to as (
    select -row_number() over () as unit_id, kind, coalesce(tenant_id, '') as tenant_key, grantee,
        if(kind = 'role', '', target_id) as box, cast(ts as date) as changed_day, min(ts) as ts, list(event_uid) as event_uids,
        list_distinct(list(actor_id)) as actor_ids
    from delegations
    where grantee is not null
    group by kind, tenant_key, grantee, box, changed_day
),

-- An audit may write the full name or the part before the @.
edges as (
    select -row_number() over () as use_id, tenant_id, coalesce(tenant_id, '') as tenant_key, actor_id, mailbox_id, src_net, protocol,
        credential_id, app_id, sum(n_ops) as n_ops, sum(items) as items, min(first_ts) as first_ts, max(last_ts) as last_ts,
        min(min(first_ts)) over (partition by tenant_id, actor_id, mailbox_id) as begins,
        list_distinct([actor_id, split_part(actor_id, '@', 1)]) as names,
        list_distinct([mailbox_id, split_part(mailbox_id, '@', 1), '']) as boxes
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) - cast($slow_days as integer)
        and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner'
        and (actor_id in (select g.grantee from given_to as g) or split_part(actor_id, '@', 1) in (select g.grantee from given_to as g))
    group by tenant_id, actor_id, mailbox_id, src_net, protocol, credential_id, app_id
),

opened as (
    select d.unit_id, d.kind, d.ts, d.changed_day, list_has_any(d.actor_ids, [d.grantee, e.actor_id]) as is_self,
        coalesce(m.vip or m.kind = 'journal', false) as is_sensitive, e.*
    from (
        select g.unit_id, n.use_id
        from given_to as g
        inner join (
            select use_id, tenant_key, name, unnest(boxes) as box
            from (select use_id, tenant_key, boxes, unnest(names) as name from edges) as o
        ) as n on g.grantee = n.name and g.box = n.box and g.tenant_key = n.tenant_key
        group by g.unit_id, n.use_id
    ) as l
    inner join given_to as d on l.unit_id = d.unit_id
    inner join edges as e on l.use_id = e.use_id
    left join mailboxes as m on e.mailbox_id = lower(m.mailbox_id)
    where e.first_ts >= $window_from and d.ts <= e.begins and d.ts + to_days(cast($slow_days as integer)) >= e.first_ts
),

-- Delegation of one mailbox to a colleague is everyday life.
unusual_delegations as (
    select kind, tenant_key, actor_id, changed_day
    from opened
    group by kind, tenant_key, actor_id, changed_day
    having bool_or(is_self) or count(distinct mailbox_id) >= if(kind = 'role', 2, $many_mailboxes)
        or (bool_or(is_sensitive) and count(distinct mailbox_id) >= 2)
),

all_rows as (
    select *, null as mailbox_id, false as is_self, false as is_sensitive from app_rows
    union all by name
    select o.unit_id, o.kind, o.tenant_id, o.actor_id as beneficiary, o.ts, o.use_id, o.first_ts as first_seen, o.last_ts,
        o.actor_id as principal_id, o.app_id, o.src_net, o.protocol, o.n_ops, o.items, false as has_new_net, true as is_first_use,
        false as is_dormant, false as is_jump, o.mailbox_id, o.is_self, o.is_sensitive
    from opened as o
    semi join unusual_delegations using (kind, tenant_key, actor_id, changed_day)
),

-- Several changes for one beneficiary on a day are one, and one use may follow several of them.
grouped as (
    select row_number() over () as group_id, tenant_id, group_kind as kind, beneficiary, changed_day, min(ts) as changed_at,
        list(distinct unit_id) as unit_ids, list(distinct kind order by kind) as kinds,
        min(first_seen) as first_seen, max(last_ts) as last_seen,
        list(distinct principal_id order by principal_id) filter (where principal_id is not null) as principal_ids,
        list(distinct app_id order by app_id) filter (where app_id is not null) as app_ids,
        list(distinct coalesce(principal_id, app_id)) as actor_ids,
        list(distinct src_net order by src_net) filter (where src_net is not null) as source_networks,
        list(distinct src_net order by src_net) as evidence_networks,
        list(distinct client_fp order by client_fp) filter (where client_fp is not null) as client_fps,
        list(distinct mailbox_id order by mailbox_id) filter (where mailbox_id is not null) as mailboxes,
        list(distinct protocol order by protocol) as protocols,
        cast(list_sum(map_values(map_from_entries(list(distinct row(use_id, n_ops))))) as bigint) as n_ops,
        cast(list_sum(map_values(map_from_entries(list(distinct row(use_id, items))))) as bigint) as n_items,
        bool_or(has_new_net) as has_new_net, bool_and(is_first_use) as is_first_use, bool_and(is_dormant) as is_dormant,
        bool_or(is_jump) as is_jump, bool_or(is_self) as is_self, bool_or(is_sensitive) as is_sensitive
    from (select *, if(kind = 'permission', 'key', kind) as group_kind, cast(ts as date) as changed_day from all_rows) as r
    group by tenant_id, group_kind, beneficiary, changed_day
),

places as (
    select entity_id, attr_value as src_net, min(first_ts) as first_ts, min(min(first_ts)) over (partition by entity_id) as first_any
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
        and entity_id in (select c.actor_id from changes as c)
    group by entity_id, attr_value
),

-- Whether who made the changes was where that account usually is, or where it had hardly been before.
placed as (
    select c.*, coalesce(k.first_ts < c.ts - to_days(cast($known_days as integer)), false) as is_usual,
        coalesce(k.first_ts >= c.ts - to_hours(cast($fast_hours as integer)) and k.first_any < c.ts - to_days(7), false) as is_new
    from changes as c
    left join places as k on c.actor_id = k.entity_id and c.changer_net = k.src_net
),

group_changes as (
    select e.group_id, list(c.event_uid order by c.ts, c.event_uid)[:$most_changes] as change_uids,
        list_sort(list_distinct(list(c.credential_id)))[:$most_changes] as credential_ids,
        arg_max(c.actor_id, (c.is_new, c.ts)) as changed_by, arg_max(c.changer_net, (c.is_new, c.ts)) as changer_net,
        bool_or(c.is_new) as is_new_changer_net, bool_and(c.is_usual) as is_usual_changer
    from (
        select distinct g.group_id, unnest(u.event_uids) as event_uid
        from (select group_id, unnest(unit_ids) as unit_id from grouped) as g
        inner join (
            select unit_id, event_uids from units
            union all
            select unit_id, event_uids from given_to
        ) as u on g.unit_id = u.unit_id
    ) as e
    inner join placed as c on e.event_uid = c.event_uid
    group by e.group_id
),

-- What an application opened in the days after, where the mail's own audit tells.
reach as (
    select g.group_id, count(distinct e.mailbox_id) as n_read, bool_or(coalesce(m.vip or m.kind = 'journal', false)) as is_sensitive
    from (select group_id, changed_day, tenant_id, unnest(list_concat(actor_ids, app_ids)) as id from grouped where kind = 'key') as g
    inner join edge_days as e on g.id = e.actor_id and g.tenant_id is not distinct from e.tenant_id and g.changed_day <= e.date
    left join mailboxes as m on e.mailbox_id = lower(m.mailbox_id)
    where e.date >= cast($window_from as date) - cast($slow_days as integer) and e.date <= cast($window_to as date)
    group by g.group_id
),

told as (
    select g.*, c.change_uids, c.credential_ids, c.changed_by, c.changer_net, c.is_new_changer_net,
        coalesce(t.onboarded_at > g.changed_at - to_days(30), false) as is_new_tenant,
        c.is_usual_changer and g.is_first_use and coalesce(r.n_read < $many_mailboxes and not r.is_sensitive, false) as is_plain_setup
    from grouped as g
    inner join group_changes as c on g.group_id = c.group_id
    left join reach as r on g.group_id = r.group_id
    left join tenants as t on g.tenant_id = t.tenant_id
)

select * exclude (group_id, unit_ids, is_new_tenant, is_plain_setup),
    first_seen - changed_at <= to_hours(cast($fast_hours as integer)) as is_fast,
    cast(date_diff('hour', changed_at, first_seen) as bigint) as hours, cast(len(mailboxes) as bigint) as n_mailboxes,
    false as is_declared, cast(null as boolean) as is_declared_net, true as is_service,
    case
        when kinds = ['permission'] then 'a permission to read mail'
        when kinds = ['key'] then 'a new key'
        when kind = 'key' then 'a key and a permission to read mail'
        when kind = 'role' then 'an administrative role'
        else 'access to the mailbox'
    end as granted,
    concat_ws(
        ' ',
        case
            when is_self then 'The account gave it to itself.'
            when has_new_net then 'The network is new to the application.'
            when kind = 'key' and is_first_use then 'The application had never been used before.'
            when is_dormant then 'The application had not been used for a long time.'
            when is_jump then 'The reading is a multiple of what is usual.'
        end,
        if(is_new_changer_net, 'The change came from a network that is new to who made it.', null),
        if(is_new_tenant, 'The tenant was onboarded shortly before.', null)
    ) as remark,
    case
        when is_new_tenant then 'low'
        when is_new_changer_net or has_new_net or is_self or (is_dormant and not is_first_use) then 'high'
        else 'medium'
    end as severity,
    if(is_fast, 1.0, 0.7) * if(kind = 'mailbox' and not is_self, 0.6, 1.0) as confidence,
    if(is_sensitive or len(mailboxes) >= 5, 1.5, 1.0) as impact
from told
-- Set up by its administrator at his usual place, and reading a few mailboxes that are nobody's in particular.
where not is_plain_setup
order by first_seen, tenant_id, beneficiary
