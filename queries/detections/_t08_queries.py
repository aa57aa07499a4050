"""What T08 asks: uses of the gateway's identities, and its jobs."""

# Identities of the gateway: those that the reference tables name, and those that its own jobs of the same days name.
HELD = """
(credential_id in (
    select lower(credential_id) from credentials where owner = 'vendor' union select lower(credential_id) from bindings
    union select unnest($credentials::varchar[]))
 or principal_id in (select lower(principal_id) from bindings union select unnest($principals::varchar[])))
"""

# Sessions stand for POP3, IMAP, SMTP and LDAP; sign-ins, and the first read of an hour, for the rest. These are raw rows
# in the window, whose sessions and items are told; of the days before it service_uses has them.
USES = f"""
select 'session' as kind, coalesce(tenant_id, '') as tenant_key, protocol as service, credential_id, principal_id,
    cast(null as varchar) as app_id, src_net, session_id as unit, if(source = 'postfix', null, [session_id]) as units,
    coalesce(start_ts, end_ts) as ts, coalesce(item_count, retr_count, 0) as items
from sessions
where date between $day and $last and outcome = 'success' and coalesce(start_ts, end_ts) >= $from and coalesce(start_ts, end_ts) < $to and {HELD}
union all
select 'session', coalesce(tenant_id, ''), 'web', any_value(credential_id), any_value(principal_id), any_value(app_id),
    max(src_net), unit, [unit], min(ts), 0
from (
    select tenant_id, credential_id, principal_id, app_id, src_net, coalesce(token_id, session_id, event_uid) as unit, ts
    from access_events
    where date between greatest($day, $raw) and $last and outcome = 'success' and action in ('signin', 'auth')
        and protocol in ('oauth', 'ews', 'graph', 'exchange') and ts < $to
    union all
    select tenant_id, credential_id, principal_id, app_id, src_net, unit, first_ts
    from service_uses
    where date between $day and least($last, $raw - 1) and kind = 'session'
)
where ts >= $from and {HELD}
group by coalesce(tenant_id, ''), unit
union all
select 'data', coalesce(tenant_id, ''), 'web', credential_id, principal_id, app_id, src_net, cast(null as varchar),
    list(distinct coalesce(token_id, session_id, event_uid)), min(ts), sum(coalesce(item_count, op_count, 1))
from access_events
where date between greatest($day, $raw) and $last and outcome = 'success' and protocol in ('ews', 'graph', 'exchange')
    and action in ('get_item', 'find_item', 'sync_folder', 'export', 'attachment') and ts >= $from and ts < $to and {HELD}
group by tenant_id, credential_id, principal_id, app_id, src_net, date_trunc('hour', ts)
union all
select 'data', coalesce(tenant_id, ''), 'web', credential_id, principal_id, app_id, src_net, cast(null as varchar),
    cast(null as varchar[]), first_ts, items
from service_uses
where date between $day and least($last, $raw - 1) and kind = 'data' and first_ts >= $from and {HELD}
"""

# gateway_jobs is the operator's own small record, read for the window and an hour on either side.
JOBS = """
select coalesce(tenant_id, '') as tenant_key,
    case when service in ('aad', 'ews', 'graph') then 'web' else service end as service,
    coalesce(host, source) as host, credential_id, principal_id, src_net, ts as job_ts,
    coalesce(ts_end, ts + interval 90 minute) as job_end
from gateway_jobs
where date between cast($from as date) - 1 and cast($to as date) + 1 and service <> 'other'
    and ts >= $from - interval 1 hour and ts < $to + interval 1 hour
"""
