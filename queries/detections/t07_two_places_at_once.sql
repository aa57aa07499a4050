/*---
id = "T07"
title = "Service credential used in two places at once"
hypothesis = "Where a credential is used from two networks by turns, which never happened before, two hold it."
family = "tenant_connection"
severity = "high"
tables = ["context_days", "credentials", "bindings", "networks"]
needs = ["context_days"]
identity = ["entity_kind", "tenant_id", "entity_id", "strange_net", "first_day"]
explanation = "{entity_id:Name} was used[ at tenant {tenant_id}] from {source_networks:nets} and, within {within_minutes:count minute} before and after, from {usual_networks:list}: {n_returns:count time} {first_seen:span}, {n_ops:ops}. On {n_active_days:count active day} before, these networks had never been used by turns.[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} was used from {source_networks:nets} and from {usual_networks:list} by turns, {n_returns:count time}."
why = "On {n_active_days:count active day} before, these networks had never been used by turns."
false_positives = [
  "a second connector or a load balancer goes into service: it goes on for good, with the same client",
  "a proxy or an office network that sends some requests another way",
  "an administrator who tests the credential beside its job",
]
blind_spots = [
  "a thief who works while the owner's job is silent, or who uses one of its networks or its autonomous system",
  "credentials that often show a new pair of networks (cloud egress), and those with more than max_networks a day",
  "ordinary users: the archive has no coordinates, and telephones and offices are two places at once every day",
  "rows without a client address",
]
runbook = [
  "`ts`, `src_net`: list both networks' rows in order of time for the 2 hours around each turn, with `session_id`",
  "`client_fp`, `user_agent`: compare the clients of the two networks over the 30 days before",
  "`action`, `item_count`: list what was done from the newer network in the 24 hours after its first use",
  "`src_ip`: ask the owner of the credential which of the addresses are theirs, on the day of `ts`",
]

attack = [
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
  { technique = "T1078", name = "Valid Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the window in which a pair of networks counts as known" },
  { name = "min_active_days", default = 14, help = "distinct active days that the credential must have before the first turn" },
  { name = "within_minutes", default = 120, help = "minutes between the last use of the usual network before, and its first use after" },
  { name = "min_returns", default = 2, help = "times that the use must go over and come back" },
  { name = "max_networks", default = 12, help = "networks a day above which turns say nothing" },
  { name = "min_surprise", default = 1.3, help = "-log10 of the credential's own daily probability of a new pair; lowered to what a short history can reach" },
]

[[subjects]]
sql = "select exists (select 1 from net_days group by entity_kind, tenant_id, entity_id having count(distinct date) > $min_active_days)"
reason = "no service credential or account has more than $min_active_days active days with a client address"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(credential_id, principal_id, app_id)" = "entity_id", src_net = "evidence_networks" }
---*/
with service_use as (
    select date, tenant_id, coalesce(credential_id, principal_id, app_id) as entity_id,
        if(credential_id is null, 'principal', 'credential') as entity_kind, src_net, src_asn, src_class, client_fp, hour_bits, first_ts
    from service_days(
        cast($window_from as date) - cast($baseline_days as integer), cast($window_to as date)
    )
    where first_ts < $window_to
        and outcome = 'success' and action <> 'probe' and src_net is not null
        and coalesce(credential_id, principal_id, app_id) is not null
),

net_days as (
    select entity_kind, tenant_id, entity_id, date, src_net, max(src_asn) as src_asn, max(src_class) as src_class,
        bit_or(hour_bits) as hour_bits, list(distinct client_fp order by client_fp) filter (where client_fp is not null) as clients,
        count(*) over (partition by entity_kind, tenant_id, entity_id, date) as n_nets
    from service_use
    group by entity_kind, tenant_id, entity_id, date, src_net
),

nets as (
    select src_net, date, max(src_class) as src_class
    from net_days
    where n_nets between 2 and $max_networks
    group by src_net, date
),

-- Compared at /24 and /48, the size of src_net; smaller declared ranges are known by src_class, from the address itself.
-- A range counts from the day on which it was declared to the day on which it ended.
declared_nets as (
    select src_net, date, max(kind) as kind
    from (
        select n.src_net, n.date, r.kind
        from nets as n
        inner join declared_networks() as r
            on r.is_whole and net_number(n.src_net) between r.first_net and r.last_net
            and r.valid_from < n.date + interval 1 day and n.date <= r.valid_to
        union all
        select src_net, date, src_class as kind
        from nets where src_class in ('vendor_egress', 'vendor', 'corporate', 'microsoft', 'private')
    ) as d
    group by src_net, date
),

-- Networks of one entity that share an hour, or hours that touch, on one day.
pair_days as (
    select a.entity_kind, a.tenant_id, a.entity_id, a.date, a.src_net as net_a, b.src_net as net_b,
        coalesce(a.src_asn = b.src_asn, false) as is_same_system,
        if(contains(a.src_net, ':'), 6, 4) <> if(contains(b.src_net, ':'), 6, 4) and coalesce(a.clients = b.clients, false) as is_dual_stack
    from net_days as a
    inner join net_days as b
        on a.entity_kind = b.entity_kind and a.entity_id = b.entity_id and a.tenant_id is not distinct from b.tenant_id
        and a.date = b.date and a.src_net < b.src_net
        and (a.hour_bits & (b.hour_bits | (b.hour_bits << 1) | (b.hour_bits >> 1))) <> 0
    where a.n_nets between 2 and $max_networks and b.n_nets between 2 and $max_networks
),

first_pairs as (
    select entity_kind, tenant_id, entity_id, net_a, net_b, min(date) as first_day,
        bool_and(is_same_system or is_dual_stack) as is_excused
    from pair_days
    group by entity_kind, tenant_id, entity_id, net_a, net_b
),

active_days as (
    select d.entity_kind, d.tenant_id, d.entity_id, d.date, bool_or(p.net_a is not null) as has_new_pair
    from (select distinct entity_kind, tenant_id, entity_id, date from net_days) as d
    left join first_pairs as p
        on d.entity_kind = p.entity_kind and d.entity_id = p.entity_id and d.tenant_id is not distinct from p.tenant_id
        and d.date = p.first_day
    group by d.entity_kind, d.tenant_id, d.entity_id, d.date
),

new_pairs as (
    select f.entity_kind, f.tenant_id, f.entity_id, f.net_a, f.net_b, f.first_day
    from first_pairs as f
    left join declared_nets as da on f.net_a = da.src_net and f.first_day = da.date
    left join declared_nets as db on f.net_b = db.src_net and f.first_day = db.date
    where f.first_day >= cast($window_from as date) and not f.is_excused and (da.kind is null or db.kind is null)
        and coalesce(da.kind, '') <> 'microsoft' and coalesce(db.kind, '') <> 'microsoft'
),

surprising as (
    select n.entity_kind, n.tenant_id, n.entity_id, n.net_a, n.net_b, n.first_day, count(*) as n_active_days,
        -log10((count(*) filter (where d.has_new_pair) + 0.5) / (count(*) + 1)) as surprise
    from new_pairs as n
    inner join active_days as d
        on n.entity_kind = d.entity_kind and n.entity_id = d.entity_id and n.tenant_id is not distinct from d.tenant_id
        and n.first_day > d.date
    group by n.entity_kind, n.tenant_id, n.entity_id, n.net_a, n.net_b, n.first_day
    having count(*) >= $min_active_days
        and -log10((count(*) filter (where d.has_new_pair) + 0.5) / (count(*) + 1))
        >= least($min_surprise, log10(2.0 * (count(*) + 1))) - 1e-9
),

-- The stranger of a pair is the network that the entity used on fewer days before.
known_days as (
    select s.entity_kind, s.tenant_id, s.entity_id, s.net_a, s.net_b,
        count(*) filter (where d.src_net = s.net_a) as n_a, count(*) filter (where d.src_net = s.net_b) as n_b
    from surprising as s
    inner join net_days as d
        on s.entity_kind = d.entity_kind and s.entity_id = d.entity_id and s.tenant_id is not distinct from d.tenant_id
        and s.first_day > d.date and d.src_net in (s.net_a, s.net_b)
    group by s.entity_kind, s.tenant_id, s.entity_id, s.net_a, s.net_b
),

pairs as (
    select s.entity_kind, s.tenant_id, s.entity_id, s.first_day, s.n_active_days, s.surprise,
        if(k.n_a >= k.n_b, s.net_b, s.net_a) as strange_net, if(k.n_a >= k.n_b, s.net_a, s.net_b) as usual_net,
        least(k.n_a, k.n_b) as n_strange_days
    from surprising as s
    inner join known_days as k
        on s.entity_kind = k.entity_kind and s.entity_id = k.entity_id and s.tenant_id is not distinct from k.tenant_id
        and s.net_a = k.net_a and s.net_b = k.net_b
),

shared_days as (
    select p.entity_kind, p.tenant_id, p.entity_id, p.strange_net, d.date,
        list_append(list(distinct p.usual_net), p.strange_net) as nets
    from pairs as p
    inner join pair_days as d
        on p.entity_kind = d.entity_kind and p.entity_id = d.entity_id and p.tenant_id is not distinct from d.tenant_id
        and least(p.strange_net, p.usual_net) = d.net_a and greatest(p.strange_net, p.usual_net) = d.net_b
    group by p.entity_kind, p.tenant_id, p.entity_id, p.strange_net, d.date
),

-- Hours only hint at turns: they are confirmed on the raw rows of these few credentials, networks and days.
turn_rows as (
    select p.entity_kind, p.tenant_id, p.entity_id, p.strange_net, e.ts, e.src_net = p.strange_net as is_strange, e.src_net,
        e.client_fp, e.credential_id, e.principal_id, e.app_id, e.protocol, e.action, coalesce(e.op_count, 1) as n_ops, e.item_count
    from shared_days as p
    inner join access_events as e
        on p.date = e.date and p.entity_id = coalesce(e.credential_id, e.principal_id, e.app_id)
        and p.tenant_id is not distinct from e.tenant_id and list_contains(p.nets, e.src_net)
        and p.entity_kind = if(e.credential_id is null, 'principal', 'credential')
    where e.date >= cast($window_from as date) and e.date <= cast($window_to as date)
        and e.ts >= $window_from and e.ts < $window_to and e.outcome = 'success' and e.action <> 'probe'
),

stays as (
    select *, sum(cast(has_moved as integer)) over (
        partition by entity_kind, tenant_id, entity_id, strange_net order by ts, is_strange
        rows between unbounded preceding and current row
    ) as stay
    from (
        select *, coalesce(is_strange <> lag(is_strange) over (
            partition by entity_kind, tenant_id, entity_id, strange_net order by ts, is_strange
        ), true) as has_moved
        from turn_rows
    ) as moves
),

visits as (
    select *, lag(end_ts) over in_order as before_ts, lead(begin_ts) over in_order as after_ts
    from (
        select entity_kind, tenant_id, entity_id, strange_net, stay, bool_and(is_strange) as is_strange, min(ts) as begin_ts,
            max(ts) as end_ts
        from stays
        group by entity_kind, tenant_id, entity_id, strange_net, stay
    ) as s
    window in_order as (partition by entity_kind, tenant_id, entity_id, strange_net order by stay)
),

returns as (
    select *
    from visits
    where is_strange and epoch(after_ts - before_ts) <= 60 * $within_minutes
),

usual_clients as (
    select distinct p.entity_kind, p.tenant_id, p.entity_id, p.strange_net, u.client_fp
    from pairs as p
    inner join service_use as u
        on p.entity_kind = u.entity_kind and p.entity_id = u.entity_id and p.tenant_id is not distinct from u.tenant_id
        and p.usual_net = u.src_net
    where u.client_fp is not null
),

described as (
    select s.entity_kind, s.tenant_id, s.entity_id, s.strange_net, min(s.ts) as first_seen, max(s.ts) as last_seen,
        count(distinct s.stay) as n_returns,
        list(distinct s.credential_id order by s.credential_id) filter (where s.credential_id is not null) as credential_ids,
        list(distinct s.principal_id order by s.principal_id) filter (where s.principal_id is not null) as principal_ids,
        list(distinct s.app_id order by s.app_id) filter (where s.app_id is not null) as app_ids,
        list(distinct s.client_fp order by s.client_fp) filter (where s.client_fp is not null) as client_fps,
        list(distinct s.protocol order by s.protocol) as protocols, list(distinct s.action order by s.action) as actions,
        bool_or(s.client_fp is not null and c.client_fp is null) as is_new_client,
        cast(sum(s.n_ops) as bigint) as n_ops, cast(sum(s.item_count) as bigint) as n_items
    from stays as s
    inner join returns as r
        on s.entity_kind = r.entity_kind and s.entity_id = r.entity_id and s.tenant_id is not distinct from r.tenant_id
        and s.strange_net = r.strange_net and s.stay = r.stay
    left join usual_clients as c
        on s.entity_kind = c.entity_kind and s.entity_id = c.entity_id and s.tenant_id is not distinct from c.tenant_id
        and s.strange_net = c.strange_net and s.client_fp = c.client_fp
    group by s.entity_kind, s.tenant_id, s.entity_id, s.strange_net
    having count(distinct s.stay) >= $min_returns
),

told as (
    select d.entity_kind, d.tenant_id, d.entity_id, d.strange_net, min(p.first_day) as first_day,
        list(distinct p.usual_net order by p.usual_net) as usual_networks,
        cast(min(p.n_active_days) as bigint) as n_active_days, min(p.surprise) as surprise, max(p.n_strange_days) as n_strange_days,
        bool_or(n.kind is not null) as is_declared, max(a.src_asn) as src_asn
    from described as d
    inner join pairs as p
        on d.entity_kind = p.entity_kind and d.entity_id = p.entity_id and d.tenant_id is not distinct from p.tenant_id
        and d.strange_net = p.strange_net
    left join declared_nets as n on d.strange_net = n.src_net and p.first_day = n.date
    left join (select src_net, max(src_asn) as src_asn from net_days group by src_net) as a on d.strange_net = a.src_net
    group by d.entity_kind, d.tenant_id, d.entity_id, d.strange_net
),

-- A connector that goes into service stays; a thief comes and goes.
lasting as (
    select t.entity_kind, t.tenant_id, t.entity_id, t.strange_net,
        count(distinct n.date) filter (where n.src_net = t.strange_net) >= 0.8 * count(distinct n.date)
        and count(distinct n.date) >= 5 as has_stayed
    from told as t
    inner join net_days as n
        on t.entity_kind = n.entity_kind and t.entity_id = n.entity_id and t.tenant_id is not distinct from n.tenant_id
        and t.first_day <= n.date
    group by t.entity_kind, t.tenant_id, t.entity_id, t.strange_net
)

select d.entity_kind, d.tenant_id, d.entity_id, d.strange_net, t.first_day, d.first_seen, d.last_seen, d.credential_ids,
    d.principal_ids, d.app_ids, [d.strange_net] as source_networks, t.usual_networks,
    list_append(t.usual_networks, d.strange_net) as evidence_networks, d.client_fps, coalesce('AS' || t.src_asn, '') as source,
    t.is_declared, d.is_new_client, d.protocols, d.actions, d.n_returns, d.n_ops, d.n_items, t.n_active_days, t.n_strange_days,
    round(t.surprise, 2) as surprise, $within_minutes as within_minutes,
    case
        when d.is_new_client then 'Its client was never seen in the usual networks.'
        when len(d.client_fps) > 0 then 'Its client is the usual one' || if(l.has_stayed, ', and it has stayed in use.', '.')
        when l.has_stayed then 'It has stayed in use.'
    end as remark,
    if(t.is_declared or (l.has_stayed and len(d.client_fps) > 0 and not d.is_new_client), 'medium', 'high') as severity,
    least(1.0, 0.6 + 0.1 * d.n_returns) as confidence, 1.0 as impact
from described as d
inner join told as t
    on d.entity_kind = t.entity_kind and d.entity_id = t.entity_id and d.tenant_id is not distinct from t.tenant_id
    and d.strange_net = t.strange_net
inner join lasting as l
    on d.entity_kind = l.entity_kind and d.entity_id = l.entity_id and d.tenant_id is not distinct from l.tenant_id
    and d.strange_net = l.strange_net
order by d.first_seen, d.entity_kind, d.tenant_id, d.entity_id, d.strange_net
