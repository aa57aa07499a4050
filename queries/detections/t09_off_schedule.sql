/*---
id = "T09"
title = "Batch credential used outside its hours"
hypothesis = "A job keeps hours; whoever has stolen its credential keeps others."
family = "tenant_connection"
severity = "medium"
tables = ["context_days", "credentials", "bindings", "networks"]
needs = ["context_days"]
identity = ["entity_kind", "tenant_id", "entity_id", "first_day"]
explanation = "{entity_id:Name} was used[ at tenant {tenant_id}] on {n_off_days:count day} in hours in which it had not been used in {n_weeks:count week} before ({hours:list}, UTC)[, {strange_source}]: {first_seen:span}. Usually it is used in {n_usual_hours:count hour} of the 168 of a week."
step = "{first_seen:Days}, {entity_id:name} was used on {n_off_days:count day} in hours that it had not kept in {n_weeks:count week} before."
why = "Usually it is used in {n_usual_hours:count hour} of the 168 of a week."
false_positives = [
  "a job that its owner runs more often, or at other times besides the old ones",
  "a backlog after an outage, where the missed hours lie more than a day back",
  "year's or quarter's end, which eight weeks do not show",
]
blind_spots = [
  "credentials that are used around the clock, or at irregular hours",
  "use in the job's own hours and the hour before and after, and fewer than min_days days of other use",
  "catching up after a missed run, and a schedule that was moved: hours that follow a missed one within a day do not count",
  "credentials first seen less than min_weeks weeks before the window",
]
runbook = [
  "`ts`, `action`: list the rows of the odd hours, and the 2 hours around each, in order of time",
  "`src_net`, `client_fp`: compare source and client in the odd hours with those in the usual ones over the 30 days before",
  "`item_count`, `bytes_out`: compare what was taken in the odd hours with what the job takes, by the day",
  "`credential_id`: ask its owner for the job's timetable and for manual runs in the 30 days of the window",
]

attack = [
  { technique = "T1029", name = "Scheduled Transfer", tactics = ["exfiltration"] },
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_weeks", default = 8, help = "weeks before the window from which the timetable is taken" },
  { name = "min_weeks", default = 4, help = "weeks of them in which the credential must have been used" },
  { name = "min_days", default = 3, help = "distinct days with use in odd hours" },
  { name = "max_occupied", default = 0.6, help = "share of the hours of a week that the timetable may fill" },
  { name = "lift", default = 4.0, help = "how many times more odd days than the credential's own past makes one expect" },
]

[[requires]]
sql = "select date_diff('day', min(date), max(date)) >= 35 from context_days"
reason = "context_days spans fewer than 35 days: a timetable needs at least four weeks before the window"

[[subjects]]
sql = "select exists (select 1 from timetables)"
reason = "no service credential or account was used in $min_weeks weeks before the window and keeps to a timetable"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(credential_id, principal_id, app_id)" = "entity_id", "date_trunc('hour', ts)" = "odd_hours", src_net = "evidence_networks" }
---*/
with service_use as (
    select date, coalesce(tenant_id, '') as tenant_key, coalesce(credential_id, principal_id, app_id) as entity_id,
        if(credential_id is null, 'principal', 'credential') as entity_kind, credential_id, principal_id, app_id, protocol, src_net,
        src_class, client_fp, action, n_ops, items, hour_bits
    from service_days(
        cast($window_from as date) - 7 * cast($baseline_weeks as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome = 'success' and action not in ('probe', 'any')
        and coalesce(credential_id, principal_id, app_id) is not null
),

day_bits as (
    select entity_kind, tenant_key, entity_id, date, bit_or(hour_bits) as bits
    from service_use
    group by entity_kind, tenant_key, entity_id, date
),

-- Hours of use; `slot` is the hour of the week, `week` 0 the window itself, 1 the week before it, and so on.
used_hours as (
    select d.entity_kind, d.tenant_key, d.entity_id, d.date, cast(h.hour as integer) as hour,
        cast((isodow(d.date) - 1) * 24 + h.hour as integer) as slot,
        if(d.date >= cast($window_from as date), 0, cast(ceil((cast($window_from as date) - d.date) / 7.0) as integer)) as week
    from day_bits as d
    inner join range(24) as h (hour) on ((d.bits >> cast(h.hour as integer)) & 1) = 1
),

-- Each slot counts for the hours before and after as well: clocks change, jobs run late.
wide_slots as (
    select distinct u.entity_kind, u.tenant_key, u.entity_id, u.week, (u.slot + o.shift + 168) % 168 as slot
    from used_hours as u
    cross join (select unnest([-1, 0, 1]) as shift) as o
    where u.week > 0
),

slots as (
    select entity_kind, tenant_key, entity_id, slot, count(*) as n_weeks, min(week) as only_week
    from wide_slots
    group by entity_kind, tenant_key, entity_id, slot
),

timetables as (
    select u.entity_kind, u.tenant_key, u.entity_id, count(distinct u.week) as n_weeks, count(distinct u.slot) as n_usual_hours,
        count(distinct u.date) as n_days,
        count(distinct u.date) filter (where s.n_weeks = 1 and s.only_week = u.week) as n_odd_days
    from used_hours as u
    inner join slots as s
        on u.entity_kind = s.entity_kind and u.tenant_key = s.tenant_key and u.entity_id = s.entity_id and u.slot = s.slot
    where u.week > 0
    group by u.entity_kind, u.tenant_key, u.entity_id
    having count(distinct u.week) >= $min_weeks and count(distinct u.slot) <= $max_occupied * 168
),

odd_hours as (
    select u.entity_kind, u.tenant_key, u.entity_id, u.date, u.hour, u.slot,
        cast(u.date as timestamptz) + to_hours(u.hour) as odd_ts
    from used_hours as u
    semi join timetables using (entity_kind, tenant_key, entity_id)
    anti join slots using (entity_kind, tenant_key, entity_id, slot)
    where u.week = 0
),

-- Hours that the job keeps in three weeks of four, and did not keep: what comes within a day after is its catching up.
candidates as (
    select entity_kind, tenant_key, entity_id
    from odd_hours
    group by entity_kind, tenant_key, entity_id
    having count(distinct date) >= $min_days
),

regular_slots as (
    select u.entity_kind, u.tenant_key, u.entity_id, u.slot
    from used_hours as u
    inner join timetables as t using (entity_kind, tenant_key, entity_id)
    where u.week > 0
    group by u.entity_kind, u.tenant_key, u.entity_id, u.slot, t.n_weeks
    having count(distinct u.week) >= 0.75 * t.n_weeks
),

window_days as (
    select cast(unnest(generate_series(cast($window_from as date) - 1, cast($window_to as date), interval 1 day)) as date) as date
),

missed_hours as (
    select r.entity_kind, r.tenant_key, r.entity_id,
        cast(w.date as timestamptz) + to_hours(cast(r.slot % 24 as integer)) as missed_ts
    from regular_slots as r
    semi join candidates using (entity_kind, tenant_key, entity_id)
    inner join window_days as w on r.slot // 24 = isodow(w.date) - 1
    anti join (
        select entity_kind, tenant_key, entity_id, date, unnest([slot, (slot + 1) % 168, (slot + 167) % 168]) as slot
        from used_hours
    ) as u
        on r.entity_kind = u.entity_kind and r.tenant_key = u.tenant_key and r.entity_id = u.entity_id and r.slot = u.slot
        and abs(w.date - u.date) <= 1
),

unexcused as (
    select o.*
    from odd_hours as o
    semi join candidates using (entity_kind, tenant_key, entity_id)
    where not exists (
        select 1 from missed_hours as m
        where m.entity_kind = o.entity_kind and m.tenant_key = o.tenant_key and m.entity_id = o.entity_id
            and m.missed_ts < o.odd_ts and m.missed_ts >= o.odd_ts - interval 24 hour
    )
),

active_days as (
    select entity_kind, tenant_key, entity_id, count(distinct date) as n_window_days
    from used_hours
    where week = 0
    group by entity_kind, tenant_key, entity_id
),

judged as (
    select o.entity_kind, o.tenant_key, o.entity_id, t.n_weeks, t.n_usual_hours, min(o.date) as first_day,
        min(o.odd_ts) as first_seen, max(o.odd_ts) + interval 1 hour as last_seen, count(distinct o.date) as n_off_days,
        list(distinct o.odd_ts order by o.odd_ts) as odd_hours,
        list(distinct strftime(o.date, '%a') || ' ' || lpad(cast(o.hour as varchar), 2, '0') || ':00') as hours,
        (t.n_odd_days + 0.5) / (t.n_days + 1) * max(a.n_window_days) as n_expected
    from unexcused as o
    inner join timetables as t using (entity_kind, tenant_key, entity_id)
    inner join active_days as a using (entity_kind, tenant_key, entity_id)
    group by o.entity_kind, o.tenant_key, o.entity_id, t.n_weeks, t.n_usual_hours, t.n_odd_days, t.n_days
    having count(distinct o.date) >= greatest(
        $min_days, $lift * (t.n_odd_days + 0.5) / (t.n_days + 1) * max(a.n_window_days)
    )
),

-- Contexts that show the odd hours. Their sums are those of the whole day.
odd_contexts as (
    select o.entity_kind, o.tenant_key, o.entity_id, u.src_net, u.src_class, u.client_fp, u.protocol, u.action, u.credential_id,
        u.principal_id, u.app_id, sum(u.n_ops) as n_ops, sum(u.items) as items
    from (select distinct entity_kind, tenant_key, entity_id, date, hour from unexcused) as o
    inner join service_use as u
        on o.entity_kind = u.entity_kind and o.tenant_key = u.tenant_key and o.entity_id = u.entity_id and o.date = u.date
        and ((u.hour_bits >> o.hour) & 1) = 1
    semi join judged as j on o.entity_kind = j.entity_kind and o.tenant_key = j.tenant_key and o.entity_id = j.entity_id
    group by all
),

usual_nets as (
    select entity_kind, tenant_key, entity_id, src_net
    from service_use
    where date < cast($window_from as date) and src_net is not null
    group by entity_kind, tenant_key, entity_id, src_net
),

contexts_of as (
    select c.entity_kind, c.tenant_key, c.entity_id,
        list(distinct c.credential_id order by c.credential_id) filter (where c.credential_id is not null) as credential_ids,
        list(distinct c.principal_id order by c.principal_id) filter (where c.principal_id is not null) as principal_ids,
        list(distinct c.app_id order by c.app_id) filter (where c.app_id is not null) as app_ids,
        list(distinct c.src_net order by c.src_net) filter (where c.src_net is not null) as source_networks,
        list(distinct c.src_net order by c.src_net) as evidence_networks,
        list(distinct c.client_fp order by c.client_fp) filter (where c.client_fp is not null) as client_fps,
        list(distinct c.protocol order by c.protocol) as protocols, list(distinct c.action order by c.action) as actions,
        bool_or(c.src_net is not null and n.src_net is null) as is_from_new_net,
        bool_and(coalesce(c.src_class, '') in ('vendor_egress', 'vendor', 'corporate', 'microsoft')) as is_declared,
        cast(sum(c.n_ops) as bigint) as n_ops, cast(sum(c.items) as bigint) as n_items
    from odd_contexts as c
    left join usual_nets as n using (entity_kind, tenant_key, entity_id, src_net)
    group by c.entity_kind, c.tenant_key, c.entity_id
)

select j.entity_kind, nullif(j.tenant_key, '') as tenant_id, j.entity_id, j.first_day, j.first_seen, j.last_seen, j.n_off_days,
    j.odd_hours, list_sort(j.hours) as hours, j.n_weeks, j.n_usual_hours, round(j.n_expected, 2) as n_expected, c.credential_ids,
    c.principal_ids, c.app_ids, c.source_networks, c.evidence_networks, c.client_fps, c.protocols, c.actions, c.is_from_new_net,
    c.is_declared, c.n_ops, c.n_items,
    if(c.is_from_new_net, 'from a network new to it', null) as strange_source,
    if(c.is_from_new_net, 'medium', 'low') as severity, least(1.0, 0.3 + 0.1 * j.n_off_days) as confidence, 1.0 as impact
from judged as j
inner join contexts_of as c using (entity_kind, tenant_key, entity_id)
order by j.first_seen, j.entity_kind, j.tenant_key, j.entity_id
