/*---
id = "L03"
title = "The directory is searched, then mailboxes are opened"
hypothesis = "Who looks for the interesting mailboxes asks the directory for them first."
family = "lateral_movement"
severity = "medium"
tables = ["ldap_days", "context_days", "edge_days", "first_seen"]
needs = []
identity = ["tenant_id", "principal_id", "kind", "first_day"]
explanation = "{principal_id:Name} searched the directory[ of tenant {tenant_id}] as it never had {first_seen:span}[ from {source_networks:nets}]: {n_searches:count search/searches}[, {n_entries:some entry/entries} returned][, {filter}].[ {reasons}][ {follow}]"
step = "{first_seen:Days}, {principal_id:name} searched the directory as it never had[, with {n_entries:some entry/entries} returned].[ {follow}]"
why = "[{reasons}]"
false_positives = [
  "the directory synchronisation gets a new filter: its configuration changed on that day, and the old filter stops",
  "a new product that reads the directory, or an inventory by the administrators",
  "a directory that grew by a merger",
]
blind_spots = [
  "searches with the usual filter, which the returned entries do not tell from the usual",
  "directories whose searches are not logged, or only the slow ones",
  "address books and web interfaces of the mail service, where people look up colleagues every day",
  "mailboxes that are opened by another account from another source",
]
runbook = [
  "`ldap_filter_class`, `ldap_base`: read the filters of the day with their values in the raw records, and look for the names of departments and groups",
  "`entries_returned`: compare with the 60 days before",
  "`mailbox_id`: list the mailboxes that were opened for the first time in the 14 days after, and compare them with what the search returned",
  "`src_net`: search the source in the other protocols in the 14 days before and after",
]

attack = [
  { technique = "T1087.002", name = "Domain Account", tactics = ["discovery"] },
  { technique = "T1087.003", name = "Email Account", tactics = ["discovery"] },
  { technique = "T1069.002", name = "Domain Groups", tactics = ["discovery"] },
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the window that count as history" },
  { name = "min_active_days", default = 14, help = "days with searches that the account must have before" },
  { name = "burn_in_days", default = 7, help = "first days of its history, in which every filter is new" },
  { name = "max_change_rate", default = 0.07, help = "days with new filters or bases, of the days before, above which a further one says nothing" },
  { name = "min_entries", default = 5, help = "entries that the new search must have returned" },
  { name = "lift", default = 3.0, help = "how many times the largest day before the entries or the look-ups must be" },
  { name = "min_excess", default = 100, help = "entries or look-ups above the largest day before" },
  { name = "follow_days", default = 14, help = "days after the search in which the mailboxes are opened" },
  { name = "min_mailboxes", default = 3, help = "mailboxes opened for the first time from which it follows from the search" },
]

[[branches]]
name = "directory searches"
needs = ["ldap_days"]

[[branches]]
name = "look-ups over the mail interface"
needs = ["context_days"]

[[subjects]]
part = "directory searches"
sql = "select exists (select 1 from habits)"
reason = "no account searched the directory on $min_active_days days before the window: no search can be new to it"

[evidence]
table = "access_events"
where = "outcome <> 'failure' and action in ('search', 'directory_lookup')"
time = ["first_seen", "last_search"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "principal_id", src_net = "evidence_networks" }
---*/
with searches as (
    select date, tenant_id, principal_id, src_net, coalesce(ldap_base, '') as ldap_base, coalesce(filter_class, '') as filter_class,
        searches as n_searches, entries, first_ts, last_ts
    from ldap_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and principal_id is not null
),

entry_days as (
    select tenant_id, principal_id, date, sum(n_searches) as n_searches, sum(entries) as entries,
        list(distinct src_net) filter (where src_net is not null) as nets, min(first_ts) as first_ts, max(last_ts) as last_ts
    from searches
    group by tenant_id, principal_id, date
),

-- What the searches of an account ask for, and where: new is what it never asked in its history.
asked as (
    select tenant_id, principal_id, filter_class, ldap_base, min(date) as first_day, min(first_ts) as first_ts
    from searches
    group by tenant_id, principal_id, filter_class, ldap_base
),

accounts as (
    select tenant_id, principal_id, min(date) as begins, count(distinct date) filter (where date < cast($window_from as date)) as n_before
    from searches
    group by tenant_id, principal_id
),

habits as (
    select * from accounts where n_before >= $min_active_days
),

-- Judged by what was known on the day, the days of the window before it included.
habit_days as (
    select n.tenant_id, n.principal_id, n.first_day,
        count(distinct s.date) filter (where s.date >= h.begins + cast($burn_in_days as integer)) as n_days,
        count(distinct a.first_day) filter (where a.first_day >= h.begins + cast($burn_in_days as integer)) as k
    from (select distinct tenant_id, principal_id, first_day from asked where first_ts >= $window_from) as n
    inner join habits as h on n.tenant_id is not distinct from h.tenant_id and n.principal_id = h.principal_id
    inner join entry_days as s on n.tenant_id is not distinct from s.tenant_id and n.principal_id = s.principal_id and n.first_day > s.date
    left join (select distinct tenant_id, principal_id, first_day from asked where filter_class <> '') as a
        on s.tenant_id is not distinct from a.tenant_id and s.principal_id = a.principal_id and s.date = a.first_day
    group by n.tenant_id, n.principal_id, n.first_day
),

new_searches as (
    select s.tenant_id, s.principal_id, s.date, s.src_net, s.filter_class, s.ldap_base, s.n_searches, s.entries, s.first_ts, s.last_ts
    from searches as s
    inner join asked as a
        on s.tenant_id is not distinct from a.tenant_id and s.principal_id = a.principal_id and s.filter_class = a.filter_class
        and s.ldap_base = a.ldap_base
    inner join habit_days as h
        on s.tenant_id is not distinct from h.tenant_id and s.principal_id = h.principal_id and a.first_day = h.first_day
    where a.first_ts >= $window_from and s.filter_class <> '' and s.date < a.first_day + 3 and s.entries >= $min_entries
        and (h.k + 0.5) / (h.n_days + 1) <= $max_change_rate
),

-- A synchronisation whose filter was changed: the new one stays, the old ones end.
changed_syncs as (
    select n.tenant_id, n.principal_id, n.first_day
    from (
        select tenant_id, principal_id, min(date) as first_day, list(distinct filter_class || ' ' || ldap_base) as news
        from new_searches
        group by tenant_id, principal_id
    ) as n
    inner join searches as s
        on n.tenant_id is not distinct from s.tenant_id and n.principal_id = s.principal_id and n.first_day < s.date
    group by n.tenant_id, n.principal_id, n.first_day, n.news
    having count(distinct s.date) >= 3
        and bool_and(list_contains(n.news, s.filter_class || ' ' || s.ldap_base))
),

-- Far more entries than on any day before.
large_days as (
    select d.*
    from (
        select *,
            max(entries) over history as most, count(*) over history as n_history
        from entry_days
        window history as (
            partition by tenant_id, principal_id order by date
            range between interval ($baseline_days) day preceding and interval 3 day preceding
        )
    ) as d
    where d.n_history >= $min_active_days and d.entries >= $lift * d.most and d.entries >= d.most + $min_excess
        and d.last_ts >= $window_from
),

-- Look-ups over the mail interface by services, which are the ones kept in detail.
lookup_days as (
    select tenant_id, coalesce(principal_id, app_id) as principal_id, date, sum(n_ops) as n_searches, sum(items) as entries,
        list(distinct src_net) filter (where src_net is not null) as nets, min(first_ts) as first_ts, max(last_ts) as last_ts
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and action = 'directory_lookup' and outcome = 'success' and coalesce(principal_id, app_id) is not null
    group by tenant_id, coalesce(principal_id, app_id), date
),

service_days as (
    select tenant_id, coalesce(principal_id, app_id) as principal_id, count(distinct date) as n_days
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date < cast($window_from as date)
        and coalesce(principal_id, app_id) in (select d.principal_id from lookup_days as d)
    group by tenant_id, coalesce(principal_id, app_id)
),

large_lookups as (
    select d.*
    from lookup_days as d
    inner join service_days as s on d.tenant_id is not distinct from s.tenant_id and d.principal_id = s.principal_id
    left join (
        select tenant_id, principal_id, max(n_searches) as most from lookup_days where date < cast($window_from as date) group by all
    ) as h on d.tenant_id is not distinct from h.tenant_id and d.principal_id = h.principal_id
    where s.n_days >= $min_active_days and d.last_ts >= $window_from
        and d.n_searches >= greatest($lift * coalesce(h.most, 0), coalesce(h.most, 0) + $min_excess)
),

recons as (
    select 'filter' as kind, tenant_id, principal_id, date, src_net,
        filter_class || if(ldap_base = '', '', ' below ' || ldap_base) as filter, n_searches, entries, first_ts, last_ts
    from new_searches
    where (tenant_id, principal_id) not in (select (c.tenant_id, c.principal_id) from changed_syncs as c)
    union all
    select 'entries' as kind, tenant_id, principal_id, date, unnest(coalesce(nullif(nets, []), [null])) as src_net, null as filter,
        n_searches, entries, first_ts, last_ts
    from large_days
    union all
    select 'lookups' as kind, tenant_id, principal_id, date, unnest(coalesce(nullif(nets, []), [null])) as src_net, null as filter,
        n_searches, entries, first_ts, last_ts
    from large_lookups
),

known_nets as (
    select entity_id as principal_id, attr_value as src_net, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
        and entity_id in (select r.principal_id from recons as r)
    group by entity_id, attr_value
),

grouped as (
    select r.tenant_id, r.principal_id, min(r.date) as first_day, min(r.first_ts) as first_seen, max(r.last_ts) as last_search,
        list(distinct r.kind order by r.kind) as kinds, min(r.kind) as kind, max(r.filter) as filter,
        list(distinct r.src_net order by r.src_net) filter (where r.src_net is not null) as source_networks,
        list(distinct r.src_net order by r.src_net) as evidence_networks, cast(max(r.n_searches) as bigint) as n_searches,
        cast(max(r.entries) as bigint) as n_entries, count(r.src_net) > 0 and bool_and(k.src_net is null) as is_new_net
    from recons as r
    left join known_nets as k
        on r.principal_id = k.principal_id and r.src_net = k.src_net and r.first_ts - to_days(1) > k.first_ts
    group by r.tenant_id, r.principal_id
),

-- Mailboxes of others that nobody of these actors had opened before.
edges as (
    select tenant_id, actor_id, mailbox_id, src_net, min(first_ts) as first_ts, max(last_ts) as last_ts, sum(items) as items
    from edge_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and tenant_id in (select g.tenant_id from grouped as g) and coalesce(logon_type, '') <> 'owner'
    group by tenant_id, actor_id, mailbox_id, src_net
),

new_edges as (
    select *
    from (select *, min(first_ts) over (partition by tenant_id, actor_id, mailbox_id) as edge_begins from edges) as e
    where edge_begins >= $window_from and edge_begins = first_ts
),

follow_ups as (
    select g.tenant_id, g.principal_id, e.actor_id, count(distinct e.mailbox_id) as n_mailboxes, max(e.last_ts) as last_ts,
        list(distinct e.mailbox_id order by e.mailbox_id) as mailboxes
    from grouped as g
    inner join new_edges as e
        on g.tenant_id = e.tenant_id and g.first_seen <= e.first_ts and g.first_seen + to_days(cast($follow_days as integer)) >= e.first_ts
        and (
            (g.is_new_net and list_contains(g.source_networks, e.src_net)) or g.principal_id = e.actor_id
            or regexp_extract(lower(g.principal_id), '(?:^(?:cn|uid)=|\\)([^,\\]+)', 1) = split_part(e.actor_id, '@', 1)
        )
    group by g.tenant_id, g.principal_id, e.actor_id
    having count(distinct e.mailbox_id) >= $min_mailboxes
),

best_follow_ups as (
    select * from follow_ups qualify row_number() over (partition by tenant_id, principal_id order by n_mailboxes desc, actor_id asc) = 1
)

select g.*, greatest(g.last_search, coalesce(f.last_ts, g.last_search)) as last_seen, f.actor_id as follower, f.mailboxes,
    coalesce(f.n_mailboxes, 0) as n_mailboxes, list_distinct([g.principal_id, coalesce(f.actor_id, g.principal_id)]) as principal_ids,
    false as is_declared, cast(null as boolean) as is_declared_net, true as is_service,
    concat_ws(
        ' ',
        if(list_contains(g.kinds, 'filter'), 'It had never asked for that.', null),
        if(list_contains(g.kinds, 'entries'), 'No day before had brought a third of that.', null),
        if(list_contains(g.kinds, 'lookups'), 'It had hardly looked up anybody before.', null),
        if(g.is_new_net, 'The source is new to the account.', null)
    ) as reasons,
    if(
        f.n_mailboxes > 0,
        'Then ' || f.actor_id || ' opened ' || f.n_mailboxes || ' mailboxes for the first time.', null
    ) as follow,
    if(f.n_mailboxes > 0, 'high', 'medium') as severity,
    if(f.n_mailboxes > 0, least(1.0, 0.7 + 0.05 * f.n_mailboxes), 0.6) as confidence,
    if(f.n_mailboxes >= 5, 1.5, 1.0) as impact
from grouped as g
left join best_follow_ups as f on g.tenant_id is not distinct from f.tenant_id and g.principal_id = f.principal_id
where f.n_mailboxes > 0 or g.is_new_net or len(g.kinds) > 1
order by g.first_seen, g.tenant_id, g.principal_id
