/*---
id = "L04"
title = "Passwords tried on many accounts"
hypothesis = "Who tries a few passwords on many accounts gets into one of them, often over an old protocol."
family = "lateral_movement"
severity = "high"
tables = ["context_days", "first_seen"]
needs = ["context_days"]
identity = ["tenant_id", "level", "source", "first_day"]
explanation = "From {whence} {n_failed:count account was/accounts were} tried[ in tenant {tenant_id}] {first_seen:span}, {n_tries:count refused sign-in}, at most {max_tries} on each.[ {broken:list} let somebody in, over {protocols:protocols}: {n_ops:count operation}.][ {remark}]"
step = "{first_seen:Days}, {n_failed:count account was/accounts were} tried from {whence} with {n_tries:count refused sign-in}[; {broken:list} let somebody in]."
why = "So many accounts were not refused on any day before."
false_positives = [
  "a gateway or proxy through which all users come, while the directory behind it is down",
  "a change of password policy, after which many clients offer the old one",
  "a penetration test or a phishing exercise",
]
blind_spots = [
  "refused sign-ins whose log names no account, such as some SMTP AUTH failures",
  "a spray so slow that a day brings fewer accounts than min_principals",
  "a success from another source than those that tried, over a protocol that the account used before",
  "accounts that are tried with the right password at once (bought credentials)",
]
runbook = [
  "`principal_id`, `reason`: list the refused sign-ins by account in order of time for the day; look for an alphabet, and for accounts that do not exist",
  "`principal_id`: for each account that let the source in, list everything from that network in the 30 days after, and reset the password",
  "`src_net`, `user_agent`: search the same networks and clients in the other tenants in the 14 days before and after",
  "`protocol`: check whether the protocol of the success asks for a second factor, and when the account used it in the 90 days before",
]

attack = [
  { technique = "T1110.003", name = "Password Spraying", tactics = ["credential-access"] },
  { technique = "T1110.004", name = "Credential Stuffing", tactics = ["credential-access"] },
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_days", default = 28, help = "days before the day in which the usual number of refused accounts is looked up" },
  { name = "min_principals", default = 10, help = "accounts refused on a day from which it is a spray, in a tenant of usual size" },
  { name = "least_principals", default = 5, help = "the same in a tenant with few accounts, where it is also a share of them" },
  { name = "share_of_small", default = 0.3, help = "that share" },
  { name = "tries_each", default = 3, help = "refused sign-ins of an account on a day, at most, for it to count as sprayed" },
  { name = "lift", default = 3.0, help = "how many times the most refused accounts of the days before a day must bring" },
  { name = "max_success_share", default = 0.34, help = "accounts that get in from the source, of all that try, at most: through an office most get in" },
  { name = "spread_nets", default = 10, help = "networks that a spray without common source must come from" },
  { name = "follow_hours", default = 72, help = "hours after the last try in which a success counts" },
]

[[subjects]]
sql = "select exists (select 1 from refused)"
reason = "no refused sign-in of the logs names both an account and an address"

[evidence]
table = "access_events"
where = ""
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", principal_id = "evidence_principals", src_net = "evidence_networks" }
---*/
with refused as (
    select date, tenant_id, principal_id, src_net, max(src_asn) as src_asn, sum(n_ops) as n, min(first_ts) as first_ts,
        max(last_ts) as last_ts
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date)
        and first_ts < $window_to and outcome = 'failure' and principal_id is not null and src_net is not null
        and action in ('any', 'signin', 'auth', 'bind', 'session')
    group by date, tenant_id, principal_id, src_net
),

-- By network, by autonomous system, and over the whole tenant.
levels as (
    select 'net' as level, src_net as source, * from refused
    union all
    select 'asn' as level, 'AS' || src_asn as source, * from refused where src_asn is not null
),

known_nets as (
    select entity_id as principal_id, attr_value as src_net, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
        and (
            entity_id in (select r.principal_id from refused as r)
            or attr_value in (select r.src_net from refused as r)
        )
    group by entity_id, attr_value
),

foreign_tries as (
    select 'all' as level, 'many networks' as source, r.*
    from refused as r
    left join known_nets as k on r.principal_id = k.principal_id and r.src_net = k.src_net and r.first_ts > k.first_ts
    where k.principal_id is null
),

all_tries as (
    select * from levels
    union all by name
    select * from foreign_tries
),

tried as (
    select level, source, tenant_id, date, principal_id, sum(n) as n, min(first_ts) as first_ts, max(last_ts) as last_ts
    from all_tries
    group by level, source, tenant_id, date, principal_id
),

nets_of_day as (
    select tenant_id, date, count(distinct src_net) as n_nets from foreign_tries group by tenant_id, date
),

group_days as (
    select level, source, tenant_id, date, count(*) filter (where n <= $tries_each) as n_failed,
        min(first_ts) as first_ts, max(last_ts) as last_ts
    from tried
    group by level, source, tenant_id, date
),

-- The days just before are left out, so that a spray of several days does not make itself usual.
judged as (
    select *,
        coalesce(max(n_failed) over (
            partition by level, source, tenant_id order by date
            range between interval ($baseline_days) day preceding and interval 3 day preceding
        ), 0) as usual
    from group_days
),

active as (
    select tenant_id, count(distinct principal_id) as n_active
    from context_days
    where date >= cast($window_from as date) and date <= cast($window_to as date) and principal_id is not null
        and tenant_id in (select r.tenant_id from refused as r)
    group by tenant_id
),

sprays as (
    select j.*
    from judged as j
    left join active as a on j.tenant_id = a.tenant_id
    left join nets_of_day as d on j.tenant_id is not distinct from d.tenant_id and j.date = d.date
    where j.last_ts >= $window_from
        and j.n_failed >= $lift * j.usual
        and j.n_failed >= if(
            j.level = 'all', 2 * $min_principals,
            least($min_principals, greatest($least_principals, $share_of_small * coalesce(a.n_active, $min_principals)))
        )
        and (j.level <> 'all' or d.n_nets >= $spread_nets)
),

-- Where most get in, many refusals are the mistakes of many people.
let_in as (
    select level, source, tenant_id, date, count(distinct principal_id) as n_let_in
    from (
        select s.level, s.source, s.tenant_id, s.date, c.principal_id
        from sprays as s
        inner join context_days as c
            on s.tenant_id is not distinct from c.tenant_id and s.date = c.date and s.source = c.src_net and s.level = 'net'
        where c.date >= cast($window_from as date) and c.date <= cast($window_to as date) and c.outcome = 'success'
        union all
        select s.level, s.source, s.tenant_id, s.date, c.principal_id
        from sprays as s
        inner join context_days as c
            on s.tenant_id is not distinct from c.tenant_id and s.date = c.date and s.source = 'AS' || c.src_asn and s.level = 'asn'
        where c.date >= cast($window_from as date) and c.date <= cast($window_to as date) and c.outcome = 'success'
    ) as i
    group by level, source, tenant_id, date
),

real_sprays as (
    select s.*
    from sprays as s
    left join let_in as i
        on s.level = i.level and s.source = i.source and s.tenant_id is not distinct from i.tenant_id and s.date = i.date
    where coalesce(i.n_let_in, 0) <= $max_success_share * (s.n_failed + coalesce(i.n_let_in, 0))
),

islands as (
    select *, sum(is_start) over (partition by level, source, tenant_id order by date) as island
    from (
        select *, if(date - lag(date) over (partition by level, source, tenant_id order by date) <= 3, 0, 1) as is_start
        from real_sprays
    ) as d
),

runs as (
    select level, source, tenant_id, island, min(date) as first_day, max(date) as last_day, min(first_ts) as first_ts,
        max(last_ts) as last_ts
    from islands
    group by level, source, tenant_id, island
),

targets as (
    select r.level, r.source, r.tenant_id, r.island, r.first_day, r.first_ts, r.last_ts, t.principal_id, t.src_net, t.src_asn, t.n
    from runs as r
    inner join all_tries as t
        on r.level = t.level and r.source = t.source and r.tenant_id is not distinct from t.tenant_id
        and t.date between r.first_day and r.last_day
),

totals as (
    select level, source, tenant_id, island, first_day, min(first_ts) as first_ts, max(last_ts) as last_ts,
        count(distinct principal_id) as n_failed, cast(sum(n) as bigint) as n_tries,
        list(distinct principal_id order by principal_id) as principal_ids, list(distinct src_net order by src_net) as nets
    from targets
    group by level, source, tenant_id, island, first_day
),

-- The narrowest source that explains it.
chosen as (
    select t.*
    from totals as t
    where not exists (
        select 1 from totals as o
        where o.tenant_id is not distinct from t.tenant_id and o.level <> t.level and o.first_day <= t.first_day + 2
            and o.first_day >= t.first_day - 2
            and if(o.level = 'net', 1, if(o.level = 'asn', 2, 3)) < if(t.level = 'net', 1, if(t.level = 'asn', 2, 3))
            and o.n_failed >= t.n_failed / 1.5
    )
),

first_protocols as (
    select entity_id as principal_id, attr_value as protocol, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'principal' and attr_type = 'protocol' and date <= cast($window_to as date)
        and entity_id in (select t.principal_id from targets as t)
    group by entity_id, attr_value
),

-- In from a source of the spray that is new to the account (the first password may be right); from elsewhere only over a protocol that is new to it as well.
successes as (
    select c.level, c.source, c.tenant_id, c.island, u.principal_id, u.src_net, u.protocol, u.n_ops, u.last_ts,
        c.level <> 'all' or list_contains(c.nets, u.src_net) as is_same_source
    from chosen as c
    inner join context_days as u
        on c.tenant_id is not distinct from u.tenant_id
        and (list_contains(c.principal_ids, u.principal_id) or (c.level = 'net' and c.source = u.src_net))
        and c.first_ts <= u.last_ts and c.last_ts + to_hours(cast($follow_hours as integer)) >= u.first_ts
    left join known_nets as k
        on u.principal_id = k.principal_id and u.src_net = k.src_net and c.first_ts - to_days(1) > k.first_ts
    left join first_protocols as p on u.principal_id = p.principal_id and u.protocol = p.protocol
    where u.date >= cast($window_from as date) and u.date <= cast($window_to as date)
        and u.outcome = 'success' and u.principal_id is not null and k.principal_id is null
        and case c.level
            when 'net' then u.src_net = c.source
            when 'asn' then 'AS' || u.src_asn = c.source
            else list_contains(c.nets, u.src_net) or p.first_ts >= c.first_ts
        end
),

broken_in as (
    select level, source, tenant_id, island, count(distinct principal_id) as n_broken, max(last_ts) as last_ts,
        list(distinct principal_id order by principal_id) as broken, list(distinct protocol order by protocol) as protocols,
        cast(sum(n_ops) as bigint) as n_ops, list(distinct src_net order by src_net) as nets, bool_or(is_same_source) as is_same_source
    from successes
    group by level, source, tenant_id, island
)

select c.tenant_id, c.level, c.source, c.first_day, c.first_ts as first_seen,
    greatest(c.last_ts, coalesce(b.last_ts, c.last_ts)) as last_seen,
    case c.level
        when 'net' then 'the network ' || c.source
        when 'asn' then len(c.nets) || ' networks of ' || c.source
        else len(c.nets) || ' networks that the accounts had never used'
    end as whence, c.n_failed, c.n_tries, $tries_each as max_tries, coalesce(b.n_broken, 0) as n_broken, b.broken, b.protocols, b.n_ops,
    if(b.n_broken > 0, b.broken, c.principal_ids) as principal_ids, c.principal_ids as tried_principals,
    if(b.n_broken > 0, list_distinct(list_concat(c.principal_ids, b.broken)), c.principal_ids) as evidence_principals,
    if(b.n_broken > 0, list_distinct(list_concat(b.nets, c.nets)), c.nets) as evidence_networks,
    if(b.n_broken > 0, b.nets, if(len(c.nets) <= 5, c.nets, null)) as source_networks, false as is_declared,
    case
        when b.n_broken is null then 'No attempt succeeded.'
        when not b.is_same_source then 'The successes came from networks and over protocols that are new to the accounts.'
    end as remark,
    case when b.n_broken is null then 'low' when b.is_same_source then 'high' else 'medium' end as severity,
    least(1.0, 0.6 + 0.04 * (c.n_failed - 5)) as confidence, if(b.n_broken >= 5, 1.5, 1.0) as impact
from chosen as c
left join broken_in as b
    on c.level = b.level and c.source = b.source and c.tenant_id is not distinct from b.tenant_id and c.island = b.island
order by first_seen, c.tenant_id, c.level, c.source
