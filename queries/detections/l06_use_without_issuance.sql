/*---
id = "L06"
title = "Mail read without a sign-in"
hypothesis = "A forged or replayed token opens mail although no token was issued."
family = "lateral_movement"
severity = "critical"
tables = ["context_days", "tenants"]
needs = ["context_days"]
identity = ["tenant_id", "entity_id", "first_day"]
explanation = "{entity_id:Name} read mail[ in tenant {tenant_id}] {first_seen:span}, {n_ops:ops}[ on {n_items:some item}][ from {source_networks:nets}], but no sign-in of it was logged from {token_hours} hours before on. {normal}[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} read mail without any sign-in in the {token_hours} hours before."
why = "{normal}"
false_positives = [
  "one category of sign-ins (non-interactive, service principal) was not exported for some days",
  "an export of the portal, which groups sign-ins, or which holds only the latest",
  "access by a service of Microsoft itself on behalf of the account",
]
blind_spots = [
  "a token that is used while the real holder signs in as well: told only by the source (T01, T07)",
  "tenants whose sign-ins were not ingested, or where reading without sign-in is common in the logs",
  "token identifiers: they are not kept in the derived tables",
  "federated sign-ins that were forged, but logged like any other",
]
runbook = [
  "`token_id`, `session_id`: look the tokens of the activity up in the sign-ins of all categories for the 3 days before",
  "`source`: check for the day that all categories of sign-ins (interactive, non-interactive, service principal, managed identity) were exported",
  "`src_net`, `client_fp`: compare with the networks and clients of the account in the 30 days before",
  "`change_events.op`: look for changes of federation, domains and signing keys in the 30 days before",
]

attack = [
  { technique = "T1606.002", name = "SAML Tokens", tactics = ["credential-access"] },
  { technique = "T1606.001", name = "Web Cookies", tactics = ["credential-access"] },
  { technique = "T1550.001", name = "Application Access Token", tactics = ["lateral-movement"] },
]

parameters = [
  { name = "baseline_days", default = 30, help = "days before the window from which the usual rate is taken" },
  { name = "token_hours", default = 28, help = "longest life of a token: a sign-in so long before is enough" },
  { name = "max_unmatched", default = 0.01, help = "share of account-days without sign-in in the baseline, at most, for the rule to mean anything" },
  { name = "min_account_days", default = 30, help = "account-days that the baseline must hold" },
  { name = "min_ops", default = 5, help = "operations on a day, at least" },
  { name = "max_share", default = 0.05, help = "share of the day's accounts that may lack a sign-in where they usually are: more is a gap in the log" },
  { name = "min_coverage", default = 0.5, help = "share of the usual number of accounts that must have signed in on the day" },
]

[[requires]]
sql = "select exists (select 1 from context_days where date >= cast($window_from as date) - 90 and date <= cast($window_to as date) and protocol = 'oauth' and outcome = 'success')"
reason = "no sign-ins were ingested: nothing tells for which use a token was issued"

[[subjects]]
sql = "select exists (select 1 from classes)"
reason = "nowhere are the sign-ins complete: of each tenant there are fewer than $min_account_days account-days of reading before the window, or too many of them without a sign-in"

[[subjects]]
part = "days of the window"
sql = "select not exists (select 1 from reading_days semi join classes using (tenant_key, is_service) where date >= cast($window_from as date) and n_at_home > greatest(1, $max_share * n_accounts))"
reason = "on some days of the window too many accounts (above a share of $max_share) read without a sign-in: the sign-ins have a gap, and these days say nothing"

[evidence]
table = "access_events"
where = "outcome = 'success' and protocol <> 'oauth'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_ids", src_net = "evidence_networks" }
---*/
-- A service is named by its application where the log has it: mail audit and sign-ins name its principal differently.
with uses as (
    select date, coalesce(tenant_id, '') as tenant_key, protocol = 'oauth' as is_signin, protocol, principal_id, app_id, src_net, client_fp,
        coalesce(principal_type, '') in ('service_principal', 'service_account') or principal_id is null as is_service,
        if(
            coalesce(principal_type, '') in ('service_principal', 'service_account'),
            coalesce(app_id, principal_id), coalesce(principal_id, app_id)
        ) as entity_id, n_ops, items, first_ts, last_ts
    from context_days
    where date >= cast($window_from as date) - cast($baseline_days as integer) - 2 and date <= cast($window_to as date)
        and first_ts < $window_to and outcome = 'success'
        and (
            (protocol = 'oauth' and action in ('signin', 'any'))
            or (
                protocol in ('ews', 'graph', 'exchange', 'owa', 'mapi', 'eas')
                and action not in ('signin', 'auth', 'bind', 'connect', 'probe', 'config', 'proxy')
            )
        )
        and coalesce(principal_type, '') not in ('anonymous', 'system', 'computer')
),

sign_ins as (
    select tenant_key, entity_id, is_service, date, min(first_ts) as first_ts, max(last_ts) as last_ts
    from uses
    where is_signin and entity_id is not null
    group by tenant_key, entity_id, is_service, date
),

readings as (
    select tenant_key, entity_id, is_service, date, min(first_ts) as first_ts, max(last_ts) as last_ts, sum(n_ops) as n_ops
    from uses
    where not is_signin and entity_id is not null
    group by tenant_key, entity_id, is_service, date
),

-- A sign-in of the same day or of the days that a token lives covers the day.
covered as (
    select distinct r.tenant_key, r.entity_id, r.date
    from readings as r
    inner join (
        select tenant_key, entity_id, first_ts, last_ts, unnest([date, date + 1, date + 2]) as date from sign_ins
    ) as s using (tenant_key, entity_id, date)
    where s.last_ts >= r.first_ts - to_hours(cast($token_hours as integer)) and s.first_ts <= r.last_ts + to_minutes(5)
),

-- Reading from where the account never signed in: a gap in the log would leave out what is usual as well.
strange as (
    select u.tenant_key, u.entity_id, u.date
    from uses as u
    where not u.is_signin and u.src_net is not null
    group by u.tenant_key, u.entity_id, u.date
    having not bool_or((u.tenant_key, u.entity_id, u.src_net) in (
        select (o.tenant_key, o.entity_id, o.src_net) from uses as o where o.is_signin and o.src_net is not null
    ))
),

matched as (
    select r.*, c.entity_id is not null as has_sign_in, s.entity_id is not null as is_strange
    from readings as r
    left join covered as c using (tenant_key, entity_id, date)
    left join strange as s using (tenant_key, entity_id, date)
),

-- Where reading without a sign-in is common, the logs lack sign-ins.
classes as (
    select tenant_key, is_service, count(*) as n_days, count(*) filter (where not has_sign_in) as n_unmatched
    from matched
    where date < cast($window_from as date) and date >= cast($window_from as date) - cast($baseline_days as integer)
    group by tenant_key, is_service
    having count(*) >= $min_account_days and count(*) filter (where not has_sign_in) <= $max_unmatched * count(*)
),

reading_days as (
    select tenant_key, is_service, date, count(*) as n_accounts, count(*) filter (where not has_sign_in) as n_unmatched,
        count(*) filter (where not has_sign_in and not is_strange) as n_at_home
    from matched
    group by tenant_key, is_service, date
),

sign_in_days as (
    select tenant_key, is_service, date, count(*) as n_accounts from sign_ins group by tenant_key, is_service, date
),

sign_in_usual as (
    select d.tenant_key, d.is_service, isodow(d.date) >= 6 as is_weekend, median(d.n_accounts) as n_usual
    from sign_in_days as d
    where d.date < cast($window_from as date)
    group by d.tenant_key, d.is_service, isodow(d.date) >= 6
),

unmatched as (
    select m.*, u.n_usual
    from matched as m
    semi join classes using (tenant_key, is_service)
    inner join reading_days as d using (tenant_key, is_service, date)
    left join sign_in_days as s using (tenant_key, is_service, date)
    left join sign_in_usual as u
        on m.tenant_key = u.tenant_key and m.is_service = u.is_service and u.is_weekend = (isodow(m.date) >= 6)
    where not m.has_sign_in and m.n_ops >= $min_ops and m.last_ts >= $window_from
        -- A service signs in every day; a person at the usual place whose sign-in lacks is most often a gap.
        and d.n_at_home <= greatest(if(m.is_service, 1, 0), $max_share * d.n_accounts)
        -- Others of the same kind signed in as usual; where there is none, nothing vouches for the log.
        and coalesce(s.n_accounts, 0) >= greatest(1, $min_coverage * coalesce(u.n_usual, 1))
),

runs as (
    select *, sum(is_start) over (partition by tenant_key, entity_id order by date) as run
    from (
        select *, if(date - lag(date) over (partition by tenant_key, entity_id order by date) <= 3, 0, 1) as is_start
        from unmatched
    ) as u
),

spans as (
    select tenant_key, entity_id, is_service, run, min(date) as first_day, max(date) as last_day, count(*) as n_days,
        min(n_usual) as n_usual
    from runs
    group by tenant_key, entity_id, is_service, run
),

described as (
    select s.tenant_key, s.entity_id, s.run, s.is_service, s.first_day, s.n_days, s.n_usual, min(u.first_ts) as first_seen,
        max(u.last_ts) as last_seen, cast(sum(u.n_ops) as bigint) as n_ops, cast(sum(u.items) as bigint) as n_items,
        list(distinct u.protocol order by u.protocol) as protocols,
        list(distinct u.principal_id order by u.principal_id) filter (where u.principal_id is not null) as principal_ids,
        list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null and s.is_service) as app_ids,
        list(distinct coalesce(u.principal_id, u.app_id)) as actor_ids,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
        list(distinct u.src_net) as evidence_networks,
        list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps
    from spans as s
    inner join runs as r using (tenant_key, entity_id, is_service, run)
    inner join uses as u on r.tenant_key = u.tenant_key and r.entity_id = u.entity_id and r.date = u.date and not u.is_signin
    group by s.tenant_key, s.entity_id, s.run, s.is_service, s.first_day, s.n_days, s.n_usual
),

pasts as (
    select d.tenant_key, d.entity_id, d.run, count(*) as n_signed_in
    from described as d
    inner join sign_ins as s using (tenant_key, entity_id)
    where s.date < d.first_day
    group by d.tenant_key, d.entity_id, d.run
)

select nullif(d.tenant_key, '') as tenant_id, d.entity_id, d.first_day, d.first_seen, d.last_seen, d.n_days, d.n_ops, d.n_items,
    d.protocols, d.principal_ids, d.app_ids, d.actor_ids, d.source_networks, d.evidence_networks, d.client_fps, d.is_service,
    $token_hours as token_hours,
    false as is_declared, cast(null as boolean) as is_declared_net,
    if(
        p.n_signed_in > 0, 'On ' || p.n_signed_in || if(p.n_signed_in = 1, ' day', ' days') || ' before it signed in.',
        'No sign-in of it is known at all.'
    ) as normal,
    'Others of its kind signed in on these days as usual.' as remark,
    if(t.onboarded_at > d.first_seen - to_days(30), 'medium', 'critical') as severity,
    if(d.n_usual >= 3, 0.9, 0.6) * if(p.n_signed_in >= 10 or p.n_signed_in is null, 1.0, 0.7) as confidence,
    if(d.is_service, 1.5, 1.0) as impact
from described as d
left join pasts as p using (tenant_key, entity_id, run)
left join tenants as t on d.tenant_key = t.tenant_id
order by d.first_seen, d.tenant_key, d.entity_id
