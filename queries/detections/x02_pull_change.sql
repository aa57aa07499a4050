/*---
id = "X02"
title = "A mailbox is copied over POP3 or IMAP from a new source"
hypothesis = "A thief copies the whole mailbox and leaves everything where it was."
family = "exfiltration"
severity = "medium"
tables = ["sessions", "first_seen", "context_days", "mailboxes", "networks"]
needs = ["sessions"]
identity = ["tenant_id", "protocol", "mailbox_id", "source"]
explanation = "Mailbox {mailbox_id} was pulled over {protocols:protocols} from {source_networks:nets}, which is new to it: {first_seen:span}, {n_sessions:count session}[, {n_retrieved:some message} retrieved][, {n_top:some head} read][, {n_bytes:size}][, {n_deleted:some message} deleted]. {finding}[ {remark}]"
step = "{first_seen:Days}, mailbox {mailbox_id} was pulled over {protocols:protocols} from {source_networks:nets}[, {n_retrieved:some message} in all]."
why = "{finding}"
false_positives = [
  "the owner sets up a telephone or a second computer: one or two sessions, and the owner signs in from there otherwise too",
  "a migration by a known tool: its source should be declared as a network",
  "the gateway's journal reader moves: see X01",
]
blind_spots = [
  "a copy from a network that the mailbox's owner used before",
  "servers whose log tells no client address, or no count of messages and bytes",
  "a copy in small pieces that stays below min_messages within follow_days",
  "mailboxes whose sources always change",
]
runbook = [
  "`retr_count`, `dele_count`, `maildrop_n`: list the sessions of the mailbox in order of time for the 7 days after the first one",
  "`src_net`: search the source in all protocols and tenants in the 30 days before and after",
  "`principal_id`: ask the owner about a new device on the day, and reset the password if there is none",
  "`client_fp`: compare the client with those of the 60 days before",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1071.003", name = "Mail Protocols", tactics = ["command-and-control"] },
  { technique = "T1048.003", name = "Exfiltration Over Unencrypted Non-C2 Protocol", tactics = ["exfiltration"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the first session of a source that count as history, at most" },
  { name = "min_active_days", default = 14, help = "active days that the mailbox must have before, or its owner's account where the protocol is new" },
  { name = "max_change_rate", default = 0.1, help = "new sources a day above which a further one says nothing" },
  { name = "follow_days", default = 7, help = "days of a new source that are added up" },
  { name = "min_messages", default = 50, help = "messages from which a copy counts" },
  { name = "min_first_messages", default = 20, help = "the same where the mailbox never used the protocol" },
  { name = "lift", default = 3.0, help = "how many times the largest day before the volume must be" },
  { name = "min_bytes", default = 50000000, help = "bytes from which volume alone counts" },
]

[[subjects]]
sql = "select exists (select 1 from days)"
reason = "no POP3 or IMAP session names a mailbox and a client address"

[evidence]
table = "access_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { protocol = "protocol", "coalesce(mailbox_id, principal_id)" = "evidence_mailboxes", src_net = "source_networks" }
---*/
with days as (
    select coalesce(tenant_id, '') as tenant_key, protocol, coalesce(mailbox_id, principal_id) as mailbox_id, src_net,
        max(src_asn) as src_asn, max(src_class) as src_class, date, count(*) as n_sessions, sum(retr_count) as n_retrieved,
        sum(dele_count) as n_deleted, sum(top_count) as n_top, sum(bytes_out) as n_bytes,
        max(retr_count) filter (where coalesce(dele_count, 0) <= 0.05 * retr_count and retr_count >= 0.95 * maildrop_n) as largest_copy,
        min(coalesce(start_ts, end_ts)) as first_ts, max(end_ts) as last_ts, max(principal_id) as principal_id,
        max(credential_id) as credential_id, max(client_fp) as client_fp
    from sessions
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and protocol in ('pop3', 'imap') and outcome <> 'failure' and src_net is not null
        and coalesce(mailbox_id, principal_id) is not null
    group by all
),

nets as (
    select tenant_key, protocol, mailbox_id, src_net, max(src_asn) as src_asn, min(date) as first_day, min(first_ts) as first_ts,
        max(principal_id) as principal_id
    from days
    group by tenant_key, protocol, mailbox_id, src_net
),

new_nets as (
    select n.*
    from nets as n
    where n.first_ts >= $window_from
        and not exists (
            select 1 from nets as o
            where o.tenant_key = n.tenant_key and o.mailbox_id = n.mailbox_id and o.src_asn = n.src_asn and o.first_day < n.first_day
        )
),

-- The owner was seen there before, by whatever way, or never used the protocol at all.
owners as (
    select entity_id as principal_id, attr_type, attr_value, min(first_ts) as first_ts, sum(n_days) as n_days
    from first_seen
    where entity_type = 'principal' and attr_type in ('src_net', 'protocol') and date <= cast($window_to as date)
        and entity_id in (select n.principal_id from new_nets as n)
    group by entity_id, attr_type, attr_value
),

owner_totals as (
    select n.tenant_key, n.protocol, n.mailbox_id, n.src_net, max(o.n_days) as n_days,
        bool_or(o.attr_type = 'protocol' and o.attr_value = n.protocol and o.first_ts < n.first_ts - to_days(1)) as has_protocol,
        bool_or(o.attr_type = 'src_net' and o.attr_value = n.src_net and o.first_ts < n.first_ts - to_days(1)) as has_net
    from new_nets as n
    inner join owners as o on n.principal_id = o.principal_id
    where o.first_ts < n.first_ts
    group by n.tenant_key, n.protocol, n.mailbox_id, n.src_net
),

histories as (
    select n.tenant_key, n.protocol, n.mailbox_id, n.src_net, count(distinct d.date) as n_days, count(distinct d.src_net) as n_nets,
        max(d.n_bytes) as most_bytes, sum(d.n_deleted) / nullif(sum(d.n_retrieved), 0) as dele_ratio
    from new_nets as n
    inner join days as d
        on n.tenant_key = d.tenant_key and n.protocol = d.protocol and n.mailbox_id = d.mailbox_id and n.first_day > d.date
    group by n.tenant_key, n.protocol, n.mailbox_id, n.src_net
),

pulls as (
    select n.tenant_key, n.protocol, n.mailbox_id, n.src_net, max(n.src_asn) as src_asn, max(d.src_class) as src_class,
        max(n.principal_id) as principal_id, min(d.first_ts) as first_seen, max(d.last_ts) as last_seen,
        cast(sum(d.n_sessions) as bigint) as n_sessions, cast(sum(d.n_retrieved) as bigint) as n_retrieved,
        cast(sum(d.n_deleted) as bigint) as n_deleted, cast(sum(d.n_top) as bigint) as n_top, cast(sum(d.n_bytes) as bigint) as n_bytes,
        max(d.largest_copy) as largest_copy, list(distinct d.credential_id) filter (where d.credential_id is not null) as credential_ids,
        list(distinct d.client_fp order by d.client_fp) filter (where d.client_fp is not null) as client_fps
    from new_nets as n
    inner join days as d using (tenant_key, protocol, mailbox_id, src_net)
    where d.date < n.first_day + cast($follow_days as integer)
    group by n.tenant_key, n.protocol, n.mailbox_id, n.src_net
),

judged as (
    select p.*, h.dele_ratio, h.n_days as n_history, h.n_days is null and not coalesce(o.has_protocol, false) as is_first_protocol,
        case
            when p.largest_copy >= $min_messages then 'full_copy'
            when coalesce(p.n_retrieved, 0) = 0 and p.n_top >= $min_messages then 'heads_only'
            when p.n_retrieved >= $min_messages and coalesce(p.n_deleted, 0) <= 0.05 * p.n_retrieved and h.dele_ratio >= 0.9
                then 'left_on_server'
            when h.n_days is null and not coalesce(o.has_protocol, false)
                and (p.n_retrieved >= $min_first_messages or p.n_bytes >= $min_bytes) then 'first_protocol'
            when p.n_bytes >= $min_bytes and p.n_bytes >= $lift * h.most_bytes then 'volume'
        end as flag
    from pulls as p
    left join histories as h using (tenant_key, protocol, mailbox_id, src_net)
    left join owner_totals as o using (tenant_key, protocol, mailbox_id, src_net)
    where not coalesce(o.has_net, false)
        and (
            (h.n_days >= $min_active_days and (h.n_nets - 0.5) / (h.n_days + 1) <= $max_change_rate)
            or (h.n_days is null and not coalesce(o.has_protocol, false) and o.n_days >= $min_active_days)
        )
),

-- The owner signs in from there otherwise too: most likely a new device.
also_owner as (
    select distinct j.tenant_key, j.protocol, j.mailbox_id, j.src_net
    from judged as j
    inner join context_days as c
        on j.principal_id = c.principal_id and j.src_net = c.src_net and j.protocol <> c.protocol
    where c.date >= cast($window_from as date) - 7 and c.date <= cast($window_to as date) and c.outcome = 'success'
        and j.flag is not null
),

net_starts as (
    select src_net, min(first_seen) as first_ts
    from judged
    where flag is not null
    group by src_net
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
declared_nets as (
    select distinct n.src_net
    from net_starts as n
    inner join declared_networks() as r
        on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
        and n.first_ts between r.valid_from and r.valid_to
)

select nullif(j.tenant_key, '') as tenant_id, j.protocol, j.mailbox_id, j.src_net as source, j.flag, j.first_seen, j.last_seen,
    [j.protocol] as protocols, [j.mailbox_id] as mailboxes, list_distinct([j.mailbox_id, j.principal_id]) as evidence_mailboxes,
    [j.src_net] as source_networks, [j.principal_id] as principal_ids, j.credential_ids, j.client_fps, j.n_sessions, j.n_retrieved,
    j.n_deleted, j.n_top, j.n_bytes, j.largest_copy, j.is_first_protocol, j.n_history, false as is_declared,
    cast(null as boolean) as is_declared_net,
    case j.flag
        when 'full_copy' then 'One session took all that lay there and deleted nothing.'
        when 'heads_only' then 'Only the heads of messages were read.'
        when 'left_on_server' then 'What was retrieved was left there, though the readers of this mailbox delete.'
        when 'first_protocol' then 'The mailbox had never been read over this protocol.'
        else 'That is a multiple of the largest day before.'
    end as finding,
    concat_ws(
        ' ',
        if(j.is_first_protocol and j.flag <> 'first_protocol', 'The mailbox had never been read over this protocol.', null),
        if(j.src_class in ('hosting', 'cloud', 'tor', 'proxy'), 'The source is a rented one.', null),
        if(a.src_net is not null, 'The owner uses the source in other ways too: perhaps a new device.', null)
    ) as remark,
    case
        when a.src_net is not null then 'low'
        when j.is_first_protocol or m.kind in ('journal', 'service', 'shared') or coalesce(m.vip, false)
            or j.src_class in ('hosting', 'cloud', 'tor', 'proxy') then 'high'
        else 'medium'
    end as severity,
    if(j.flag in ('full_copy', 'left_on_server', 'heads_only'), 1.0, 0.7) as confidence,
    case when m.kind = 'journal' then 2.0 when coalesce(m.vip, false) then 1.5 else 1.0 end as impact
from judged as j
left join also_owner as a using (tenant_key, protocol, mailbox_id, src_net)
left join declared_nets as d on j.src_net = d.src_net
left join mailboxes as m on j.mailbox_id = lower(m.mailbox_id)
where j.flag is not null and d.src_net is null and coalesce(j.src_class, '') not in ('vendor_egress', 'vendor', 'corporate', 'microsoft')
order by j.first_seen, j.mailbox_id, j.src_net
