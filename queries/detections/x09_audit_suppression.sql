/*---
id = "X09"
title = "The audit is switched off or falls silent"
hypothesis = "Who reads mail unseen first takes care that it is not written down."
family = "exfiltration"
severity = "high"
tables = ["change_events", "context_days", "coverage_hours", "mailboxes"]
needs = []
identity = ["tenant_id", "kind", "object_id", "first_day"]
explanation = "{what}[ {object_name}][ in tenant {tenant_id}] {first_seen:span}[ by {changed_by}].[ {silence}][ {remark}]"
step = "{what}[ {object_name}] {first_seen:days}[ by {changed_by}]."
why = "[{silence}]"
false_positives = [
  "a licence true-up or a leaver: the same change for many, driven by the personnel office",
  "a change of the audit configuration that was announced",
  "an outage of one service or of its collector, or of the one client that a log tells of",
]
blind_spots = [
  "an audit that was never on",
  "silence of a source that few people use, or that is quiet by nature at that hour",
  "a collector that loses some rows: a log is silent below low_share of its usual rows",
  "tenants whose administrator and directory audit was not ingested",
]
runbook = [
  "`new_value`, `old_value`: read the whole setting in change_events of the day, and switch the audit on again",
  "`mailbox_id`: treat the mailbox as read from the change on; list what is known of it in the 30 days after",
  "`actor_id`, `src_net`: list everything the actor did within 24 hours before and after the change",
  "`source`, `host`: ask whether the collector of the silent source worked in the hours of the gap",
]

attack = [
  { technique = "T1685.002", name = "Disable or Modify Cloud Log", tactics = ["defense-impairment"] },
  { technique = "T1685", name = "Disable or Modify Tools", tactics = ["defense-impairment"] },
  { technique = "T1070.008", name = "Clear Mailbox Data", tactics = ["stealth"] },
]

parameters = [
  { name = "bulk", default = 5, help = "users whose licence one actor changes alike on a day, from which it is administration" },
  { name = "silent_days", default = 3, help = "days after the change without a record of the mailbox, from which it fell silent" },
  { name = "baseline_days", default = 28, help = "days before the window that tell which hours of a source are busy" },
  { name = "min_people", default = 10, help = "accounts that use a source, for its silence to mean anything" },
  { name = "min_hours", default = 3, help = "silent hours in a row, at least, of a protocol that many people use" },
  { name = "min_rows", default = 100, help = "rows of a log on a day of the tenant, in the median, for its silence to mean anything" },
  { name = "low_share", default = 0.02, help = "share of the usual rows of the hour up to which a log is silent" },
  { name = "min_log_hours", default = 6, help = "silent hours in a row, at least, of a log, whoever it tells of" },
  { name = "max_probability", default = 0.000001, help = "how likely the silence may be by chance, from the source's own busy hours" },
]

[[branches]]
name = "audit that is switched off"
needs = ["change_events"]

[[branches]]
name = "sources that fall silent"
needs = ["context_days"]

[[branches]]
name = "logs that fall silent"
needs = ["coverage_hours"]

[[subjects]]
part = "sources that fall silent"
sql = "select exists (select 1 from busy)"
reason = "no source of a tenant has 14 days and usually $min_people people: silence says nothing"

[evidence]
table = "change_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
match = { event_uid = "change_uids" }
---*/
-- change_events is small and read whole: it has no derived table.
with changes as (
    select event_uid, ts, tenant_id, op, lower(op_raw) as op_raw, actor_id, src_net, lower(target_id) as target_id, target_type,
        lower(coalesce(attr, '') || '=' || coalesce(new_value, '')) as setting, lower(coalesce(old_value, '')) as old_setting
    from change_events
    where date >= cast($window_from as date) and date <= cast($window_to as date) and ts >= $window_from and ts < $window_to
        and outcome <> 'failure' and coalesce(actor_type, '') <> 'system'
        and op in ('audit_bypass', 'audit_setting', 'licence', 'retention', 'connector')
),

licences as (
    select event_uid,
        regexp_matches(setting, 'newvalue[^a-z]{1,20}\[(?:[^\]]|\][^,}]){0,400}disabledplans=\[[^\]]*advanced_auditing')
        or (
            contains(setting, 'advanced_auditing') and contains(setting, 'disabledplans')
            and not contains(old_setting, 'advanced_auditing')
        ) as has_plan_off,
        regexp_matches(old_setting, 'spe_e5|enterprisepremium|developerpack_e5|e5_compliance|advanced_auditing')
        and not regexp_matches(setting, 'spe_e5|enterprisepremium|developerpack_e5|e5_compliance|advanced_auditing')
            as has_lost_licence
    from changes
    where op = 'licence'
),

classed as (
    select c.*,
        case
            when c.op = 'audit_bypass' and regexp_matches(c.setting, 'auditbypassenabled=\$?true') then 'audit_bypass'
            when c.op = 'audit_setting' and c.target_type = 'mailbox' and (
                regexp_matches(c.setting, '(?:auditenabled|defaultauditset)=\$?(?:false|none)?(?:;|$)')
                or regexp_matches(c.setting, 'audit(?:owner|admin|delegate)=[^;]*(?:none|remove)')
                or regexp_matches(c.setting, 'auditlogagelimit=(?:[0-9]\.|0?[0-9]:|[0-2]?[0-9]\.)')
            ) then 'mailbox_audit_off'
            when c.op = 'audit_setting' and (
                regexp_matches(
                    c.setting, '(?:adminauditlogenabled|unifiedauditlogingestionenabled|auditenabled)=\$?false|auditdisabled=\$?true'
                )
                or regexp_matches(c.op_raw, '^(?:remove|disable)-.*audit')
            ) then 'audit_off'
            when l.has_plan_off then 'audit_plan_off'
            when l.has_lost_licence then 'audit_licence_lost'
            when c.op = 'connector' and regexp_matches(c.setting, 'protocollogginglevel=none') then 'connector_log_off'
            when c.op = 'retention' and (
                regexp_matches(c.setting, '(?:litigationholdenabled|singleitemrecoveryenabled)=\$?false|retaindeleteditemsfor=(?:0|1)[.:]')
                or regexp_matches(c.op_raw, '^(?:remove|disable)-.*(?:retention|hold)')
            ) then 'retention_cut'
        end as kind
    from changes as c
    left join licences as l on c.event_uid = l.event_uid
),

bulk_changes as (
    select kind, actor_id, cast(ts as date) as date
    from classed
    where kind in ('audit_licence_lost', 'audit_plan_off')
    group by kind, actor_id, cast(ts as date)
    having count(distinct target_id) >= $bulk
),

grouped as (
    select tenant_id, kind, coalesce(target_id, '') as object_id, cast(min(ts) as date) as first_day, min(ts) as first_seen,
        max(ts) as last_seen, list(distinct event_uid order by event_uid) as change_uids, max(actor_id) as changed_by,
        list(distinct actor_id order by actor_id) filter (where actor_id is not null) as principal_ids,
        list(distinct src_net order by src_net) filter (where src_net is not null) as source_networks
    from classed as c
    where kind is not null
        and not exists (
            select 1 from bulk_changes as b
            where b.kind = c.kind and b.actor_id is not distinct from c.actor_id and b.date = cast(c.ts as date)
        )
    group by tenant_id, kind, coalesce(target_id, ''), date_trunc('day', ts)
),

-- What the mailbox's owner was seen doing before and after: mail, and everything else.
traces as (
    select g.tenant_id, g.kind, g.object_id, g.first_seen,
        count(distinct c.date) filter (where c.is_mail and c.date < g.first_day) as n_mail_before,
        count(distinct c.date) filter (where c.is_mail and c.date > g.first_day) as n_mail_after,
        count(distinct c.date) filter (where not c.is_mail and c.date > g.first_day) as n_other_after
    from grouped as g
    inner join (
        select date, tenant_id, principal_id, protocol in ('exchange', 'owa', 'mapi', 'eas', 'ews', 'graph') as is_mail
        from context_days
        where date >= cast($window_from as date) - 14 and date <= cast($window_to as date) and outcome = 'success'
            and principal_id in (select o.object_id from grouped as o)
        group by all
    ) as c
        on g.object_id = c.principal_id and g.tenant_id is not distinct from c.tenant_id
        and c.date between g.first_day - 14 and g.first_day + 14
    group by g.tenant_id, g.kind, g.object_id, g.first_seen
),

change_findings as (
    select g.*, coalesce(t.n_other_after >= $silent_days and t.n_mail_before >= 3 and t.n_mail_after = 0, false) as is_silent,
        coalesce(t.n_other_after, 0) as n_other_after, coalesce(m.vip, false) as is_vip, cast(null as bigint) as n_hours
    from grouped as g
    left join traces as t using (tenant_id, kind, object_id, first_seen)
    left join mailboxes as m on g.object_id = lower(m.mailbox_id)
    where g.kind <> 'audit_licence_lost' or coalesce(t.n_other_after, 0) > 0
),

-- Hours in which a protocol that many people use was seen, from the bits of its days; and rows by hour of every log.
protocol_days as (
    select tenant_id, protocol, date, bit_or(hour_bits) as bits, count(distinct principal_id) as n_people
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and tenant_id is not null
    group by tenant_id, protocol, date
),

log_hours as (
    select tenant_id, source, date, extract(hour from hour at time zone 'UTC') as hour, sum(n_rows) as n_rows
    from coverage_hours
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and tenant_id is not null
    group by all
),

busy as (
    select tenant_id, 'protocol' as kind, protocol as subject, min(date) as first_day, max(date) as last_day
    from protocol_days
    group by tenant_id, protocol
    having quantile_cont(n_people, 0.5) >= $min_people and count(*) >= 14
    union all
    select tenant_id, 'log' as kind, source as subject, min(date) as first_day, max(date) as last_day
    from (select tenant_id, source, date, sum(n_rows) as n_rows from log_hours group by tenant_id, source, date) as d
    group by tenant_id, source
    having median(n_rows) >= $min_rows and count(*) >= 14
),

hour_rows as (
    select b.tenant_id, b.kind, b.subject, d.date + to_hours(h.hour) as hour_ts, h.hour, isodow(d.date) >= 6 as is_weekend,
        if(b.kind = 'log', coalesce(l.n_rows, 0), coalesce((p.bits >> h.hour) & 1, 0)) as n_rows
    from busy as b
    inner join (
        select unnest(generate_series(
            cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date), interval 1 day
        ))::date as date
    ) as d on d.date between b.first_day and b.last_day
    cross join (select unnest(range(24)) as hour) as h
    left join protocol_days as p
        on b.kind = 'protocol' and b.tenant_id = p.tenant_id and b.subject = p.protocol and d.date = p.date
    left join log_hours as l
        on b.kind = 'log' and b.tenant_id = l.tenant_id and b.subject = l.source and d.date = l.date and h.hour = l.hour
),

hours as (
    select *, if(n_rows > $low_share * avg(n_rows) over (partition by tenant_id, kind, subject, hour, is_weekend), 1, 0) as is_seen
    from hour_rows
),

rates as (
    select *,
        (sum(is_seen) over same_hour - is_seen + 0.5) / (count(*) over same_hour) as p_seen,
        sum(is_seen) over (partition by tenant_id, kind, subject order by hour_ts) as island
    from hours
    window same_hour as (partition by tenant_id, kind, subject, hour, is_weekend)
),

gaps as (
    select tenant_id, kind, subject, island, min(hour_ts) as first_hour, max(hour_ts) as last_hour, count(*) as n_hours,
        sum(ln(1 - least(p_seen, 0.999))) as log_p
    from rates
    where is_seen = 0
    group by tenant_id, kind, subject, island
    having count(*) >= if(kind = 'log', $min_log_hours, $min_hours) and sum(ln(1 - least(p_seen, 0.999))) <= ln($max_probability)
),

-- The tenant's other sources went on, and the same source of other tenants did: no outage of everything.
lone_gaps as (
    select g.*
    from gaps as g
    where g.first_hour at time zone 'UTC' >= $window_from
        and exists (
            select 1 from hours as o
            where o.tenant_id = g.tenant_id and o.kind = g.kind and o.subject <> g.subject and o.is_seen = 1
                and o.hour_ts between g.first_hour and g.last_hour
        )
        and not exists (
            select 1 from gaps as o
            where o.subject = g.subject and o.tenant_id <> g.tenant_id and o.first_hour <= g.last_hour and o.last_hour >= g.first_hour
        )
        -- What is told of a protocol is not told again of the log that holds it.
        and (g.kind = 'protocol' or not exists (
            select 1 from gaps as o
            where o.kind = 'protocol' and o.tenant_id = g.tenant_id and o.first_hour <= g.last_hour and o.last_hour >= g.first_hour
        ))
),

findings as (
    select tenant_id, kind, object_id, first_day, first_seen, last_seen, change_uids, changed_by, principal_ids, source_networks, is_silent,
        n_other_after, is_vip, n_hours, null as silent_kind
    from change_findings
    union all by name
    select tenant_id, 'source_silent' as kind, subject as object_id, cast(first_hour as date) as first_day,
        first_hour at time zone 'UTC' as first_seen, last_hour at time zone 'UTC' + to_hours(1) as last_seen,
        cast([] as varchar[]) as change_uids, false as is_silent, cast(0 as bigint) as n_other_after, false as is_vip, n_hours,
        kind as silent_kind
    from lone_gaps
)

select *, false as is_declared, if(kind = 'source_silent', null, nullif(object_id, '')) as object_name,
    if(contains(object_id, '@'), [object_id], null) as mailboxes,
    case kind
        when 'audit_bypass' then 'Everything that this account does is no longer audited:'
        when 'mailbox_audit_off' then 'The audit of a mailbox was switched off or cut:'
        when 'audit_off' then 'An audit of the organisation was switched off:'
        when 'audit_plan_off' then 'The advanced audit was taken from the licence of'
        when 'audit_licence_lost' then 'The licence that holds the advanced audit was taken from'
        when 'connector_log_off' then 'The protocol log of a connector was switched off:'
        when 'retention_cut' then 'What is kept of deleted mail was cut:'
        else 'Nothing of ' || object_id || ' was logged for ' || n_hours || ' hours'
    end as what,
    case
        when is_silent then 'Since then its mail has left no record, while its owner went on to sign in.'
        when kind = 'source_silent' then 'Other sources of the tenant, and this one at other tenants, went on.'
    end as silence,
    if(is_vip, 'The mailbox is one of those marked as important.', null) as remark,
    case
        when is_silent then 'critical'
        when kind in ('audit_bypass', 'audit_off') then 'high'
        when kind in ('mailbox_audit_off', 'audit_plan_off') then if(is_vip, 'high', 'medium')
        when kind in ('audit_licence_lost', 'connector_log_off') then if(is_vip, 'medium', 'low')
        when kind = 'source_silent' then if(silent_kind = 'protocol', 'medium', 'low')
        else 'low'
    end as severity,
    if(is_silent, 1.0, 0.8) as confidence, if(is_vip, 1.5, 1.0) as impact
from findings
order by first_seen, tenant_id, kind, object_id
