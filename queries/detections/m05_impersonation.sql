/*---
id = "M05"
title = "Mailboxes opened in the name of others for the first time"
hypothesis = "Whoever got the right to act as other users reads mailboxes that the account never touched before."
family = "mailbox_access"
severity = "high"
tables = ["edge_days", "context_days", "change_events", "first_seen", "bindings", "mailboxes", "tenants", "networks"]
needs = []
identity = ["tenant_id", "kind", "actor_key", "first_day"]
explanation = "[{actor_id:Name}][{stranger}] {what} {first_seen:span}[ from {source_networks:nets}][ in tenant {tenant_id}]: {n_ops:count operation}[ on {n_items:some item}][ in {n_mailboxes:some mailbox/mailboxes}]. {normal}[ {remark}]"
step = "{first_seen:Days}, [{actor_id:name}][{stranger}] {what}[, {n_mailboxes:some mailbox/mailboxes} in all]."
why = "{normal}"
false_positives = [
  "an assistant, a help desk or a new deputy who was given several mailboxes, where the log of that grant is missing",
  "a product that begins its work under an account of its own",
  "a table of bindings that no longer says what a credential is for",
  "free/busy requests between two organisations and Exchange servers that call each other",
]
blind_spots = [
  "an actor that opens as many mailboxes of others every week: see M01 and M02",
  "a new mailbox or two of an actor that opens them by delegation: this is everyday life",
  "clients that use an Exchange server's own account after it did so every day",
  "a new application whose rights an administrator gave from the usual network, unless it opens mailboxes of special interest: see L05",
  "pairs older than baseline_days, and protocols whose log began less than min_history_days before",
]
runbook = [
  "`actor_id`, `mailbox_id`: list the pairs in order of time, and those of the 90 days before",
  "`change_events.op`: look for role, mailbox permission and consent changes that name the actor in the 30 days before",
  "`effective_user`, `op_raw`: list what was done in the name of the users during the days of the finding",
  "`reason`: for a steered front end, list all requests of the `src_net` on the day, whatever their outcome",
]

attack = [
  { technique = "T1098.002", name = "Additional Email Delegate Permissions", tactics = ["persistence", "privilege-escalation"] },
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1190", name = "Exploit Public-Facing Application", tactics = ["initial-access"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a pair of actor and mailbox is known" },
  { name = "reach_days", default = 30, help = "days that new pairs of one actor may spread over to count together" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol must go back" },
  { name = "max_known_pairs", default = 4, help = "mailboxes of others that the actor opened before, above which new ones are ordinary" },
  { name = "min_pairs", default = 3, help = "new mailboxes from which an application, a service account or an administrator is reported" },
  { name = "min_pairs_of_user", default = 5, help = "new mailboxes from which a delegate is reported" },
  { name = "new_mailbox_days", default = 14, help = "age of a mailbox below which its first access by another is part of its set-up" },
]

[[branches]]
name = "pairs of account and mailbox"
needs = ["edge_days"]

[[branches]]
name = "single requests"
needs = ["access_events"]

[[subjects]]
part = "pairs of account and mailbox"
sql = "select exists (select 1 from log_begins where (tenant_id, protocol) in (select (e.tenant_id, e.protocol) from edges as e) and began_at + to_days(cast($min_history_days as integer)) < $window_to)"
reason = "no tenant's mailbox log goes back more than $min_history_days days: every pair looks new"

[evidence]
table = "access_events"
where = "outcome <> 'failure' or reason like 'AnchorMailbox %' or reason like 'BackEndCookie %'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "evidence_actor", mailbox_id = "evidence_mailboxes", src_net = "evidence_networks", reason = "steered_by" }
---*/
with edges as (
    select coalesce(tenant_id, '') as tenant_id, actor_id, mailbox_id, protocol, credential_id, app_id, src_net, n_ops, items,
        first_ts, last_ts,
        case
            when actor_type in ('service_principal', 'service_account', 'computer') or actor_id = app_id
                or actor_id in (select h.principal_id from held_principals() as h) then 'machine'
            when logon_type in ('admin', 'delegated_admin') then 'admin'
            when logon_type in ('delegate', 'best_access') then 'delegate'
        end as how
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days + $reach_days as integer)
        and date <= cast($window_to as date)
        and first_ts < $window_to
        and coalesce(logon_type, '') <> 'owner'
        and coalesce(actor_type, '') not in ('system', 'anonymous')
),

pairs as (
    select tenant_id, actor_id, mailbox_id, arg_min(how, first_ts) as how, arg_min(protocol, first_ts) as protocol,
        min(first_ts) as first_ts, max(last_ts) as last_ts, sum(n_ops) as n_ops, sum(items) as n_items,
        list_distinct(list(credential_id)) as credential_ids, list_distinct(list(app_id)) as app_ids,
        list_distinct(list(src_net)) as nets
    from edges
    where how is not null
    group by tenant_id, actor_id, mailbox_id
),

-- A log that has just begun makes every pair look new.
log_begins as (
    select coalesce(tenant_id, '') as tenant_id, protocol, min(first_ts) as began_at
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days + $reach_days as integer)
        and date <= cast($window_to as date)
    group by all
),

-- Given by somebody else, not by the actor itself: the change is what X06 and L05 look at.
grants as (
    select coalesce(tenant_id, '') as tenant_id, ts, lower(coalesce(actor_id, '')) as granted_by,
        lower(coalesce(target_id, '') || ' ' || coalesce(new_value, '')) as what
    from change_events
    where op in ('mailbox_permission', 'folder_permission') and outcome <> 'failure'
        and date >= cast($window_from as date) - cast(2 * $reach_days as integer) and date <= cast($window_to as date)
),

granted as (
    select distinct p.tenant_id, p.actor_id, p.mailbox_id
    from pairs as p
    inner join grants as g
        on p.tenant_id = g.tenant_id and p.first_ts between g.ts and g.ts + to_days(cast($reach_days as integer))
        and p.actor_id <> g.granted_by
        and contains(g.what, split_part(p.mailbox_id, '@', 1)) and contains(g.what, split_part(p.actor_id, '@', 1))
    where p.how <> 'machine' and p.first_ts >= $window_from - to_days(cast($reach_days as integer))
),

declared as (
    select tenant_id, lower(credential_id) as credential_id, lower(principal_id) as principal_id, scope,
        coalesce(valid_from, timestamptz '1900-01-01 00:00:00+00') as valid_from,
        coalesce(valid_to, timestamptz '2999-01-01 00:00:00+00') as valid_to
    from bindings
),

held_by as (
    select p.tenant_id, p.actor_id, p.mailbox_id, p.first_ts, unnest(p.credential_ids) as credential_id,
        cast(null as varchar) as principal_id
    from pairs as p
    union all
    select p.tenant_id, p.actor_id, p.mailbox_id, p.first_ts, null as credential_id, p.actor_id as principal_id
    from pairs as p
),

declared_actors as (
    select h.tenant_id, h.actor_id, h.mailbox_id,
        bool_or(
            h.tenant_id in ('', h.bound_tenant) and h.first_ts between h.valid_from and h.valid_to
            and (
                coalesce(h.scope, 'mailboxes') = 'mailboxes'
                or (h.scope = 'journal' and (coalesce(m.kind, '') = 'journal' or h.mailbox_id = h.bound_principal))
            )
        ) as is_within
    from (
        select h.*, d.tenant_id as bound_tenant, d.scope, d.principal_id as bound_principal, d.valid_from, d.valid_to
        from held_by as h inner join declared as d on h.credential_id = d.credential_id
        union all
        select h.*, d.tenant_id, d.scope, d.principal_id, d.valid_from, d.valid_to
        from held_by as h inner join declared as d on h.principal_id = d.principal_id
    ) as h
    left join mailboxes as m on h.mailbox_id = lower(m.mailbox_id)
    group by h.tenant_id, h.actor_id, h.mailbox_id
),

judged as (
    select p.*, coalesce(not d.is_within, false) as is_outside, coalesce(m.vip, false) as is_vip,
        coalesce(m.kind = 'journal', false) as is_journal,
        p.first_ts >= $window_from - to_days(cast($reach_days as integer))
        and p.first_ts >= b.began_at + to_days(cast($min_history_days as integer))
        and coalesce(m.created_at < p.first_ts - to_days(cast($new_mailbox_days as integer)), true)
        and g.mailbox_id is null as is_new
    from pairs as p
    left join declared_actors as d using (tenant_id, actor_id, mailbox_id)
    left join granted as g using (tenant_id, actor_id, mailbox_id)
    left join mailboxes as m on p.mailbox_id = lower(m.mailbox_id)
    left join log_begins as b on p.tenant_id = b.tenant_id and p.protocol = b.protocol
),

-- New pairs less than reach_days apart belong together; a run of them begins where there was none before.
placed as (
    select *,
        sum(cast(starts as integer)) over (partition by tenant_id, actor_id, is_outside order by first_ts, mailbox_id) as run
    from (
        select *,
            coalesce(
                first_ts - lag(first_ts) over (partition by tenant_id, actor_id, is_outside order by first_ts, mailbox_id)
                > to_days(cast($reach_days as integer)), true
            ) as starts
        from judged where is_new
    ) as n
),

runs as (
    select tenant_id, actor_id, if(is_outside, 'out_of_scope', 'new_pairs') as kind, min(how) as how, run, min(first_ts) as first_seen,
        max(last_ts) as last_seen, count(*) as n_mailboxes,
        list(mailbox_id order by mailbox_id) as mailboxes, sum(n_ops) as n_ops, sum(n_items) as n_items,
        list_sort(list_distinct(flatten(list(credential_ids)))) as credential_ids,
        list_sort(list_distinct(flatten(list(app_ids)))) as app_ids, list_sort(list_distinct(flatten(list(nets)))) as nets,
        bool_or(is_vip) as has_vip, bool_or(is_journal) as has_journal
    from placed
    group by tenant_id, actor_id, is_outside, run
    having max(first_ts) >= $window_from and (is_outside or count(*) >= least($min_pairs, $min_pairs_of_user))
),

known as (
    select r.tenant_id, r.actor_id, r.kind, r.run, count(p.mailbox_id) as n_before,
        count(p.mailbox_id) filter (
            where p.is_outside and p.first_ts < r.first_seen - to_days(cast($min_history_days as integer))
        ) as n_outside_before,
        bool_or(list_has_any(r.nets, p.nets)) as is_known_net
    from runs as r
    left join judged as p on r.tenant_id = p.tenant_id and r.actor_id = p.actor_id and r.first_seen > p.first_ts
    group by r.tenant_id, r.actor_id, r.kind, r.run
),

-- Rights that the log shows as given: an application that begins its work; L05 looks at who gave them. Where that was an
-- administrator at the own desk, the application is a new integration, unless it goes for mailboxes that matter.
offices as (
    select first_net, last_net, valid_from, valid_to from declared_networks() where kind = 'corporate' and is_whole
),

rights as (
    select coalesce(c.tenant_id, '') as tenant_id, c.ts, lower(coalesce(c.target_id, '') || ' ' || coalesce(c.new_value, '')) as what,
        lower(c.actor_id) as granted_by, c.src_net, coalesce(bool_or(o.first_net is not null), false) as is_office
    from change_events as c
    left join offices as o on net_number(c.src_net) between o.first_net and o.last_net and c.ts between o.valid_from and o.valid_to
    where c.op in ('consent', 'add_app', 'add_app_role', 'add_role') and c.outcome <> 'failure'
        and c.date >= cast($window_from as date) - cast(2 * $reach_days as integer) and c.date <= cast($window_to as date)
    group by all
),

homes as (
    select entity_id as granted_by, attr_value as src_net, min(first_ts) as since
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
        and entity_id in (select g.granted_by from rights as g)
    group by entity_id, attr_value
),

entitled as (
    select r.tenant_id, r.actor_id, r.kind, r.run,
        bool_and(g.is_office or coalesce(h.since < g.ts - to_days(cast($min_history_days as integer)), false)) as is_from_home,
        bool_or(
            not g.is_office and g.src_net is not null
            and (h.since is null or h.since >= g.ts - to_days(cast($min_history_days as integer)))
        ) as is_strange
    from runs as r
    inner join rights as g on r.tenant_id = g.tenant_id and r.first_seen between g.ts and g.ts + to_days(cast($reach_days as integer))
    left join homes as h on g.granted_by = h.granted_by and g.src_net = h.src_net
    where contains(g.what, r.actor_id) or contains(g.what, r.app_ids[1])
    group by r.tenant_id, r.actor_id, r.kind, r.run
),

by_pairs as (
    select r.tenant_id, r.kind, r.actor_id, r.first_seen, r.last_seen, r.n_mailboxes, r.mailboxes, r.n_ops, r.n_items, r.credential_ids,
        r.app_ids, r.nets, r.has_vip, r.has_journal, cast(null as varchar[]) as steered_by, k.n_before, true as is_ok,
        e.run is not null and not e.is_strange and r.kind = 'new_pairs' and r.how = 'machine' as is_entitled,
        k.n_before > 0 and not coalesce(k.is_known_net, false) as is_new_net
    from runs as r
    inner join known as k using (tenant_id, actor_id, kind, run)
    left join entitled as e using (tenant_id, actor_id, kind, run)
    where if(
            r.kind = 'out_of_scope', k.n_outside_before = 0,
            k.n_before <= $max_known_pairs and r.n_mailboxes >= if(r.how = 'delegate', $min_pairs_of_user, $min_pairs)
    )
    and not (
        r.kind = 'new_pairs' and r.how = 'machine' and coalesce(e.is_from_home, false) and k.n_before = 0
        and not r.has_vip and not r.has_journal
    )
),

-- Three signs that only the raw rows have: callers from outside the organisation, mail read on a server without a user,
-- and requests that steer the front end. Bounded by the window, and by columns that few rows fill.
raw_rows as (
    select coalesce(tenant_id, '') as tenant_id, ts, source, coalesce(principal_id, app_id) as actor_id,
        principal_type, app_id, credential_id, mailbox_id, src_net,
        outcome, item_count, op_count, reason,
        case
            when source = 'exchange_httpproxy' and principal_id is null
                and regexp_matches(reason, '^(AnchorMailbox (?i:serverinfo)~.*/|BackEndCookie (?i:server)~.*/.*~)')
                then 'steered'
            when external_access and outcome <> 'failure' then 'external'
            when source = 'exchange_ews' and outcome <> 'failure' then 'no_user'
        end as kind
    from access_events
    where date >= cast($window_from as date) and date <= cast($window_to as date) and ts >= $window_from and ts < $window_to
        and (
            (source = 'exchange_httpproxy' and (reason like 'AnchorMailbox %' or reason like 'BackEndCookie %'))
            or (
                (
                    external_access
                    or (source = 'exchange_ews' and coalesce(principal_type, 'anonymous') in ('system', 'computer', 'anonymous'))
                )
                and mailbox_id is not null and action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment', 'search')
            )
        )
),

raw_groups as (
    select r.tenant_id, r.kind, if(r.kind = 'steered', null, r.actor_id) as actor_id, min(r.ts) as first_seen, max(r.ts) as last_seen,
        count(distinct r.mailbox_id) as n_mailboxes,
        list(distinct r.mailbox_id order by r.mailbox_id) filter (where r.mailbox_id is not null) as mailboxes,
        sum(least(coalesce(r.op_count, 1), 274877906944)) as n_ops, sum(least(coalesce(r.item_count, 0), 274877906944)) as n_items,
        list(distinct r.credential_id order by r.credential_id) filter (where r.credential_id is not null) as credential_ids,
        list(distinct r.app_id order by r.app_id) filter (where r.app_id is not null) as app_ids,
        list(distinct r.src_net order by r.src_net) filter (where r.src_net is not null) as nets,
        coalesce(bool_or(m.vip), false) as has_vip, coalesce(bool_or(m.kind = 'journal'), false) as has_journal,
        if(r.kind = 'steered', list(distinct r.reason order by r.reason), null) as steered_by, bool_or(r.outcome = 'success') as is_ok
    from raw_rows as r
    left join mailboxes as m on r.mailbox_id = lower(m.mailbox_id)
    where r.kind = 'no_user'
        or (r.kind = 'external' and coalesce(r.principal_type, '') not in ('system', 'computer'))
        -- Redirects between servers name localhost or Autodiscover too; only the exploit writes the server as "...]@server".
        or (r.kind = 'steered' and (contains(r.reason, ']@') or not regexp_matches(r.reason, '(?i)~localhost|autodiscover')))
    group by r.tenant_id, r.kind, if(r.kind = 'steered', null, r.actor_id), if(r.kind = 'steered', r.src_net, '')
),

actors_before as (
    select coalesce(tenant_id, '') as tenant_id, actor_id, min(first_ts) as first_ts
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and actor_id in (select distinct g.actor_id from raw_groups as g)
    group by all
),

by_rows as (
    select g.tenant_id, g.kind, g.actor_id, g.first_seen, g.last_seen, g.n_mailboxes, g.mailboxes, g.n_ops, g.n_items, g.credential_ids,
        g.app_ids, g.nets, g.has_vip, g.has_journal, g.steered_by, cast(0 as bigint) as n_before,
        g.is_ok, false as is_entitled, false as is_new_net
    from raw_groups as g
    left join actors_before as b on g.tenant_id = b.tenant_id and g.actor_id = b.actor_id
    where b.first_ts is null or b.first_ts >= g.first_seen - to_days(1)
)

select nullif(f.tenant_id, '') as tenant_id, f.kind, f.actor_id, coalesce(f.actor_id, f.nets[1], '') as actor_key,
    if(f.actor_id is null, 'A caller without a name', null) as stranger, f.actor_id as evidence_actor,
    cast(f.first_seen as date) as first_day, f.first_seen, f.last_seen,
    case f.kind
        when 'steered' then 'steered the front end to a server of its choice'
        when 'external' then 'opened mailboxes from outside the organisation'
        when 'no_user' then 'opened mailboxes over EWS without a user''s sign-in'
        when 'out_of_scope' then 'opened mailboxes, which it is not declared for,'
        else 'opened mailboxes of others for the first time'
    end as what,
    case
        when f.kind = 'steered' then 'No client has a reason to name a server'
            || if(f.is_ok, '; at least one such request was answered.', '; none is logged as answered.')
        when f.kind in ('external', 'no_user') then 'It did not do so before.'
        when f.kind = 'out_of_scope' then 'The bindings declare the credential for another purpose or tenant.'
        when f.n_before = 0 then 'Before, it had opened none.'
        else 'Before, it had opened ' || f.n_before || if(f.n_before = 1, ' other mailbox.', ' other mailboxes.')
    end as normal,
    concat_ws(
        ' ',
        if(f.has_vip, 'Mailboxes of special interest are among them.', null),
        if(f.is_entitled, 'It was given rights shortly before.', null),
        if(f.is_new_net, 'It had never opened a mailbox from there.', null),
        if(coalesce(t.onboarded_at > f.first_seen - interval 30 day, false), 'The tenant was onboarded shortly before.', null)
    ) as remark,
    f.n_mailboxes, f.mailboxes, f.mailboxes as evidence_mailboxes,
    cast(f.n_ops as bigint) as n_ops, cast(f.n_items as bigint) as n_items, f.credential_ids, f.app_ids,
    if(f.actor_id is null, null, [f.actor_id]) as principal_ids, nullif(f.nets, []) as source_networks,
    if(f.kind = 'steered', nullif(f.nets, []), null) as evidence_networks,
    f.steered_by, f.n_before, cast(null as boolean) as is_declared_net,
    case
        when coalesce(t.onboarded_at > f.first_seen - interval 30 day, false) and f.kind = 'new_pairs' then 'low'
        when f.kind in ('steered', 'no_user') then if(f.is_ok, 'critical', 'low')
        when f.is_entitled then 'medium'
        when f.has_vip and f.kind <> 'external' then 'critical'
        else 'high'
    end as severity,
    case f.kind when 'new_pairs' then if(f.n_before = 0 or f.is_new_net, 0.8, 0.6) when 'external' then 0.7 else 1.0 end as confidence,
    case when f.has_journal then 2.0 when f.n_mailboxes >= 5 or f.has_vip then 1.5 else 1.0 end as impact
from (
    select * from by_pairs
    union all by name
    select * from by_rows
) as f
left join tenants as t on f.tenant_id = t.tenant_id
order by f.first_seen, f.tenant_id, f.kind, actor_key
