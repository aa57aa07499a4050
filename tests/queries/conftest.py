"""Sigma rules over small events, for the tests about them."""

import atexit
import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import polars as pl
import pytest
import yaml

from data_contracts import contract
from queries.testing import database

WINDOW = {"window_from": datetime(2021, 1, 1, tzinfo=UTC), "window_to": datetime(2021, 2, 1, tzinfo=UTC)}
BASE = {
    "event_uid": "e",
    "ts_raw": "",
    "ts_basis": "utc",
    "tenant_id": "contoso",
    "tenant_basis": "record",
    "outcome": "success",
    "evidence_id": "x",
    "record_no": 0,
    "byte_offset": 0,
    "byte_length": 1,
}
CHANGE = BASE | {"source": "entra_audit", "op": "other", "op_raw": "Add user", "actor_id": "joey@contoso.example"}
ACCESS = BASE | {
    "source": "entra_user_signin",
    "protocol": "oauth",
    "action": "signin",
    "op_raw": "SignInLogs",
    "agg_level": "event",
    "principal_id": "joey@contoso.example",
    "principal_type": "user",
}
SENT = BASE | {"source": "postfix", "event": "send"}


def key(address: str) -> bytes:
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else b"\0" * 10 + b"\xff\xff" + found.packed


def row(base: dict[str, Any], n: int = 0, **values: Any) -> dict[str, Any]:
    at = datetime(2021, 1, 12, 6, n // 60, n % 60, tzinfo=UTC)
    more = {"src_ip_key": key(values["src_ip"])} if "src_ip" in values else {}
    return base | {"event_uid": f"e{n:04}", "ts": at, "date": at.date()} | more | values


def rule(source: dict[str, str], selection: Any = None, condition: str = "selection", **more: Any) -> str:
    detection = {"selection": selection} if selection is not None else {}
    fields = {k: v for k, v in more.items() if k != "detection"}
    detection |= more.get("detection", {})
    body = {"title": "t", "level": "medium", "logsource": source, "detection": detection | {"condition": condition}}
    return yaml.safe_dump(body | fields, sort_keys=False)


WRITTEN = ("access_events", "change_events", "mail_events")


@cache
def tables_of_contracts() -> Any:
    con = database({name: [] for name in WRITTEN})
    atexit.register(con.close)
    return con


def filled(tables: dict[str, list[dict[str, Any]]]) -> Any:
    """One connection for all tests: making all tables takes longer than a test."""
    con = tables_of_contracts()
    for name in WRITTEN:
        con.execute(f"delete from {name}")
        if tables.get(name):
            rows = pl.DataFrame(tables[name], schema=contract(name).polars_schema).to_arrow()
            con.register("given_rows", rows)
            con.execute(f"insert into {name} select * from given_rows")
            con.unregister("given_rows")
    return con


def findings(text: str, tables: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Findings of the last document over some rows."""
    from queries.engine import run_detection
    from queries.sigma.reading import documents
    from queries.sigma.rules import convert

    found = convert(documents(text.encode()), "S-TEST").detection
    answer = run_detection(filled(tables), found, WINDOW)
    assert isinstance(answer, list), answer
    return answer


def hits(text: str, table: str, rows: list[dict[str, Any]]) -> list[str]:
    """Event ids that a rule matched, in order."""
    return sorted(uid for f in findings(text, {table: rows}) for uid in f.evidence.event_uids)


def reasons(text: str) -> str:
    from queries.sigma.reading import documents
    from queries.sigma.rules import NotImportedError, convert

    with pytest.raises(NotImportedError) as caught:
        convert(documents(text.encode()), "S-TEST")
    return "; ".join(caught.value.reasons)


CHANGES = [
    row(CHANGE, 1, op_raw="Add service principal credentials", src_ip="198.51.100.7"),
    row(CHANGE, 2, op_raw="Update application \N{EN DASH} Certificates and secrets management ", src_ip="10.1.2.3"),
    row(
        CHANGE,
        3,
        op_raw="Add user",
        actor_id="eve@contoso.example",
        outcome="failure",
        reason="Denied",
        new_value="A=x; B=1",
    ),
    row(CHANGE, 4, op_raw="Delete user", actor_id=None, src_ip="2001:db8::5", user_agent="100%_\\sure's"),
]

SIGNINS = [
    row(ACCESS, 1),
    row(ACCESS, 2, outcome="failure", reason="50053: Account is locked", app_id="1b73", src_ip="203.0.113.9"),
    row(ACCESS, 3, outcome="failure", reason="50126"),
    row(ACCESS, 4, principal_type="service_principal", principal_id="b029", source="entra_sp_signin"),
]

MAILS = [
    row(
        SENT,
        1,
        mail_from="a@evil.example",
        rcpt="joey@contoso.example",
        subject="Invoice",
        size_bytes=10,
        src_host="EVIL.example",
    ),
    row(
        SENT,
        2,
        mail_from="b@contoso.example",
        rcpt="x@y.example",
        recipients=["x@y.example", "Z@evil.example"],
        size_bytes=5_000_000,
    ),
    row(SENT, 3, mail_from="", rcpt=None, event="bounce"),
]


class Sigma:
    """What the tests need of rules and rows."""

    change, access, sent = CHANGE, ACCESS, SENT
    changes, signins, mails = CHANGES, SIGNINS, MAILS
    row = staticmethod(row)
    rule = staticmethod(rule)
    filled = staticmethod(filled)
    findings = staticmethod(findings)
    hits = staticmethod(hits)
    reasons = staticmethod(reasons)


@pytest.fixture(scope="session")
def sigma() -> Iterator[Sigma]:
    """Rules, rows, and what matches."""
    yield Sigma()
    tables_of_contracts().close()
    tables_of_contracts.cache_clear()
