/*---
id = "T06"
title = "Dormant credential wakes up"
hypothesis = "A credential that its owner has forgotten is still valid, and nobody watches it: whoever finds it uses it."
family = "tenant_connection"
severity = "medium"
tables = ["first_seen", "context_days", "credentials", "bindings"]
needs = ["context_days"]
identity = ["entity_kind", "tenant_id", "entity_id", "first_day"]
explanation = "{entity_id:Name} was used again[ at tenant {tenant_id}] after {silent_days:count day} of silence[, from {strange_networks:nets}]: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}]. Before, it was used on {n_active_days:count day}, with no silence above {longest_days:count day}.[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} was used again after {silent_days:count day} of silence."
why = "Before, it was used on {n_active_days:count day}, with no silence above {longest_days:count day}."
false_positives = [
  "a yearly job, or a disaster-recovery test",
  "a legal hold or a migration for which an old account is used once more",
  "a log that is missing for the time of the silence: the finding says when nothing else covers it",
]
blind_spots = [
  "credentials with fewer active days before than min_active_days",
  "silences before the first month of the archive, and those shorter than silent_days",
  "ordinary users: people come back from leave",
  "refused use of a dormant credential",
]
runbook = [
  "`credential_id`, `ts`: list all days of use in context_days over the 400 days before, to see whether the silences have a rhythm",
  "`src_net`, `client_fp`: compare source and client with those of the last 30 days before the silence",
  "`action`, `item_count`: list what was done in the 24 hours after it woke",
  "`op`, `target_id`: look in change_events over the 30 days before for a new key, role or owner of the account",
]

attack = [
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "silent_days", default = 30, help = "days of silence that count, at least" },
  { name = "own_silences", default = 2.0, help = "how many times longer than the longest silence before it must be" },
  { name = "min_active_days", default = 5, help = "distinct active days that it must have before the silence" },
  { name = "history_days", default = 730, help = "days before the window whose months are looked at" },
  { name = "covered_share", default = 0.3, help = "share of the days of silence on which others must show in the log of the protocol, for the silence to be certain" },
]

[[requires]]
sql = "select exists (select 1 from first_seen where attr_type = 'any')"
reason = "first_seen has no months of use"

[[requires]]
sql = "select date_diff('day', min(first_ts), max(last_ts)) > 40 from first_seen where attr_type = 'any'"
reason = "the archive spans fewer than 40 days: no silence can be told from its beginning"

[[subjects]]
sql = "select exists (select 1 from spells where first_ts < $window_to - to_days(cast($silent_days as integer)) group by entity_kind, tenant_id, entity_id having sum(n_days) >= $min_active_days)"
reason = "no identity was used on $min_active_days days, $silent_days days before the end: no silence can be told"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "tenant_id", "coalesce(credential_id, '')" = "evidence_credentials", "coalesce(principal_id, app_id)" = "evidence_principals", src_net = "evidence_networks" }
---*/
-- Months before that of the window are known by their first and last use, the days from then on by their own.
with months as (
    select entity_type as entity_kind, tenant_id, entity_id, first_ts, last_ts, n_days
    from first_seen
    where attr_type = 'any' and entity_type in ('credential', 'principal') and n_days > 0
        and date < date_trunc('month', cast($window_from as date))
        and date >= cast($window_from as date) - cast($history_days as integer)
),

recent_use as (
    select date, tenant_id, protocol, principal_id, principal_type, credential_id, app_id, src_net, src_asn, client_fp, action,
        n_ops, items, first_ts, last_ts
    from service_days(
        date_trunc('month', cast($window_from as date)), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome = 'success' and action not in ('probe', 'any')
),

entity_use as (
    select 'credential' as entity_kind, credential_id as entity_id, * from recent_use where credential_id is not null
    union all
    select 'principal' as entity_kind, principal_id as entity_id, * from recent_use where principal_id is not null
),

spells as (
    select entity_kind, tenant_id, entity_id, first_ts, last_ts, n_days from months
    union all
    select entity_kind, tenant_id, entity_id, min(first_ts) as first_ts, max(last_ts) as last_ts, 1 as n_days
    from entity_use
    group by entity_kind, tenant_id, entity_id, date
),

silences as (
    select *, max(last_ts) over so_far as before_ts, sum(n_days) over so_far as n_active_days
    from spells
    window so_far as (
        partition by entity_kind, tenant_id, entity_id order by first_ts, last_ts rows between unbounded preceding and 1 preceding
    )
),

measured as (
    select *, epoch(first_ts - before_ts) / 86400 as gap_days,
        max(epoch(first_ts - before_ts) / 86400) over (
            partition by entity_kind, tenant_id, entity_id order by first_ts, last_ts
            rows between unbounded preceding and 1 preceding
        ) as longest_days
    from silences
),

wakings as (
    select entity_kind, tenant_id, entity_id, first_ts as woken_at, before_ts, gap_days, cast(n_active_days as bigint) as n_active_days,
        greatest(coalesce(longest_days, 0), 0) as longest_days
    from measured
    where first_ts >= $window_from and n_active_days >= $min_active_days
        and gap_days > greatest($silent_days, $own_silences * coalesce(longest_days, 0))
),

-- What was done in the first week after.
woken_use as (
    select w.woken_at, w.before_ts, w.gap_days, w.n_active_days, w.longest_days, u.*
    from wakings as w
    inner join entity_use as u
        on w.entity_kind = u.entity_kind and w.entity_id = u.entity_id and w.tenant_id is not distinct from u.tenant_id
        and w.woken_at <= u.first_ts and w.woken_at + interval 7 day > u.first_ts
),

-- A silence is certain where the same log shows others meanwhile: of the last sixty days of it.
log_days as (
    select distinct c.date, c.tenant_id, c.protocol, c.principal_id, c.credential_id
    from context_days as c
    where c.date >= cast($window_from as date) - 60 and c.date <= cast($window_to as date)
        and (c.tenant_id, c.protocol) in (select (u.tenant_id, u.protocol) from woken_use as u)
),

covered as (
    select w.entity_kind, w.tenant_id, w.entity_id, w.woken_at, count(distinct l.date) as n_covered
    from (select distinct entity_kind, tenant_id, entity_id, woken_at, before_ts, protocol from woken_use) as w
    inner join log_days as l
        on w.tenant_id is not distinct from l.tenant_id and w.protocol = l.protocol
        and cast(w.woken_at as date) > l.date and cast(w.before_ts as date) < l.date
        and cast(w.woken_at as date) - 60 <= l.date
        and w.entity_id is distinct from if(w.entity_kind = 'credential', l.credential_id, l.principal_id)
    group by w.entity_kind, w.tenant_id, w.entity_id, w.woken_at
),

known_values as (
    select entity_type as entity_kind, entity_id, attr_type, attr_value, min(first_ts) as first_ts
    from first_seen
    where entity_type in ('credential', 'principal') and attr_type in ('src_net', 'client_fp') and n_days > 0
        and date <= cast($window_to as date)
    group by entity_type, entity_id, attr_type, attr_value
    union all
    select entity_kind, entity_id, 'src_net' as attr_type, src_net as attr_value, min(first_ts) as first_ts
    from entity_use where src_net is not null group by entity_kind, entity_id, src_net
    union all
    select entity_kind, entity_id, 'client_fp' as attr_type, client_fp as attr_value, min(first_ts) as first_ts
    from entity_use where client_fp is not null group by entity_kind, entity_id, client_fp
),

described as (
    select u.entity_kind, u.tenant_id, u.entity_id, u.woken_at, u.gap_days, u.n_active_days, u.longest_days,
        min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
        list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
        list(distinct coalesce(u.credential_id, '') order by coalesce(u.credential_id, '')) as evidence_credentials,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct coalesce(u.principal_id, u.app_id) order by coalesce(u.principal_id, u.app_id)) as evidence_principals,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
        list(distinct u.src_net order by u.src_net) as evidence_networks,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null and k.attr_value is null) as strange_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
        bool_or(u.client_fp is not null and f.attr_value is null) as is_new_client,
        list(distinct u.protocol order by u.protocol) as protocols, list(distinct u.action order by u.action) as actions,
        cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items
    from woken_use as u
    left join known_values as k
        on u.entity_kind = k.entity_kind and u.entity_id = k.entity_id and k.attr_type = 'src_net' and u.src_net = k.attr_value
        and u.woken_at > k.first_ts
    left join known_values as f
        on u.entity_kind = f.entity_kind and u.entity_id = f.entity_id and f.attr_type = 'client_fp' and u.client_fp = f.attr_value
        and u.woken_at > f.first_ts
    group by u.entity_kind, u.tenant_id, u.entity_id, u.woken_at, u.gap_days, u.n_active_days, u.longest_days
),

-- What a credential's finding shows is not shown again for its principal.
told as (
    select d.*, coalesce(c.n_covered, 0) >= $covered_share * least(60, d.gap_days) as is_certain,
        coalesce(len(d.strange_networks), 0) > 0 as is_from_new_net
    from described as d
    left join covered as c
        on d.entity_kind = c.entity_kind and d.tenant_id is not distinct from c.tenant_id and d.entity_id = c.entity_id
        and d.woken_at = c.woken_at
    where d.entity_kind = 'credential' or not exists (
        select 1 from described as o
        where o.entity_kind = 'credential' and o.tenant_id is not distinct from d.tenant_id and o.woken_at = d.woken_at
            and list_contains(o.principal_ids, d.entity_id)
    )
)

select entity_kind, tenant_id, entity_id, cast(woken_at as date) as first_day, first_seen, last_seen, credential_ids,
    evidence_credentials, principal_ids, evidence_principals, app_ids, source_networks, evidence_networks,
    if(is_from_new_net, strange_networks, null) as strange_networks, client_fps, is_new_client, is_from_new_net, is_certain,
    protocols, actions, n_ops, n_items, cast(floor(gap_days) as bigint) as silent_days, n_active_days,
    cast(ceil(greatest(longest_days, 1)) as bigint) as longest_days, null as is_declared_net,
    case
        when not is_certain then 'Nothing else shows in that log meanwhile: the silence may be the log''s.'
        when is_from_new_net and is_new_client then 'Source and client are new to it.'
        when is_from_new_net then 'The source is new to it.'
        when is_new_client then 'Its client was never seen with it before.'
    end as remark,
    case
        when is_from_new_net then 'high'
        when not is_certain then 'low'
        when is_new_client then 'high'
        else 'medium'
    end as severity,
    if(is_certain, 0.9, 0.6) as confidence, 1.0 as impact
from told
order by first_seen, entity_kind, tenant_id, entity_id
