"""SQL macros over the tables: what several detections ask, and an analyst's query may ask as well.

Networks are compared at the size of `src_net`, /24 for IPv4 and /48 for IPv6, by numbers: a network has one, a range a
first and a last. Those of IPv6 lie above all of IPv4.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

DECLARED = ("vendor_egress", "vendor", "corporate", "microsoft")
SERVICES = ("service_principal", "service_account", "computer")

_PART = "lpad(split_part(split_part(net, '/', 1), ':', {}), 4, '0')"
_BYTE = "try_cast(split_part(split_part(net, '/', 1), '.', {}) as bigint)"
_SHIFT = "greatest(0, if(contains(net, ':'), 48, 24) - net_prefix(net))"

MACROS = {
    "net_prefix(net)": """
coalesce(try_cast(nullif(split_part(net, '/', 2), '') as integer), if(contains(net, ':'), 128, 32))
""",
    "net_number(net)": f"""
if(
    contains(net, ':'),
    (1::bigint << 48) + try_cast('0x' || {_PART.format(1)} || {_PART.format(2)} || {_PART.format(3)} as bigint),
    {_BYTE.format(1)} * 65536 + {_BYTE.format(2)} * 256 + {_BYTE.format(3)}
)
""",
    "net_first(net)": f"(net_number(net) >> {_SHIFT}) << {_SHIFT}",
    "net_last(net)": f"((net_number(net) >> {_SHIFT}) << {_SHIFT}) + (1::bigint << {_SHIFT}) - 1",
    # Ranges of the table networks; `is_whole` is false for those that are smaller than src_net.
    "declared_networks()": f"""table
select kind, owner, network, coalesce(valid_from, timestamptz '-infinity') as valid_from,
    coalesce(valid_to, timestamptz 'infinity') as valid_to, net_first(network) as first_net,
    net_last(network) as last_net, net_prefix(network) <= if(contains(network, ':'), 48, 24) as is_whole
from networks
where kind in {DECLARED} and net_prefix(network) between 0 and if(contains(network, ':'), 128, 32)
""",
    # Who the gateway is, by the tables credentials and bindings.
    "held_credentials()": """table
select lower(credential_id) as credential_id from credentials where credential_id is not null
union
select lower(credential_id) as credential_id from bindings where credential_id is not null
""",
    "held_principals()": """table
select distinct lower(principal_id) as principal_id from bindings where principal_id is not null
""",
    # Credentials that another replaced: whoever holds the new one is who held the old one until that was retired. What
    # was done with it in the time of its compromise may be somebody else's.
    "replaced_credentials()": """table
select lower(c.credential_id) as credential_id, lower(c.replaced_by) as successor_id,
    coalesce(c.revoked_at, c.not_after, timestamptz 'infinity') as retired_at,
    coalesce(c.compromised_from, if(c.compromised_to is null, timestamptz 'infinity', timestamptz '-infinity'))
        as compromised_from,
    coalesce(c.compromised_to, timestamptz 'infinity') as compromised_to,
    coalesce(s.not_before, s.first_known, timestamptz '-infinity') as successor_from
from credentials as c
left join (select lower(credential_id) as credential_id, min(not_before) as not_before, min(first_known) as first_known
    from credentials group by lower(credential_id)) as s on lower(c.replaced_by) = s.credential_id
where c.replaced_by is not null
""",
    # Days of service identities: by their kind, or because the gateway holds them.
    "service_days(first_day, last_day)": f"""table
select *
from context_days
where date >= first_day and date <= last_day
    and (
        principal_type in {SERVICES}
        or credential_id in (select h.credential_id from held_credentials() as h)
        or principal_id in (select h.principal_id from held_principals() as h)
    )
""",
    # Credentials and accounts that the reference tables announce, and from when to when, with days of grace:
    # a rotation, or a binding that begins. `tenant_key` is '' for all tenants.
    "announced(days)": """table
select name, coalesce(tenant_id, '') as tenant_key,
    coalesce(begins - to_days(cast(days as integer)), timestamptz '-infinity') as begins,
    coalesce(ends + to_days(cast(days as integer)), timestamptz 'infinity') as ends
from (
    select lower(o.replaced_by) as name, null as tenant_id, coalesce(n.not_before, n.first_known) as begins,
        o.revoked_at as ends
    from credentials as o
    left join credentials as n on lower(o.replaced_by) = lower(n.credential_id)
    union all
    select lower(new_credential_id), tenant_id, planned_at, greatest(revoke_planned_at, reported_done_at) from rotations
    union all
    select lower(unnest([credential_id, key_id, principal_id])), tenant_id, valid_from, coalesce(valid_from, valid_to)
    from bindings
) as a
where name is not null
""",
}
"""Signature to body, in the order in which they build on one another."""


_READS = {
    "declared_networks": {"networks"},
    "held_credentials": {"credentials", "bindings"},
    "held_principals": {"bindings"},
    "replaced_credentials": {"credentials"},
    "service_days": {"context_days", "credentials", "bindings"},
    "announced": {"credentials", "rotations", "bindings"},
}


def create(con: "duckdb.DuckDBPyConnection", tables: Collection[str]) -> None:
    """Creates the macros in a connection that has these tables (or views); those that read others are left out."""
    for signature, body in MACROS.items():
        if _READS.get(signature.partition("(")[0], set()) <= set(tables):
            con.execute(f"create or replace macro {signature} as {body}")
