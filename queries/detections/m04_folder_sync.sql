/*---
id = "M04"
title = "Whole folders of a mailbox copied"
hypothesis = "Whoever connects a mail client of his own to a mailbox copies all of its folders."
family = "mailbox_access"
severity = "high"
tables = ["edge_days", "context_days", "client_days", "first_seen", "mailboxes", "tenants"]
needs = ["context_days"]
identity = ["tenant_id", "actor_id", "kind", "source", "first_day"]
explanation = "{actor_id:Name} synchronised [{n_folders:some folder} of ]{n_mailboxes:count mailbox/mailboxes}[ in tenant {tenant_id}] {first_seen:span}[ from {source_networks:nets}]: {n_ops:ops}. {normal} All items of a synchronised folder count as taken.[ {remark}]"
step = "{first_seen:Days}, {actor_id:name} synchronised [{n_folders:some folder} of ]{n_mailboxes:count mailbox/mailboxes}, whose items all count as taken."
why = "{normal}"
false_positives = [
  "a new deputy whose mail client keeps a copy, where the log of the grant is missing",
  "a new computer that is set up on a journey",
  "a migration tool that works like a mail client",
]
blind_spots = [
  "a client from a network that the tenant knows, or of a kind that the user had",
  "protocols whose log does not tell synchronisation from reading: EWS on Exchange Server, IMAP and POP3 (see X02)",
  "a shared mailbox or a room that a colleague synchronises for the first time from a known network",
  "clients without a fingerprint",
]
runbook = [
  "`folders`, `access_kind`: list the synchronised folders of the day; take all items delivered to them before as taken",
  "`client_fp`, `user_agent`: compare the client with those of the mailbox in the 60 days before",
  "`src_net`, `outcome`: look for refused sign-ins from the same network in the 72 hours before",
  "`change_events.op`: look for permissions on the mailbox in the 30 days before",
]

attack = [{ technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] }]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the window in which actor, mailbox and source are known" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol, and a user, must go back" },
  { name = "client_days", default = 30, help = "days before the window in which the clients of a user are known" },
  { name = "many_folders", default = 3, help = "folders from which a colleague's first synchronisation from a known network is reported" },
  { name = "grant_days", default = 30, help = "days after a permission was given in which its first use is expected" },
  { name = "new_mailbox_days", default = 14, help = "age of a mailbox below which its first access by another is part of its set-up" },
]

[[requires]]
sql = "select exists(select 1 from edge_days where date >= cast($window_from as date) - 90 and date <= cast($window_to as date) and access_kind is not null) or exists(select 1 from access_events where date >= cast($window_from as date) and date <= cast($window_to as date) and access_kind is not null)"
reason = "no log tells synchronised folders from single items (MailItemsAccessed does)"

[[subjects]]
sql = "select exists (select 1 from log_begins where protocol in ('exchange', 'ews', 'graph', 'mapi', 'owa', 'eas') and began_at + to_days(cast($min_history_days as integer)) < $window_to)"
reason = "no tenant's mailbox log goes back more than $min_history_days days: every synchronisation looks new"

[evidence]
table = "access_events"
where = "access_kind = 'sync' and outcome <> 'failure'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", src_net = "source_networks" }
---*/
with edges as (
    select coalesce(tenant_id, '') as tenant_id, actor_id, mailbox_id, src_net, protocol, access_kind, credential_id, app_id,
        sync_folders, n_ops, first_ts, last_ts,
        coalesce(actor_type in ('service_principal', 'service_account', 'computer') or actor_id = app_id, false) as is_machine
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days as integer)
        and date <= cast($window_to as date) and first_ts < $window_to
        and coalesce(logon_type, '') not in ('owner', 'system', 'transport')
),

syncs as (
    select tenant_id, actor_id, mailbox_id, arg_min(src_net, first_ts) as src_net, arg_min(protocol, first_ts) as protocol,
        bool_or(is_machine) as is_machine, min(first_ts) as first_ts, max(last_ts) as last_ts, max(sync_folders) as n_folders,
        sum(n_ops) as n_ops, list_distinct(list(credential_id)) as credential_ids, list_distinct(list(app_id)) as app_ids
    from edges
    where access_kind = 'sync'
    group by tenant_id, actor_id, mailbox_id
    having min(first_ts) >= $window_from
),

-- A log that has just begun makes everything look new.
log_begins as (
    select coalesce(tenant_id, '') as tenant_id, protocol, min(first_ts) as began_at
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
    group by all
),

pairs_before as (
    select tenant_id, actor_id, mailbox_id, min(first_ts) as first_ts
    from edges
    where (tenant_id, actor_id, mailbox_id) in (select (s.tenant_id, s.actor_id, s.mailbox_id) from syncs as s)
    group by tenant_id, actor_id, mailbox_id
),

grants as (
    select coalesce(tenant_id, '') as tenant_id, ts, lower(coalesce(actor_id, '')) as granted_by,
        lower(coalesce(target_id, '') || ' ' || coalesce(new_value, '')) as what
    from change_events
    where op in ('mailbox_permission', 'folder_permission') and outcome <> 'failure'
        and date >= cast($window_from as date) - cast($grant_days as integer) and date <= cast($window_to as date)
),

granted as (
    select distinct s.tenant_id, s.actor_id, s.mailbox_id
    from syncs as s
    inner join grants as g
        on s.tenant_id = g.tenant_id and s.first_ts between g.ts and g.ts + to_days(cast($grant_days as integer))
        and s.actor_id <> g.granted_by
        and contains(g.what, split_part(s.mailbox_id, '@', 1)) and contains(g.what, split_part(s.actor_id, '@', 1))
),

-- The networks of whoever synchronises; bounded by those who do in the window. The rows of owners are not in edge_days:
-- synchronisation is rare enough among raw rows of the window.
own_rows as (
    select tenant_id, principal_id as actor_id, mailbox_id, src_net, client_fp, ts, protocol, op_count, credential_id, app_id,
        coalesce(len(folders), 1) as n_folders
    from access_events
    where date >= cast($window_from as date) and date <= cast($window_to as date) and ts >= $window_from and ts < $window_to
        and access_kind = 'sync' and outcome <> 'failure' and tenant_id is not null and principal_id is not null
        and mailbox_id is not null
        and src_net is not null and client_fp is not null and coalesce(principal_type, 'user') = 'user'
),

nets as (
    select entity_type, entity_id, attr_value as src_net, min(first_ts) as since
    from first_seen
    where attr_type = 'src_net' and n_days > 0
        and date >= cast($window_from as date) - cast($baseline_days + 31 as integer) and date <= cast($window_to as date)
        and (
            (
                entity_type = 'principal' and entity_id in (
                    select o.actor_id from own_rows as o
                    union
                    select s.actor_id from syncs as s
                )
            )
            or (
                entity_type = 'tenant' and attr_value in (
                    select o.src_net from own_rows as o
                    union
                    select s.src_net from syncs as s
                )
            )
        )
    group by entity_type, entity_id, attr_value
),

users_since as (
    select entity_id as actor_id, min(since) as since from nets where entity_type = 'principal' group by entity_id
),

-- A user whose account goes back far enough, at a network that neither the user nor anybody at the tenant used before.
strange_rows as (
    select o.*
    from own_rows as o
    inner join users_since as u on o.actor_id = u.actor_id and u.since < o.ts - to_days(cast($min_history_days as integer))
    left join nets as p on p.entity_type = 'principal' and o.actor_id = p.entity_id and o.src_net = p.src_net
    left join nets as t on t.entity_type = 'tenant' and o.tenant_id = t.entity_id and o.src_net = t.src_net
    where coalesce(p.since > o.ts - to_days(2), true) and coalesce(t.since > o.ts - to_days(2), true)
),

-- Which clients these few users had before. None known means none can be new.
clients as (
    select tenant_id, principal_id as actor_id, client_fp, min(first_ts) as since
    from client_days
    where date >= cast($window_from as date) - cast($client_days as integer) and date <= cast($window_to as date)
        and principal_id in (select s.actor_id from strange_rows as s)
    group by tenant_id, principal_id, client_fp
),

by_context as (
    select s.tenant_id, s.actor_id, 'new_context' as kind, s.src_net, min(s.ts) as first_ts, max(s.ts) as last_ts,
        list(distinct s.mailbox_id order by s.mailbox_id) as mailboxes, max(s.n_folders) as n_folders,
        sum(least(coalesce(s.op_count, 1), 274877906944)) as n_ops,
        list(distinct s.credential_id order by s.credential_id) filter (where s.credential_id is not null) as credential_ids,
        list(distinct s.app_id order by s.app_id) filter (where s.app_id is not null) as app_ids, list(distinct s.protocol) as protocols,
        list(distinct s.client_fp order by s.client_fp) as client_fps, false as is_machine, true as is_new_net
    from strange_rows as s
    inner join clients as c on s.tenant_id = c.tenant_id and s.actor_id = c.actor_id and s.client_fp = c.client_fp
    where c.since > s.ts - to_days(2)
        and exists (
            select 1 from clients as k
            where k.tenant_id = s.tenant_id and k.actor_id = s.actor_id and k.client_fp <> s.client_fp and k.since < s.ts - to_days(2)
        )
    group by s.tenant_id, s.actor_id, s.src_net
),

judged as (
    select s.*,
        s.src_net is not null and s.tenant_id <> '' and coalesce(u.since < s.first_ts - to_days(cast($min_history_days as integer)), false)
        and coalesce(p.since > s.first_ts - to_days(2), true) and coalesce(t.since > s.first_ts - to_days(2), true) as is_new_net,
        coalesce(m.kind in ('shared', 'room', 'journal'), false) as is_shared
    from syncs as s
    inner join pairs_before as b using (tenant_id, actor_id, mailbox_id)
    left join log_begins as l on s.tenant_id = l.tenant_id and s.protocol = l.protocol
    left join mailboxes as m on s.mailbox_id = lower(m.mailbox_id)
    left join users_since as u on s.actor_id = u.actor_id
    left join nets as p on p.entity_type = 'principal' and s.actor_id = p.entity_id and s.src_net = p.src_net
    left join nets as t on t.entity_type = 'tenant' and s.tenant_id = t.entity_id and s.src_net = t.src_net
    where b.first_ts > s.first_ts - to_days(2)
        and s.first_ts >= l.began_at + to_days(cast($min_history_days as integer))
        and coalesce(m.created_at < s.first_ts - to_days(cast($new_mailbox_days as integer)), true)
        and not exists (
            select 1 from granted as g where g.tenant_id = s.tenant_id and g.actor_id = s.actor_id and g.mailbox_id = s.mailbox_id
        )
),

by_pair as (
    select tenant_id, actor_id, 'new_pair' as kind, src_net, min(first_ts) as first_ts, max(last_ts) as last_ts,
        list(mailbox_id order by mailbox_id) as mailboxes, sum(n_folders) as n_folders, sum(n_ops) as n_ops,
        nullif(list_sort(list_distinct(flatten(list(credential_ids)))), []) as credential_ids,
        nullif(list_sort(list_distinct(flatten(list(app_ids)))), []) as app_ids, list(distinct protocol) as protocols,
        cast(null as varchar[]) as client_fps, bool_or(is_machine) as is_machine, bool_or(is_new_net) as is_new_net
    from judged
    where is_machine or is_new_net or (not is_shared and n_folders >= $many_folders)
    group by tenant_id, actor_id, src_net
),

found as (
    select * from by_pair
    union all by name
    select c.*
    from by_context as c
    where not exists (
        select 1 from by_pair as p where p.tenant_id = c.tenant_id and p.actor_id = c.actor_id and p.src_net = c.src_net and p.is_new_net
    )
),

interests as (
    select f.tenant_id, f.actor_id, f.kind, f.src_net, bool_or(m.vip) as has_vip, bool_or(m.kind = 'journal') as has_journal
    from (select tenant_id, actor_id, kind, src_net, unnest(mailboxes) as mailbox_id from found) as f
    left join mailboxes as m on f.mailbox_id = lower(m.mailbox_id)
    group by f.tenant_id, f.actor_id, f.kind, f.src_net
)

select nullif(f.tenant_id, '') as tenant_id, f.actor_id, f.kind, coalesce(f.src_net, '') as source,
    cast(f.first_ts as date) as first_day, f.first_ts as first_seen, f.last_ts as last_seen,
    f.mailboxes, cast(len(f.mailboxes) as bigint) as n_mailboxes, cast(f.n_folders as bigint) as n_folders,
    cast(f.n_ops as bigint) as n_ops, f.protocols, f.credential_ids, f.app_ids, f.client_fps, [f.actor_id] as principal_ids,
    if(f.src_net is null, null, [f.src_net]) as source_networks, f.is_machine as is_service, cast(null as boolean) as is_declared_net,
    f.kind = 'new_context' as is_new_client,
    case
        when f.kind = 'new_context' then 'Neither the network nor the client had been seen with this user, nor the network at the tenant.'
        when f.is_machine then 'An application has no need of a mail client''s copy, and it had not opened these before.'
        when f.is_new_net then 'It had not opened these before, and neither it nor the tenant had been seen at this network.'
        else 'It had not opened these before.'
    end as normal,
    concat_ws(
        ' ', if(i.has_vip, 'A mailbox of special interest is among them.', null),
        if(coalesce(t.onboarded_at > f.first_ts - interval 30 day, false), 'The tenant was onboarded shortly before.', null)
    ) as remark,
    case
        when coalesce(t.onboarded_at > f.first_ts - interval 30 day, false) then 'low'
        when f.kind = 'new_context' then 'medium'
        when f.is_machine or f.is_new_net then 'high'
        else 'low'
    end as severity,
    if(f.n_folders >= $many_folders, 1.0, 0.7) as confidence,
    case when i.has_journal then 2.0 when i.has_vip or len(f.mailboxes) >= 5 then 1.5 else 1.0 end as impact
from found as f
left join interests as i
    on f.tenant_id = i.tenant_id and f.actor_id = i.actor_id and f.kind = i.kind and f.src_net is not distinct from i.src_net
left join tenants as t on f.tenant_id = t.tenant_id
order by first_seen, f.tenant_id, f.actor_id, source
