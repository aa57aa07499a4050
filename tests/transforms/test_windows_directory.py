"""Windows events of domain controllers: the same event gives the same row from each of the exports."""

import csv
import io
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.windows_directory import sniff
from transforms.framing import Framer, head_of
from transforms.model import IGNORED, QUARANTINED, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
EVENT = "access_events"


def rows_of(text: str, **how: Any) -> list[dict[str, Any]]:
    data = text.encode()
    choice = registry.choose(head_of(data, "events"))
    assert not isinstance(choice, str), choice
    assert choice.name == "windows_directory"
    ctx = Context("e" * 64, variant=choice.match.variant, **how)
    blocks = list(Framer(io.BytesIO(data), choice.framing).blocks())
    rows = pl.concat([registry.parse(choice, block, ctx) for block in blocks], how="diagonal").sort("record_no")
    assert rows.height == sum(block.height for block in blocks)
    assert rows["disposition"].null_count() == 0
    return rows.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return rows_of((SAMPLES / "windows_directory.jsonl").read_text())


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    kinds = [(row["disposition"], None if row["disposition"] == EVENT else row["reason"]) for row in sample]
    event, no = (EVENT, None), "windows_directory: "
    assert kinds == [
        *[event] * 4, (IGNORED, no + "no network logon"), *[event] * 4, (IGNORED, no + "event of another kind"),
        (QUARANTINED, no + "no search in the event"), (QUARANTINED, no + "time not readable"),
        (QUARANTINED, no + "no account in the event"), (QUARANTINED, no + "no JSON object"),
        (QUARANTINED, no + "no event id"),
    ]  # fmt: skip


SEARCH = {
    "source": "windows_directory", "protocol": "ldap", "action": "search", "op_raw": "1644", "outcome": "success",
    "principal_id": "tenant-a\\svc-sync", "principal_type": "user", "src_ip_raw": "198.51.100.7:51234",
    "tenant_domain": "tenant-a.example", "ldap_base": "DC=tenant-a,DC=example", "entries_returned": 12,
    "ldap_filter_class": "(&(objectclass=?)(samaccountname=?))", "host": "dc1.tenant-a.example", "reason": None,
}  # fmt: skip
BIND = {
    "protocol": "ldap", "action": "bind", "op_raw": "2889", "outcome": "unknown", "src_ip_raw": "198.51.100.8:4444",
    "principal_id": "tenant-a\\alice", "credential_id": "pw:tenant-a\\alice", "auth_method": "SIMPLE",
    "reason": "bind without signing or TLS",
}  # fmt: skip
LOGON = {
    "protocol": "directory", "action": "signin", "op_raw": "4624", "outcome": "success", "auth_method": "NTLM",
    "principal_id": "tenant-a\\bob", "src_ip_raw": "198.51.100.9:50111", "session_id": "0x1f",
}  # fmt: skip
FAILED = {
    "action": "signin", "op_raw": "4625", "outcome": "failure", "principal_id": "mallory@tenant-b.example",
    "src_ip_raw": "2001:db8::7", "reason": "0xc000006a wrong password",
}  # fmt: skip
LOCKED = {"action": "auth", "outcome": "failure", "principal_id": "carol", "reason": "0xc0000234 account locked"}


def test_rows(sample: list[dict[str, Any]]) -> None:
    check(sample[0], SEARCH | {"ts": datetime(2024, 3, 3, 8, 0, 0, 123000, UTC), "ts_basis": "offset"})
    check(sample[1], BIND)
    check(sample[2], {"auth_method": "SASL unsigned", "credential_id": None})
    check(sample[3], LOGON)
    check(sample[5], FAILED | {"credential_id": "pw:mallory@tenant-b.example", "tenant_domain": "tenant-b.example"})
    check(sample[6], {"outcome": "success", "principal_type": "computer", "src_ip_raw": None})
    check(sample[7], LOCKED)
    check(sample[8], {"principal_type": "anonymous", "credential_id": None, "src_ip_raw": "203.0.113.4"})


VALUES = {
    1644: ["DC=tenant-a,DC=example", " ( &  (objectClass=user)  (sAMAccountName=bob) ) ", "4000", "12",
           "198.51.100.7:51234", "subtree", "[all]", "", *["0"] * 8, "TENANT-A\\svc-sync"],
    2889: ["198.51.100.8:4444", "TENANT-A\\Alice", "1"],
    4624: ["S-1-0-0", "-", "-", "0x0", "S-1-5-21", "bob", "TENANT-A", "0x1f", "3", "NtLmSsp ", "NTLM", "MX1", "{0}",
           "-", "-", "0", "0x0", "-", "198.51.100.9", "50111"],
    4625: ["S-1-0-0", "-", "-", "0x0", "S-1-0-0", "mallory@tenant-b.example", "", "0xc000006d", "%%2313", "0xc000006a",
           "8", "Advapi  ", "Negotiate", "MX1", "-", "-", "0", "0x0", "-", "2001:db8::7", "1"],
    4776: ["MICROSOFT_AUTHENTICATION_PACKAGE_V1_0", "carol", "MX1", "0xc0000234"],
}  # fmt: skip
MESSAGES = {
    1644: "Internal event: A client issued a search operation with the following options. \r\n \r\nClient:\r\n"
    "198.51.100.7:51234 \r\nStarting node:\r\nDC=tenant-a,DC=example \r\nFilter:\r\n ( &  (objectClass=user)  "
    "(sAMAccountName=bob) )  \r\nVisited entries:\r\n4000 \r\nReturned entries:\r\n12 \r\nUser:\r\nTENANT-A\\svc-sync",
    2889: "The following client performed a bind\r\n \r\nClient IP address:\r\n198.51.100.8:4444 \r\n"
    "Identity the client attempted to authenticate as:\r\nTENANT-A\\Alice \r\nBinding Type:\r\n1",
    4624: "An account was successfully logged on.\r\n\r\nSubject:\r\n\tAccount Name:\t\t-\r\n\r\nLogon Type:\t\t\t3\r\n\r\n"
    "New Logon:\r\n\tSecurity ID:\t\tS-1\r\n\tAccount Name:\t\tbob\r\n\tAccount Domain:\t\tTENANT-A\r\n\tLogon ID:\t\t0x1f\r\n"
    "\r\n\tSource Network Address:\t198.51.100.9\r\n\tSource Port:\t\t50111\r\n\tAuthentication Package:\tNTLM\r\n",
    4625: "An account failed to log on.\r\n\r\nSubject:\r\n\tAccount Name:\t\t-\r\n\r\nLogon Type:\t\t\t8\r\n\r\n"
    "Account For Which Logon Failed:\r\n\tAccount Name:\t\tmallory@tenant-b.example\r\n\tAccount Domain:\t\t\r\n\r\n"
    "\tStatus:\t\t\t0xC000006D\r\n\tSub Status:\t\t0xC000006A\r\n\tSource Network Address:\t2001:db8::7\r\n",
    4776: "The computer attempted to validate the credentials for an account.\r\n\r\nAuthentication Package:\tMICROSOFT\r\n"
    "Logon Account:\tcarol\r\nSource Workstation:\tMX1\r\nError Code:\t0xC0000234\r\n",
}
EXPECTED = [SEARCH, BIND, LOGON, FAILED, LOCKED]
HOST = "dc1.tenant-a.example"


def evtx(number: int, *, plain: bool) -> dict[str, Any]:
    texts = VALUES[number]
    system = {
        "EventID": number if plain else {"#attributes": {"Qualifiers": 16384}, "#text": number},
        "TimeCreated": {"#attributes": {"SystemTime": "2024-03-03T08:00:00.123456Z"}},
        "EventRecordID": number, "Channel": "Directory Service", "Computer": HOST,
    }  # fmt: skip
    data: Any = {"Data": texts if plain else {"#text": texts}}
    if number > 4000:
        names = {4624: ((5, "TargetUserName"), (6, "TargetDomainName"), (7, "TargetLogonId"), (8, "LogonType"),
                        (10, "AuthenticationPackageName"), (18, "IpAddress"), (19, "IpPort")),
                 4625: ((5, "TargetUserName"), (7, "Status"), (9, "SubStatus"), (10, "LogonType"), (19, "IpAddress")),
                 4776: ((0, "PackageName"), (1, "TargetUserName"), (3, "Status"))}  # fmt: skip
        data = {name: texts[at] for at, name in names[number]}
    return {"Event": {"#attributes": {"xmlns": "x"}, "System": system, "EventData": data}}


def powershell(number: int, time: str) -> dict[str, Any]:
    return {
        "Id": number, "ProviderName": "x", "LogName": "Security", "MachineName": HOST, "RecordId": number,
        "TimeCreated": time, "Properties": [{"Value": v} for v in VALUES[number]], "Message": "...",
    }  # fmt: skip


@pytest.mark.parametrize("plain", [True, False])
def test_evtx_dump(plain: bool) -> None:
    made = [evtx(number, plain=plain) for number in VALUES]
    for text in ("\n".join(map(json.dumps, made)), json.dumps(made, indent=1)):
        for row, expected in zip(rows_of(text), EXPECTED, strict=True):
            check(row, expected | {"ts": datetime(2024, 3, 3, 8, 0, 0, 123456, UTC)})


@pytest.mark.parametrize("time", ["/Date(1709452800123)/", "2024-03-03T09:00:00.123+01:00"])
def test_powershell_json(time: str) -> None:
    made = [powershell(number, time) for number in VALUES]
    for text in (json.dumps(made), json.dumps(made, indent=4).replace("/", "\\/")):
        for row, expected in zip(rows_of(text), EXPECTED, strict=True):
            check(row, expected | {"ts": datetime(2024, 3, 3, 8, 0, 0, 123000, UTC)})


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("3/4/2024 10:12:53 PM", datetime(2024, 3, 4, 22, 12, 53, tzinfo=UTC)),
        ("3/4/2024 12:12:53 AM", datetime(2024, 3, 4, 0, 12, 53, tzinfo=UTC)),
        ("04/03/2024 22:12:53", datetime(2024, 3, 4, 22, 12, 53, tzinfo=UTC)),
        ("04.03.2024 22:12:53", datetime(2024, 3, 4, 22, 12, 53, tzinfo=UTC)),
        ("2024-03-04 22:12:53", datetime(2024, 3, 4, 22, 12, 53, tzinfo=UTC)),
    ],
)
def test_export_csv(time: str, expected: datetime) -> None:
    out = io.StringIO()
    written = csv.writer(out, quoting=csv.QUOTE_ALL)
    written.writerow(["Message", "Id", "ProviderName", "LogName", "MachineName", "TimeCreated", "RecordId"])
    for number, message in MESSAGES.items():
        written.writerow([message, number, "x", "Security", HOST, time, number])
    header, *rows = rows_of(out.getvalue(), tz="UTC")
    assert (header["disposition"], header["reason"]) == (IGNORED, "header")
    for row, wanted in zip(rows, EXPECTED, strict=True):
        check(row, wanted | {"ts": expected, "ts_basis": "assumed_zone"})


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="-"), min_size=1, max_size=15
)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(TEXT, st.ip_addresses().map(str), st.integers(0, 10**12))
def test_round_trip(user: str, address: str, entries: int) -> None:
    values = [*VALUES[1644]]
    values[1], values[3], values[4], values[16] = "(cn=a)", str(entries), address, user
    record = powershell(1644, "2024-03-03T08:00:00Z") | {"Properties": [{"Value": v} for v in values]}
    (row,) = rows_of(json.dumps([record]))
    check(row, {"principal_id": user.lower(), "src_ip_raw": address, "entries_returned": entries})


def test_damage_never_raises() -> None:
    chance = random.Random(2)
    lines = (SAMPLES / "windows_directory.jsonl").read_text().splitlines()
    damaged = [line[:at] for line in lines for at in range(0, len(line), 13)]
    damaged += [line[:at] + "\0{[" + line[at:] for line in lines for at in range(0, len(line), 41)]
    chance.shuffle(damaged)
    assert len(rows_of("\n".join([lines[0], *damaged]))) > len(lines)
    pretty = json.dumps([evtx(n, plain=False) for n in VALUES], indent=1)
    for at in range(600, len(pretty), 97):
        rows_of(pretty[:at])


def others() -> list[Path]:
    real = [p for p in SHARED.rglob("*") if p.is_file()] if SHARED.is_dir() else []
    return real + [p for p in SAMPLES.iterdir() if p.stem != "windows_directory"]


def test_claims_no_other_log() -> None:
    for path in others():
        assert sniff(head_of(path.read_bytes()[:65536], path.name)) is None, path
