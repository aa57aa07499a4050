/*---
id = "T04"
title = "Strange client or work in a known network"
hypothesis = "Who works from inside the expected network still brings other tools, or does other things with the same ones."
family = "tenant_connection"
severity = "medium"
tables = ["context_days", "credentials", "bindings", "networks", "gateway_jobs"]
needs = []
identity = ["class", "entity_kind", "tenant_id", "entity_id", "protocol", "value", "first_day"]
explanation = "{entity_id:Name} {what}[ at tenant {tenant_id}], from {source_networks:nets} where it is at home: {first_seen:span}, {n_ops:ops}[ on {n_items:some item}]. {normal}[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} {what}, from where it is at home."
why = "{normal}"
false_positives = [
  "a new release of the vendor's client that has reached only few tenants yet, or comes on the last days of the window",
  "a support engineer who works with another tool",
  "a first full synchronisation, a repair or a backlog, which changes what a job does on that day",
]
blind_spots = [
  "a thief whose client has the same fingerprint and who does what the job does",
  "logs without user agent, TLS version or mechanism, whose rows have no fingerprint",
  "credentials whose clients change often, and those with fewer active days before than min_active_days",
  "that a version may only rise: the fingerprint does not tell which of two is newer",
  "networks that the credential has not used before: T01 and T02 look at those",
]
runbook = [
  "`user_agent`, `tls_version`, `helo`: compare the client's traits with those of the usual one over the 30 days before",
  "`action`, `item_count`: list what was done with the strange client in the 24 hours after its first use",
  "`src_ip`, `session_id`: see whether one address shows both clients within the same hours",
  "`client_fp`: look for the same client at other tenants and with other credentials within 14 days either way",
]

attack = [
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1036", name = "Masquerading", tactics = ["stealth"] },
  { technique = "T1090", name = "Proxy", tactics = ["command-and-control"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the first use that count as history, at most" },
  { name = "min_active_days", default = 21, help = "distinct active days that the credential must have before" },
  { name = "burn_in_days", default = 14, help = "first days of a history, in which every client is new" },
  { name = "min_surprise", default = 1.5, help = "-log10 of the credential's own daily probability of a new client; lowered to what a short history can reach" },
  { name = "rollout_share", default = 0.3, help = "share of the tenants of the protocol, of at least three, that have a client when it is a release" },
  { name = "rollout_days", default = 7, help = "days after its first use at a tenant in which a release must have reached that share" },
  { name = "min_divergence", default = 0.3, help = "Jensen-Shannon divergence (base 2) of a day's actions from the usual ones that is told; at least half as much again as on any day before" },
  { name = "min_ops", default = 20, help = "operations that a day must have for its actions to be compared" },
]

[[branches]]
name = "new clients"
needs = ["context_days"]

[[branches]]
name = "unusual work"
needs = ["context_days"]

[[subjects]]
part = "new clients"
sql = "select exists (select 1 from active_days group by entity_kind, tenant_key, entity_id, protocol having count(*) > $min_active_days)"
reason = "no service credential or account shows its client on more than $min_active_days days"

[[subjects]]
part = "unusual work"
sql = "select exists (select 1 from usual_divergences)"
reason = "no service credential or account has $min_active_days days of $min_ops operations before the window"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", protocol = "protocol", "coalesce(credential_id, principal_id, app_id)" = "entity_id", client_fp = "evidence_clients", src_net = "source_networks" }
---*/
with all_use as (
    select date, coalesce(tenant_id, '') as tenant_key, protocol, coalesce(credential_id, principal_id, app_id) as entity_id,
        if(credential_id is null, 'principal', 'credential') as entity_kind, credential_id, principal_id, app_id, src_net, src_class,
        client_fp, action, n_ops, items, first_ts, last_ts
    from service_days(
        cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome = 'success' and action not in ('probe', 'any') and src_net is not null
        and coalesce(credential_id, principal_id, app_id) is not null
),

-- Networks where the entity is at home: used on at least five days before.
net_days as (
    select entity_kind, tenant_key, entity_id, src_net, date,
        row_number() over (partition by entity_kind, tenant_key, entity_id, src_net order by date) as nth_day
    from (select distinct entity_kind, tenant_key, entity_id, src_net, date from all_use) as d
),

homes as (
    select entity_kind, tenant_key, entity_id, src_net, min(date) as home_day
    from net_days
    where nth_day > 5
    group by entity_kind, tenant_key, entity_id, src_net
),

home_use as (
    select u.*
    from all_use as u
    left join homes as h
        on u.entity_kind = h.entity_kind and u.tenant_key = h.tenant_key and u.entity_id = h.entity_id and u.src_net = h.src_net
    where u.date < cast($window_from as date) or coalesce(h.home_day <= u.date, false)
        or coalesce(u.src_class, '') in ('vendor_egress', 'vendor')
),

active_days as (
    select entity_kind, tenant_key, entity_id, protocol, date,
        min(date) over (partition by entity_kind, tenant_key, entity_id, protocol) as begins
    from (select distinct entity_kind, tenant_key, entity_id, protocol, date from all_use where client_fp is not null) as d
),

first_clients as (
    select entity_kind, tenant_key, entity_id, protocol, client_fp, min(first_ts) as first_ts, cast(min(first_ts) as date) as first_day,
        count(distinct date) as n_days
    from all_use
    where client_fp is not null
    group by entity_kind, tenant_key, entity_id, protocol, client_fp
),

new_clients as (
    select c.* from first_clients as c
    semi join home_use as u
        on c.entity_kind = u.entity_kind and c.tenant_key = u.tenant_key and c.entity_id = u.entity_id
        and c.protocol = u.protocol and c.client_fp = u.client_fp and c.first_day = u.date
    where c.first_ts >= $window_from
),

client_novelties as (
    select distinct entity_kind, tenant_key, entity_id, protocol, first_day as date from first_clients
),

histories as (
    select n.entity_kind, n.tenant_key, n.entity_id, n.protocol, n.client_fp, n.first_ts, n.first_day, n.n_days,
        count(*) as n_active_days,
        count(*) filter (where d.date >= d.begins + cast($burn_in_days as integer)) as n,
        count(*) filter (where d.date >= d.begins + cast($burn_in_days as integer) and v.date is not null) as k
    from new_clients as n
    inner join active_days as d
        on n.entity_kind = d.entity_kind and n.tenant_key = d.tenant_key and n.entity_id = d.entity_id and n.protocol = d.protocol
        and n.first_day > d.date and n.first_day - cast($baseline_days as integer) <= d.date
    left join client_novelties as v
        on d.entity_kind = v.entity_kind and d.tenant_key = v.tenant_key and d.entity_id = v.entity_id and d.protocol = v.protocol
        and d.date = v.date
    group by n.entity_kind, n.tenant_key, n.entity_id, n.protocol, n.client_fp, n.first_ts, n.first_day, n.n_days
    having count(*) >= $min_active_days
),

-- A release reaches many tenants soon; and it takes the place of the client before it.
protocol_tenants as (
    select protocol, count(distinct tenant_key) as n_all from all_use where client_fp is not null group by protocol
),

client_tenants as (
    select protocol, client_fp, tenant_key, min(first_day) as first_day from first_clients group by protocol, client_fp, tenant_key
),

spreads as (
    select h.tenant_key, h.protocol, h.client_fp, h.first_day, count(distinct t.tenant_key) as n_reached
    from (select distinct tenant_key, protocol, client_fp, first_day from histories) as h
    inner join client_tenants as t
        on h.protocol = t.protocol and h.client_fp = t.client_fp and h.first_day + cast($rollout_days as integer) >= t.first_day
    group by h.tenant_key, h.protocol, h.client_fp, h.first_day
),

old_clients as (
    select h.entity_kind, h.tenant_key, h.entity_id, h.protocol, h.client_fp, max(u.last_ts) as old_last_ts
    from histories as h
    inner join all_use as u
        on h.entity_kind = u.entity_kind and h.tenant_key = u.tenant_key and h.entity_id = u.entity_id and h.protocol = u.protocol
        and h.client_fp <> u.client_fp
    group by h.entity_kind, h.tenant_key, h.entity_id, h.protocol, h.client_fp
),

strange_clients as (
    select h.*, s.n_reached, p.n_all, -log10((h.k + 0.5) / (h.n + 1)) as surprise
    from histories as h
    inner join spreads as s
        on h.tenant_key = s.tenant_key and h.protocol = s.protocol and h.client_fp = s.client_fp and h.first_day = s.first_day
    inner join protocol_tenants as p on h.protocol = p.protocol
    inner join old_clients as o
        on h.entity_kind = o.entity_kind and h.tenant_key = o.tenant_key and h.entity_id = o.entity_id and h.protocol = o.protocol
        and h.client_fp = o.client_fp
    where -log10((h.k + 0.5) / (h.n + 1)) >= least($min_surprise, log10(2.0 * (h.n + 1))) - 1e-9
        and not (s.n_reached >= 3 and s.n_reached > $rollout_share * p.n_all)
        and not (h.n_days >= 3 and o.old_last_ts < h.first_ts + interval 2 day)
),

-- What is done on a day, beside what was usual before the window: Lin 1991, divergence measures based on the Shannon entropy.
mixes as (
    select entity_kind, tenant_key, entity_id, protocol, date, action, sum(n_ops) as n,
        sum(sum(n_ops)) over (partition by entity_kind, tenant_key, entity_id, protocol, date) as n_day
    from home_use
    group by entity_kind, tenant_key, entity_id, protocol, date, action
),

usual_mixes as (
    select entity_kind, tenant_key, entity_id, protocol, action,
        sum(n) / sum(sum(n)) over (partition by entity_kind, tenant_key, entity_id, protocol) as q
    from mixes
    where date < cast($window_from as date)
    group by entity_kind, tenant_key, entity_id, protocol, action
),

mix_days as (
    select entity_kind, tenant_key, entity_id, protocol, date
    from mixes
    where n_day >= $min_ops
    group by entity_kind, tenant_key, entity_id, protocol, date
),

-- Of an action that the day lacks, half its usual share is divergence; so the sums go over the day's own actions only.
divergences as (
    select m.entity_kind, m.tenant_key, m.entity_id, m.protocol, m.date,
        0.5 * sum(
            (m.n / m.n_day) * log2((m.n / m.n_day) / ((m.n / m.n_day + coalesce(u.q, 0)) / 2))
            + if(coalesce(u.q, 0) > 0, u.q * log2(u.q / ((m.n / m.n_day + u.q) / 2)), 0)
        ) + 0.5 * (1 - sum(coalesce(u.q, 0))) as divergence,
        bool_or(u.q is null) as has_new_action
    from mixes as m
    semi join mix_days using (entity_kind, tenant_key, entity_id, protocol, date)
    left join usual_mixes as u
        on m.entity_kind = u.entity_kind and m.tenant_key = u.tenant_key and m.entity_id = u.entity_id and m.protocol = u.protocol
        and m.action = u.action
    group by m.entity_kind, m.tenant_key, m.entity_id, m.protocol, m.date
),

usual_divergences as (
    select entity_kind, tenant_key, entity_id, protocol, max(divergence) as most, count(*) as n_compared
    from divergences
    where date < cast($window_from as date)
    group by entity_kind, tenant_key, entity_id, protocol
    having count(*) >= $min_active_days
),

strange_days as (
    select d.*, u.n_compared, u.most
    from divergences as d
    inner join usual_divergences as u
        on d.entity_kind = u.entity_kind and d.tenant_key = u.tenant_key and d.entity_id = u.entity_id and d.protocol = u.protocol
    where d.date >= cast($window_from as date) and d.divergence > greatest($min_divergence, 1.5 * u.most)
),

-- The uses that a finding is about: of the strange client, or of the strange days.
strange_use as (
    select 'client' as class, c.client_fp as value, c.first_day, cast(c.n_active_days as bigint) as n_active_days, c.surprise as strength,
        d.date is not null as has_other_work, c.n_reached, c.n_all, u.*
    from strange_clients as c
    inner join home_use as u
        on c.entity_kind = u.entity_kind and c.tenant_key = u.tenant_key and c.entity_id = u.entity_id and c.protocol = u.protocol
        and c.client_fp = u.client_fp
    left join strange_days as d
        on u.entity_kind = d.entity_kind and u.tenant_key = d.tenant_key and u.entity_id = d.entity_id and u.protocol = d.protocol
        and u.date = d.date
    union all
    select 'work' as class, '' as value,
        min(d.date) over (partition by d.entity_kind, d.tenant_key, d.entity_id, d.protocol) as first_day,
        cast(d.n_compared as bigint) as n_active_days, d.divergence as strength, true as has_other_work,
        1 as n_reached, 1 as n_all, u.*
    from strange_days as d
    inner join home_use as u
        on d.entity_kind = u.entity_kind and d.tenant_key = u.tenant_key and d.entity_id = u.entity_id and d.protocol = u.protocol
        and d.date = u.date
    where not exists (
        select 1 from strange_clients as c
        where c.entity_kind = d.entity_kind and c.tenant_key = d.tenant_key and c.entity_id = d.entity_id and c.protocol = d.protocol
    )
),

-- Jobs that the gateway says it ran; a token lives for 90 minutes where the end is not told.
jobs as (
    select coalesce(tenant_id, '') as tenant_key, credential_id, principal_id, src_net, ts - interval 2 minute as from_ts,
        coalesce(ts_end, ts + interval 90 minute) + interval 2 minute as until_ts
    from gateway_jobs
    where date >= cast($window_from as date) - 1 and date <= cast($window_to as date) and src_net is not null
),

-- A day's use by one client, from first to last, that lies in the time of one job from the same network.
judged_use as (
    select u.*, coalesce(
        exists (
            select 1 from jobs as j
            where u.tenant_key = j.tenant_key and u.src_net = j.src_net and u.first_ts >= j.from_ts and u.last_ts <= j.until_ts
                and (u.credential_id = j.credential_id or (u.credential_id is null and u.principal_id = j.principal_id))
        ), false
    ) as is_reconciled
    from strange_use as u
),

described as (
    select class, entity_kind, tenant_key, entity_id, protocol, value, first_day, n_active_days,
        min(first_ts) as first_seen, max(last_ts) as last_seen, max(strength) as strength, bool_or(has_other_work) as has_other_work,
        max(n_reached) as n_reached, max(n_all) as n_all, count(distinct date) as n_days,
        list(distinct credential_id order by credential_id) filter (where credential_id is not null) as credential_ids,
        list(distinct principal_id order by principal_id) filter (where principal_id is not null) as principal_ids,
        list(distinct app_id order by app_id) filter (where app_id is not null) as app_ids,
        list(distinct src_net order by src_net) as source_networks,
        list(distinct action order by action) as actions,
        bool_and(coalesce(src_class, '') in ('vendor_egress', 'vendor', 'corporate', 'microsoft')) as is_declared,
        cast(sum(n_ops) as bigint) as n_ops, cast(sum(items) as bigint) as n_items,
        bool_and(is_reconciled) as is_reconciled
    from judged_use
    where last_ts >= $window_from
    group by class, entity_kind, tenant_key, entity_id, protocol, value, first_day, n_active_days
)

select class, entity_kind, nullif(tenant_key, '') as tenant_id, entity_id, protocol, [protocol] as protocols, value, first_day,
    first_seen, last_seen, credential_ids, principal_ids, app_ids, source_networks, actions, n_ops, n_items, n_active_days, n_days,
    has_other_work, is_reconciled, is_declared, class = 'client' as is_new_client, round(strength, 2) as strength,
    if(is_declared, true, null) as is_declared_net,
    case when class = 'client' then [value] end as client_fps, case when class = 'client' then [value] end as evidence_clients,
    if(class = 'client', 'was used with a client never seen with it', 'did other things than usual') as what,
    if(
        class = 'client', 'In ' || n_active_days || ' active days before, it had never shown this client.',
        'In ' || n_active_days || ' days compared, its actions had never differed as much from the usual ones ('
        || round(strength, 2) || ' on a scale from 0 to 1).'
    ) as normal,
    case
        when is_reconciled then 'All of it lies in the time of jobs of the gateway from the same network.'
        when class = 'client' and has_other_work then 'What was done differs from the usual as well.'
        when class = 'client' and n_reached > 1
            then n_reached || ' of ' || n_all || ' tenants show the client: ask whether it is a release.'
    end as remark,
    case when is_reconciled then 'low' when class = 'client' and has_other_work then 'high' else 'medium' end as severity,
    if(class = 'client', least(1.0, strength / 2) * if(n_reached > 1, 0.7, 1.0), 0.7) as confidence,
    1.0 as impact
from described
order by first_seen, class, entity_kind, tenant_key, entity_id, protocol, value
