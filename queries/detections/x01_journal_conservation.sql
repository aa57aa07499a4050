/*---
id = "X01"
title = "Second reader of a journal mailbox, or messages missing or copied"
hypothesis = "Every journaled message is delivered once, retrieved once and deleted once, by one reader: a thief of the journal breaks the balance or the habit."
family = "exfiltration"
severity = "critical"
tables = ["journal_hours", "first_seen", "gateway_jobs", "networks"]
needs = ["journal_hours"]
identity = ["mailbox_id", "flag", "source", "first_day"]
explanation = "The {mailbox_kind} {mailbox_id} {what}[ from {evidence_networks:nets}] {first_seen:span}: [{n_sessions:some POP3 session}, ][{n_delivered:count message} delivered, ]{n_retrieved:count message} retrieved[ ({n_bytes:size})] on {n_bad_days:count day}. {normal}[ {remark}]"
false_positives = [
  "the reader moves to another machine or network: the old one stops when the new one starts",
  "a reader that crashed and fetches the same messages again",
  "a log of deliveries that lacks hours, which makes retrievals look too many",
  "a poller that is set to come more often, where the gateway's own log of jobs is missing",
  "front-end and back-end logs of the same session, both ingested: a ratio of exactly two",
]
blind_spots = [
  "a thief on the reader's own machine who reads within its sessions, or in a declared network as it would, where no jobs are logged",
  "copies taken on the way to the journal mailbox",
  "single full copies by a known reader within one hour look like a retry and stay silent unless repeated",
  "access to the journal mailbox over other protocols than POP3",
  "without a log of deliveries only new readers and readers that stop deleting are found",
]
runbook = [
  "`src_net`, `client_fp`: list all POP3 sessions of the mailbox by reader for the 24 hours around the first one of the new reader",
  "`retr_count`, `dele_count`, `maildrop_n`: draw the hourly ledger for the 7 days before and after the first bad day",
  "`rcpt`: list deliveries to the mailbox in mail_events for the bad days; the senders and recipients of these messages are exposed",
  "`src_net`: look for the new reader's network in all protocols of the tenant over 30 days",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1020", name = "Automated Exfiltration", tactics = ["exfiltration"] },
  { technique = "T1048", name = "Exfiltration Over Alternative Protocol", tactics = ["exfiltration"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days of history, at most" },
  { name = "min_active_days", default = 21, help = "days on which the known readers must have read before a new reader counts" },
  { name = "min_ledger_days", default = 14, help = "days of history of the ratio of retrieved to delivered messages" },
  { name = "min_messages", default = 20, help = "messages a day below which the ledger is not judged" },
  { name = "min_difference", default = 10, help = "messages by which a day must be out of balance" },
  { name = "min_surprise", default = 1.5, help = "-log10 of the mailbox's own daily probability of a new reader network" },
  { name = "min_extra_sessions", default = 5, help = "sessions a day beyond the readers' own number, twice in a week, from which somebody comes besides" },
  { name = "steady_hours", default = 12, help = "hours a day (median) in which a mailbox that is not declared as journal must be read to count as polled by a machine" },
]

[[branches]]
name = "new readers"
needs = ["journal_hours"]

[[branches]]
name = "balance"
needs = ["journal_hours"]

[[subjects]]
part = "new readers"
sql = "select exists (select 1 from mailbox_days inner join mailbox_kinds using (mailbox_id) group by mailbox_id having count(distinct date) > $min_active_days)"
reason = "no journal mailbox was read on more than $min_active_days days"

[[subjects]]
part = "balance"
sql = "select exists (select 1 from normals where date >= cast($window_from as date) and greatest(n_ledger_days, n_dele_days) >= $min_ledger_days)"
reason = "no journal mailbox has $min_ledger_days days whose deliveries or deletions are logged"

[evidence]
table = "access_events"
where = "protocol = 'pop3'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { "lower(coalesce(mailbox_id, principal_id))" = "mailbox_id", src_net = "evidence_networks", client_fp = "evidence_clients" }
---*/
with ledger as (
    select date, tenant_id, hour, mailbox_id, is_journal, src_net, client_fp, credential_id, delivered, sessions, retrieved,
        retrieved_bytes, deleted, maildrop_max, first_ts, last_ts
    from journal_hours
    where date >= cast($window_from as date) - cast($baseline_days as integer)
        and date <= cast($window_to as date) and hour < $window_to
),

reader_days as (
    select mailbox_id, src_net, client_fp, date, min(first_ts) as first_ts, max(last_ts) as last_ts
    from ledger
    where sessions > 0
    group by mailbox_id, src_net, client_fp, date
),

mailbox_kinds as (
    select mailbox_id, any_value(tenant_id) as tenant_id, bool_or(is_journal) as is_journal
    from (
        select mailbox_id, date, any_value(tenant_id) as tenant_id, bool_or(is_journal) as is_journal,
            nullif(count(distinct hour) filter (where sessions > 0), 0) as n_hours
        from ledger
        group by mailbox_id, date
    ) as d
    group by mailbox_id
    having bool_or(is_journal) or (count(n_hours) >= $min_active_days and median(n_hours) >= $steady_hours)
),

-- Readers. New is a network that never read the mailbox, or a client that is new on a network that did.
known_longer as (
    select entity_id as credential_id, attr_value as src_net
    from first_seen
    where date <= cast($window_from as date) - cast($baseline_days as integer)
        and first_ts < cast($window_from as date) - cast($baseline_days as integer)
        and entity_type = 'credential' and attr_type = 'src_net' and n_days > 0
),

first_nets as (
    select mailbox_id, src_net, min(first_ts) as first_ts, max(last_ts) as last_ts
    from reader_days where src_net is not null group by mailbox_id, src_net
),

first_clients as (
    select mailbox_id, src_net, client_fp, min(first_ts) as first_ts, max(last_ts) as last_ts
    from reader_days where src_net is not null and client_fp is not null group by mailbox_id, src_net, client_fp
),

new_readers as (
    select *, row_number() over (order by mailbox_id, level, src_net, client_fp) as reader
    from (
        select f.mailbox_id, 'network' as level, f.src_net, cast(null as varchar) as client_fp, f.first_ts, f.last_ts
        from first_nets as f
        where f.first_ts >= $window_from
            and not exists (
                select 1 from ledger as l
                inner join known_longer as k on l.credential_id = k.credential_id and l.src_net = k.src_net
                where l.mailbox_id = f.mailbox_id and l.src_net = f.src_net
            )
        union all
        select c.mailbox_id, 'client' as level, c.src_net, c.client_fp, c.first_ts, c.last_ts
        from first_clients as c
        inner join first_nets as f on c.mailbox_id = f.mailbox_id and c.src_net = f.src_net and c.first_ts > f.first_ts
        where c.first_ts >= $window_from
            and cast(f.first_ts as date) <= cast(c.first_ts as date) - cast($min_active_days as integer)
            and exists (
                select 1 from first_clients as o
                where o.mailbox_id = c.mailbox_id and o.src_net = c.src_net
                    and cast(o.first_ts as date) <= cast(c.first_ts as date) - cast($min_active_days as integer)
            )
    ) as n
),

mailbox_days as (
    select r.mailbox_id, r.date, min(r.date) over (partition by r.mailbox_id) as first_day,
        bool_or(cast(f.first_ts as date) = r.date) as has_new_net
    from reader_days as r
    left join first_nets as f on r.mailbox_id = f.mailbox_id and r.src_net = f.src_net
    group by r.mailbox_id, r.date
),

reader_histories as (
    select n.reader, count(*) as n_days,
        count(*) filter (where d.date >= d.first_day + 14) as n,
        count(*) filter (where d.date >= d.first_day + 14 and d.has_new_net) as k
    from new_readers as n
    inner join mailbox_days as d
        on n.mailbox_id = d.mailbox_id and d.date < cast(n.first_ts as date)
        and d.date >= cast(n.first_ts as date) - cast($baseline_days as integer)
    group by n.reader
    having count(*) >= $min_active_days
),

-- An old reader that stops where the new one starts has moved; one that goes on has company.
old_readers as (
    select n.reader, max(r.last_ts) as last_ts
    from new_readers as n
    inner join reader_days as r
        on n.mailbox_id = r.mailbox_id and r.first_ts >= n.first_ts - to_days(30)
        and if(n.level = 'network', r.src_net is distinct from n.src_net, r.client_fp is distinct from n.client_fp)
    where not exists (
        select 1 from new_readers as o
        where o.mailbox_id = r.mailbox_id and o.src_net = r.src_net and o.level = 'network'
    )
    group by n.reader
),

reader_totals as (
    select n.reader, n.mailbox_id, n.src_net, cast(sum(l.retrieved) as bigint) as n_retrieved,
        cast(sum(l.retrieved_bytes) as bigint) as n_bytes, sum(l.deleted) as n_deleted, count(distinct l.date) as n_days,
        cast(sum(l.sessions) as bigint) as n_sessions,
        list(distinct l.credential_id order by l.credential_id) filter (where l.credential_id is not null) as credential_ids,
        list(distinct l.client_fp order by l.client_fp) filter (where l.client_fp is not null) as client_fps
    from new_readers as n
    inner join ledger as l
        on n.mailbox_id = l.mailbox_id and n.src_net = l.src_net and l.sessions > 0
        and (n.level = 'network' or n.client_fp = l.client_fp)
    group by n.reader, n.mailbox_id, n.src_net
),

-- Of a declared range smaller than src_net nobody can tell whether the readers of that network lie in it: null.
declared_nets as (
    select n.src_net,
        case
            when bool_or(r.is_whole and n.first_ts between r.valid_from and r.valid_to) then true
            when bool_and(r.is_whole) then false
        end as is_declared
    from (select src_net, min(first_ts) as first_ts from new_readers group by src_net) as n
    inner join declared_networks() as r on net_number(n.src_net) between r.first_net and r.last_net
    group by n.src_net
),

-- What the gateway says it did, where its log of jobs knows the mailbox at all.
jobs as (
    select lower(coalesce(mailbox_id, principal_id)) as mailbox_id, date, src_net, count(*) as n_jobs
    from gateway_jobs
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and service = 'pop3' and lower(coalesce(mailbox_id, principal_id)) in (select k.mailbox_id from mailbox_kinds as k)
    group by all
),

-- A reader that is the gateway at a new network empties the mailbox as ever, and its jobs know of its visits.
agreeing as (
    select t.reader
    from reader_totals as t
    where t.n_deleted >= 0.9 * t.n_retrieved
        and (
            t.mailbox_id not in (select j.mailbox_id from jobs as j)
            or t.n_sessions * 0.9 <= (select sum(j.n_jobs) from jobs as j where j.mailbox_id = t.mailbox_id and j.src_net = t.src_net)
        )
),

reader_findings as (
    select n.mailbox_id,
        case
            when d.is_declared and n.level = 'network'
                and not exists (select 1 from (select unnest(t.client_fps) as fp) as c where c.fp not in (
                    select o.client_fp from first_clients as o where o.mailbox_id = n.mailbox_id and o.first_ts < n.first_ts
                )) then if(a.reader is null, 'declared_reader', 'the_gateway')
            when coalesce(o.last_ts, n.first_ts) <= n.first_ts + to_hours(24) and n.last_ts >= n.first_ts + to_hours(48)
                and t.n_days >= 3 then 'reader_moved'
            else 'second_context'
        end as flag,
        if(n.level = 'network', n.src_net, n.src_net || ' ' || n.client_fp) as source, n.first_ts as first_seen,
        n.last_ts as last_seen, [n.src_net] as source_networks, [n.src_net] as evidence_networks,
        if(n.level = 'client', [n.client_fp], null) as evidence_clients, t.credential_ids, t.client_fps, t.n_days as n_bad_days,
        t.n_retrieved, t.n_bytes,
        if(n.level = 'network', 'was read', 'was read by a client that had never read it') as what,
        'In ' || h.n_days || ' days before only known readers came; a new one shows on about 1 day in '
        || cast(round((h.n + 1) / (h.k + 0.5)) as bigint) || '.' as normal,
        least(1.0, -log10((h.k + 0.5) / (h.n + 1)) / 1.5) * if(n.level = 'network', 1.0, 0.7) as confidence,
        t.n_sessions, if(d.src_net is null, false, d.is_declared) as is_declared_net,
        o.last_ts > n.first_ts + to_hours(24) as has_company
    from new_readers as n
    inner join reader_histories as h using (reader)
    inner join reader_totals as t using (reader)
    left join old_readers as o using (reader)
    left join agreeing as a using (reader)
    left join declared_nets as d on n.src_net = d.src_net
    where -log10((h.k + 0.5) / (h.n + 1)) >= least($min_surprise, log10(2.0 * (h.n + 1))) - 1e-9
),

-- Balance. What a second reader took is told above; here counts what the others did.
known_hours as (
    select l.mailbox_id, l.date, l.hour, sum(l.delivered) as delivered,
        sum(if(n.src_net is null, l.retrieved, 0)) as retrieved, sum(if(n.src_net is null, l.deleted, 0)) as deleted,
        sum(if(n.src_net is null, l.retrieved_bytes, 0)) as retrieved_bytes,
        sum(if(n.src_net is null, l.sessions, 0)) as sessions, max(l.maildrop_max) as maildrop_max,
        min(l.first_ts) as first_ts, max(l.last_ts) as last_ts
    from ledger as l
    left join (select distinct mailbox_id, source as src_net from reader_findings where flag = 'second_context') as n
        using (mailbox_id, src_net)
    group by l.mailbox_id, l.date, l.hour
),

days as (
    select mailbox_id, date, sum(delivered) as delivered, sum(retrieved) as retrieved, sum(deleted) as deleted,
        sum(retrieved_bytes) as retrieved_bytes, sum(sessions) as sessions, max(maildrop_max) as maildrop_max,
        count(*) filter (where delivered > 0) as hours_delivered, count(*) filter (where retrieved > 0) as hours_retrieved,
        max(retrieved - delivered) as peak_excess, min(first_ts) as first_ts, max(last_ts) as last_ts,
        if(sum(delivered) >= $min_messages, sum(retrieved) / sum(delivered), null) as ratio,
        if(sum(retrieved) >= $min_messages, sum(deleted) / sum(retrieved), null) as dele_ratio
    from known_hours
    group by mailbox_id, date
),

normals as (
    select *,
        median(ratio) over history as normal_ratio, greatest(0.02, 3 * mad(ratio) over history) as tolerance,
        count(ratio) over history as n_ledger_days, median(dele_ratio) over history as normal_dele_ratio,
        count(dele_ratio) over history as n_dele_days, median(sessions) over history as normal_sessions,
        mad(sessions) over history as spread_sessions, count(nullif(sessions, 0)) over history as n_session_days,
        max(maildrop_max) over history as normal_maildrop, max(maildrop_max) over next_days as next_maildrop,
        sum(sessions) over (
            partition by mailbox_id order by date range between interval 1 day following and interval 1 day following
        ) as next_sessions
    from days
    window
        history as (
            partition by mailbox_id order by date range between interval ($baseline_days) day preceding and interval 1 day preceding
        ),
        next_days as (partition by mailbox_id order by date range between current row and interval 1 day following)
),

balances as (
    select *,
        retrieved - normal_ratio * delivered as excess,
        sum(retrieved - normal_ratio * delivered) over (
            partition by mailbox_id order by date range between interval 6 day preceding and current row
        ) as excess_of_week,
        sum(normal_ratio * delivered - retrieved) over (
            partition by mailbox_id order by date range between current row and interval 2 day following
        ) as shortage_to_come
    from normals
),

flagged_days as (
    select *, 'second_copy' as flag, peak_excess >= 0.8 * excess as must_repeat
    from balances
    where n_ledger_days >= $min_ledger_days and ratio > normal_ratio + tolerance and excess >= $min_difference
        and excess_of_week >= 0.5 * excess and hours_delivered >= 0.8 * hours_retrieved
    union all
    select *, 'messages_vanish' as flag, false as must_repeat
    from balances
    where n_ledger_days >= $min_ledger_days and ratio < normal_ratio - tolerance and -excess >= $min_difference
        and shortage_to_come >= 0.5 * -excess and sessions >= 0.5 * normal_sessions and next_sessions > 0
        and coalesce(next_maildrop, 0) < coalesce(normal_maildrop, 0) + 0.5 * -excess
    union all
    select *, 'stopped_deleting' as flag, false as must_repeat
    from balances
    where n_dele_days >= $min_ledger_days and normal_dele_ratio >= 0.95 and dele_ratio <= 0.1
    union all
    -- A poller is a clock: who comes between its visits shows in their number, however few messages there are.
    select b.*, 'extra_sessions' as flag, true as must_repeat
    from balances as b
    left join (select mailbox_id, date, sum(n_jobs) as n_jobs from jobs group by mailbox_id, date) as j using (mailbox_id, date)
    where b.n_session_days >= $min_ledger_days
        and b.sessions - greatest(b.normal_sessions, coalesce(j.n_jobs, 0)) >= greatest($min_extra_sessions, 4 * b.spread_sessions)
),

-- One hour of repeated retrievals, or a day of many visits, is a reader that started again, unless it happens again.
repeated_days as (
    select *
    from (
        select *, bool_or(flag <> 'extra_sessions') over (partition by mailbox_id, date) as is_told,
            count(*) over (
                partition by mailbox_id, flag order by date range between interval 7 day preceding and interval 7 day following
            ) as n_near
        from flagged_days
    ) as f
    where not (flag = 'extra_sessions' and is_told) and (not must_repeat or n_near >= 2) and last_ts >= $window_from
),

islands as (
    select *, sum(is_start) over (partition by mailbox_id, flag order by date) as island
    from (
        select *, if(date - lag(date) over (partition by mailbox_id, flag order by date) <= 3, 0, 1) as is_start
        from repeated_days
    ) as d
),

balance_findings as (
    select mailbox_id, flag, '' as source, min(first_ts) as first_seen, max(last_ts) as last_seen, count(*) as n_bad_days,
        cast(sum(retrieved) as bigint) as n_retrieved, cast(sum(retrieved_bytes) as bigint) as n_bytes,
        cast(sum(delivered) as bigint) as n_delivered, if(flag = 'extra_sessions', cast(sum(sessions) as bigint), null) as n_sessions,
        case flag
            when 'second_copy' then 'gave out more messages than it received'
            when 'messages_vanish' then 'lost messages before its known readers came'
            when 'extra_sessions' then 'was opened more often than its readers do'
            else 'was read, but no longer emptied,'
        end as what,
        case flag
            when 'stopped_deleting' then 'Usually its readers delete nearly all that they retrieve.'
            when 'extra_sessions' then 'Usually they come ' || cast(round(avg(normal_sessions)) as bigint) || ' times a day.'
            else 'Usually its readers retrieve '
                || regexp_replace(cast(round(100 * avg(normal_ratio), 1) as varchar), '\.0$', '') || ' % of what it receives.'
        end as normal,
        least(1.0, 0.7 + 0.1 * (count(*) - 1)) as confidence
    from islands
    group by mailbox_id, flag, island
),

all_findings as (
    select * from reader_findings
    union all by name
    select * from balance_findings
)

select f.*, cast(f.first_seen as date) as first_day, m.tenant_id, [f.mailbox_id] as mailboxes,
    if(m.is_journal, 'journal mailbox', 'mailbox') as mailbox_kind,
    case
        when f.flag = 'declared_reader' then 'Network and client are the vendor''s, but it leaves messages or no job tells of it.'
        when f.flag = 'reader_moved' then 'The known reader stopped when this one began: it may have moved.'
        when f.flag = 'second_context' and f.has_company then 'The known reader went on beside it.'
        when f.flag = 'second_copy' then 'Someone took a second copy.'
        when f.flag = 'messages_vanish' then 'What is missing did not stay in the mailbox: another reader took it.'
    end as remark,
    m.is_journal, false as is_declared,
    case
        when f.flag in ('reader_moved', 'declared_reader') then 'medium'
        when f.flag in ('second_context', 'messages_vanish') then if(m.is_journal, 'critical', 'high')
        else if(m.is_journal, 'high', 'medium')
    end as severity,
    if(m.is_journal, 2.0, 1.0) as impact
from all_findings as f
inner join mailbox_kinds as m on f.mailbox_id = m.mailbox_id
where f.flag <> 'the_gateway'
order by f.first_seen, f.mailbox_id, f.flag, f.source
