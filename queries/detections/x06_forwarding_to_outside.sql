/*---
id = "X06"
title = "Mail is sent outside, hidden or deleted by a rule"
hypothesis = "A rule, a forwarding, a journal rule or a connector takes mail out for as long as nobody looks at it."
family = "exfiltration"
severity = "high"
tables = ["change_events", "context_days", "messages", "first_seen", "tenants", "mailboxes", "networks"]
needs = ["change_events"]
identity = ["tenant_id", "kind", "target", "first_object"]
explanation = "{what} was set[ for {n_boxes:count mailbox/mailboxes}][ in tenant {tenant_id}] {first_seen:span}[ by {changed_by}].[ {flow}][ {remark}]"
step = "{what} was set {first_seen:days}[ by {changed_by}].[ {flow}]"
why = "[{remark}]"
false_positives = [
  "a forwarding that is on the approved list: declare the target as a mailbox in mailboxes.csv",
  "a merger or a move to another provider, during which whole groups forward",
  "a new archive or ticket system that gets its mail by a rule",
]
blind_spots = [
  "rules that a client keeps to itself, and rules made before the audit began",
  "a forwarding to an address inside that forwards on",
  "tenants whose administrator and mailbox audit was not ingested",
  "flow to the target that left by a server whose log was not ingested",
]
runbook = [
  "`new_value`: read the whole setting in change_events of the day, and ask the owner of the mailbox whether it was intended",
  "`target_id`: search change_events for the same target in the 90 days before and after, in all tenants",
  "`rcpt`: count what was delivered to the target in mail_events in the 30 days after the change, with subjects where logged",
  "`src_net`, `actor_id`: compare the source of the change with the sign-ins of the actor in the 30 days before",
]

attack = [
  { technique = "T1114.003", name = "Email Forwarding Rule", tactics = ["collection"] },
  { technique = "T1098.002", name = "Additional Email Delegate Permissions", tactics = ["persistence", "privilege-escalation"] },
  { technique = "T1564.008", name = "Email Hiding Rules", tactics = ["stealth"] },
]

parameters = [
  { name = "confirm_days", default = 7, help = "days after the change within which flow to the target confirms it" },
  { name = "same_target_days", default = 90, help = "days before the window in which the same target elsewhere counts" },
  { name = "known_days", default = 14, help = "days that the actor must have used the network of the change before, for it to be the actor's own" },
]

[[requires]]
sql = "select exists (select 1 from change_events)"
reason = "no administrator or mailbox audit was ingested: no rule, forwarding or connector is known"

[evidence]
table = "change_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
match = { event_uid = "change_uids" }
---*/
-- change_events is small and read whole: it has no derived table.
with changes as (
    select event_uid, ts, tenant_id, op, lower(op_raw) as op_raw, actor_id, actor_type, src_net, lower(target_id) as target_id,
        lower(coalesce(attr, '')) as attr, lower(coalesce(new_value, '')) as setting, lower(coalesce(old_value, '')) as old_setting,
        is_external_target
    from change_events
    where date >= cast($window_from as date) - cast($same_target_days as integer) and date <= cast($window_to as date)
        and ts < $window_to and outcome <> 'failure'
        and op in ('inbox_rule', 'forwarding', 'transport_rule', 'journal_rule', 'connector', 'folder_permission')
),

-- Values of the settings that name where mail goes; a change of one setting has its value alone.
destinations as (
    select *,
        if(
            starts_with(attr, 'identity') or contains(attr, ';') or contains(setting, '=') or attr = '',
            array_to_string(regexp_extract_all(
                setting,
                '(?:^|; )(?:forwardto|redirectto|forwardasattachmentto|forwardingsmtpaddress|forwardingaddress|blindcopyto'
                || '|redirectmessageto|copyto|addtorecipients|journalemailaddress|journalingreportndrto|sendto'
                || '|externalemailaddress|ruleactions|actions)'
                || '=([^;]*(?:;[^; ][^;]*)*)', 1
            ), ' '),
            setting
        ) as destination
    from changes
    where op in ('inbox_rule', 'forwarding', 'transport_rule', 'journal_rule')
),

addresses as (
    select * exclude (address), rtrim(address, '.') as address, split_part(rtrim(address, '.'), '@', 2) as domain
    from (
        select *,
            unnest(list_distinct(regexp_extract_all(destination, '[^\s@"'',;:<>\[\](){}|\\/=]+@[a-z0-9.-]+\.[a-z0-9-]+'))) as address
        from destinations
    ) as d
),

own_domains as (
    select tenant_id, trim(unnest(string_split(lower(domain), ';'))) as domain from tenants where domain is not null
),

-- An address of the tenant, or one that the reference tables name, is no stranger.
strange_addresses as (
    select a.*
    from addresses as a
    left join own_domains as o on a.tenant_id = o.tenant_id and a.domain = o.domain
    left join (select distinct lower(mailbox_id) as mailbox_id from mailboxes) as m on a.address = m.mailbox_id
    where o.domain is null and m.mailbox_id is null
        and a.domain is distinct from nullif(split_part(a.target_id, '@', 2), '')
        and coalesce(a.is_external_target, a.tenant_id in (select d.tenant_id from own_domains as d))
),

external_hits as (
    select event_uid, ts, tenant_id, op as kind, address as target, domain, actor_id, actor_type, src_net, target_id as object_id,
        old_setting
    from strange_addresses
),

-- Everybody may read the mailbox, not only its calendar or contacts.
opened_to_all as (
    select event_uid, ts, tenant_id, op as kind, 'everybody' as target, cast(null as varchar) as domain, actor_id, actor_type, src_net,
        target_id as object_id, old_setting
    from changes
    where op = 'folder_permission'
        and regexp_matches(setting, '(?:^|; )(?:user|memberupn|member)=(?:default|anonymous|everyone)(?:;|$)')
        and regexp_matches(
            setting, 'accessrights?=[^;]*(?:reviewer|author|editor|owner|readitems|contributor)|memberrights=[^;]*read'
        )
        and regexp_matches(
            coalesce(target_id, '') || ' ' || setting,
            ':\\?(?:$|[ ;]|inbox|sent|top of information store|posteingang|gesendet|bo.te de r|bandeja)|top of information store|\\inbox'
        )
),

-- Rules that make mail disappear from its reader's eyes.
hiding_rules as (
    select *,
        regexp_matches(
            setting,
            '(?:^|; )[a-z]*(?:containswords|from|sentto|recipient[a-z]*|withinsizerange[a-z]*|hasattachment|received[a-z]*|header[a-z]*)='
        ) as has_condition,
        regexp_matches(
            setting,
            'containswords=[^;]*(?:attention|invoice|payment|payroll|wire|bank|hack|phish|spam|scam|fraud|password|security|mfa|verif'
            || '|suspicious|compromis|helpdesk|alert|undeliver|do not click|docusign)'
        ) as has_telling_words,
        regexp_matches(setting, '(?:^|; )name=[^a-z0-9]{0,3}(?:;|$)|(?:^|; )name=(.)\s*(?:;|$)') as has_empty_name
    from changes
    where op = 'inbox_rule'
        and regexp_matches(
            setting,
            '(?:^|; )(?:softdeletemessage|deletemessage)=\$?true'
            || '|movetofolder=[^;]*(?:rss|conversation history|junk|deleted items|archive|sync issues)'
        )
        and event_uid not in (select e.event_uid from external_hits as e)
),

hidden_hits as (
    select event_uid, ts, tenant_id, 'hiding_rule' as kind, 'nowhere' as target, cast(null as varchar) as domain, actor_id, actor_type,
        src_net, target_id as object_id, old_setting
    from hiding_rules
    where has_telling_words or has_empty_name or (not has_condition and contains(setting, 'markasread='))
        or (not has_condition and not contains(setting, 'movetofolder='))
),

-- Mail routed to another host by a connector towards the outside.
connector_hits as (
    select event_uid, ts, tenant_id, 'connector' as kind,
        coalesce(nullif(regexp_extract(setting, '(?:^|; )smarthosts?=([^;]*)', 1), ''), 'another host') as target,
        cast(null as varchar) as domain, actor_id, actor_type, src_net, target_id as object_id, old_setting
    from changes
    where op = 'connector' and regexp_matches(op_raw, 'outbound|sendconnector') and contains(setting, 'smarthost')
        and coalesce(actor_type, '') <> 'system'
),

hits as (
    select * from external_hits
    union all
    select * from opened_to_all
    union all
    select * from hidden_hits
    union all
    select * from connector_hits
),

spreads as (
    select target, count(distinct coalesce(tenant_id, '')) as n_tenants,
        count(distinct coalesce(tenant_id, '') || ' ' || coalesce(object_id, '')) as n_all
    from external_hits
    group by target
),

actors as (
    select entity_id as actor_id, attr_value as src_net, min(first_ts) as first_ts
    from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= cast($window_to as date)
        and entity_id in (select h.actor_id from hits as h where h.ts >= $window_from)
    group by entity_id, attr_value
),

grouped as (
    select h.tenant_id, h.kind, h.target, if(h.kind in ('hiding_rule', 'folder_permission', 'connector'), h.object_id, '') as first_object,
        max(h.domain) as domain, min(h.ts) as first_seen, max(h.ts) as last_seen,
        list(distinct h.event_uid order by h.event_uid) as change_uids,
        count(distinct h.event_uid) as n_changes, count(distinct h.object_id) as n_objects, max(h.actor_id) as changed_by,
        list(distinct h.actor_id order by h.actor_id) filter (where h.actor_id is not null) as principal_ids,
        list(distinct h.src_net order by h.src_net) filter (where h.src_net is not null) as source_networks,
        list(distinct h.object_id order by h.object_id) filter (where contains(h.object_id, '@')) as mailboxes,
        max(h.old_setting) as old_setting,
        bool_and(
            coalesce(a.first_ts < h.ts - to_days(cast($known_days as integer)), false) or exists (
                select 1 from declared_networks() as d
                where d.kind = 'corporate' and d.is_whole and net_number(h.src_net) between d.first_net and d.last_net
                    and h.ts between d.valid_from and d.valid_to
            )
        ) as is_own_network,
        bool_and(
            h.object_id is not distinct from h.actor_id or starts_with(coalesce(h.object_id, ''), coalesce(h.actor_id, '?') || ':')
        ) as is_own_mailbox
    from hits as h
    left join actors as a on h.actor_id = a.actor_id and h.src_net = a.src_net
    where h.ts >= $window_from
    group by all
),

flows as (
    select g.tenant_id, g.kind, g.target,
        count(*) filter (
            where m.first_ts >= g.first_seen and m.first_ts < g.first_seen + to_days(cast($confirm_days as integer))
        ) as n_after,
        count(*) filter (where m.first_ts < g.first_seen) as n_before
    from (select tenant_id, kind, target, min(first_seen) as first_seen from grouped group by all) as g
    inner join (
        select lower(rcpt) as rcpt, tenant_id, first_ts
        from messages
        where date >= cast($window_from as date) - cast($confirm_days as integer)
            and date <= cast($window_to as date) + cast($confirm_days as integer)
            and counts and status in ('delivered', 'sent')
            and lower(rcpt) in (select e.target from external_hits as e)
    ) as m on g.target = m.rcpt and (m.tenant_id is null or g.tenant_id is null or g.tenant_id = m.tenant_id)
    group by g.tenant_id, g.kind, g.target
),

look_alikes as (
    select distinct g.target
    from grouped as g
    inner join own_domains as o on levenshtein(g.domain, o.domain) between 1 and 2 and length(o.domain) >= 7
    union
    select target from grouped where old_setting <> '' and domain is not null
        and levenshtein(domain, regexp_extract(old_setting, '@([a-z0-9.-]+)', 1)) between 1 and 2
),

weighed as (
    select g.*, coalesce(f.n_after, 0) as n_after, coalesce(f.n_before, 0) as n_before, coalesce(s.n_all, 1) as n_all,
        coalesce(s.n_tenants, 1) as n_tenants, l.target is not null as is_look_alike,
        g.kind in ('journal_rule', 'transport_rule', 'connector') as is_for_all
    from grouped as g
    left join flows as f on g.tenant_id is not distinct from f.tenant_id and g.kind = f.kind and g.target = f.target
    left join spreads as s on g.target = s.target
    left join look_alikes as l on g.target = l.target
)

select *, cast(null as boolean) as is_declared_net, false as is_declared,
    if(is_for_all, null, n_objects) as n_boxes,
    case kind
        when 'inbox_rule' then 'A rule that sends mail on to ' || target
        when 'forwarding' then 'Forwarding to ' || target
        when 'transport_rule' then 'A rule for the whole organisation that copies mail to ' || target
        when 'journal_rule' then 'A copy of all journaled mail to ' || target
        when 'connector' then 'A route for outgoing mail over ' || target
        when 'folder_permission' then 'Permission for everybody to read mail'
        else 'A rule that makes mail disappear'
    end as what,
    case
        when n_after > n_before then
            'Within ' || $confirm_days || ' days ' || n_after || if(n_after = 1, ' message', ' messages') || ' went there.'
        when kind in ('inbox_rule', 'forwarding', 'transport_rule', 'journal_rule') then 'No mail to that address is in the logs yet.'
    end as flow,
    concat_ws(
        ' ',
        if(is_look_alike, 'The domain resembles a known one.', null),
        if(n_tenants > 1, 'The same target was set in ' || n_tenants || ' tenants.', null),
        if(n_tenants = 1 and n_all > 1, 'The same target was set for ' || n_all || ' mailboxes or rules.', null),
        if(is_own_network, 'The change came from the usual network of the actor.', null)
    ) as remark,
    case
        when (n_all >= 2 or is_look_alike) and kind in ('inbox_rule', 'forwarding', 'transport_rule', 'journal_rule') then 'critical'
        when kind in ('journal_rule', 'transport_rule') then if(n_after > n_before, 'critical', 'high')
        when kind in ('hiding_rule', 'connector') then if(is_own_network, 'low', 'medium')
        when kind = 'folder_permission' then if(is_own_network and is_own_mailbox, 'low', 'medium')
        when n_after > n_before then if(is_own_network, 'medium', 'high')
        -- An administrator at the own desk who forwards one shared mailbox, so far without mail: to be listed, no more.
        when is_own_network and not is_own_mailbox then 'info'
        else if(is_own_network, 'low', 'medium')
    end as severity,
    if(n_after > n_before or n_all >= 2, 1.0, 0.7) as confidence,
    case when kind = 'journal_rule' or n_tenants > 1 then 2.0 when kind = 'transport_rule' or n_objects >= 5 then 1.5 else 1.0 end as impact
from weighed
order by first_seen, tenant_id, kind, target, first_object
