"""client_days, folder_days, service_uses, throttled_days: small tables that a hunt reads in place of old raw rows."""

from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any

import polars as pl

from data_contracts import contract
from transforms.derived import client_days, folder_days, service_uses, throttled_days

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, 10, tzinfo=UTC)
LATER = NOON + timedelta(minutes=20)


def built(
    module: ModuleType, common: dict[str, Any], *rows: dict[str, Any], **others: list[dict[str, Any]]
) -> pl.DataFrame:
    events = [
        {"date": DAY, "ts": NOON, "outcome": "success", "event_uid": str(at)} | common | row
        for at, row in enumerate(rows)
    ]
    given = {
        name: pl.LazyFrame(listed, schema=contract(name).polars_schema)
        for name, listed in ({"access_events": events} | others).items()
    }
    accepted, refused = contract(module.TABLE).split(module.build([DAY], given).collect())
    assert refused.is_empty(), refused
    return accepted


def test_folders_of_products_and_administrators_are_kept_with_their_paths() -> None:
    one = {
        "principal_id": "app", "principal_type": "service_principal", "mailbox_id": "ann@a.example", "item_count": 3,
        "folders": ["\\Inbox", "/Sent Items/2020"],
    }  # fmt: skip
    rows = built(
        folder_days,
        one,
        {},
        {"ts": LATER, "folders": ["\\Inbox"], "item_count": None},
        {"principal_id": "adm", "principal_type": "user", "logon_type": "admin", "folders": ["\\Notes"]},
        {"principal_id": None, "principal_type": None, "app_id": "tool", "folders": ["\\Notes"]},
        {"principal_id": "eve", "principal_type": "user", "logon_type": "delegate"},  # a person opens what she likes
        {"logon_type": "owner"},
        {"outcome": "failure"},
        {"mailbox_id": None},
        {"folders": None},
        {"folders": [None]},
        {"date": DAY - timedelta(days=1)},
    )
    assert rows.select("actor_id", "folder", "n_rows", "items", "first_ts", "last_ts").rows() == [
        ("adm", "\\Notes", 1, 3, NOON, NOON),
        ("app", "/Sent Items/2020", 1, 3, NOON, NOON),
        ("app", "\\Inbox", 2, 3, NOON, LATER),
        ("tool", "\\Notes", 1, 3, NOON, NOON),
    ]


def test_of_a_record_that_names_very_many_folders_the_first_are_kept() -> None:
    one = {"principal_id": "app", "principal_type": "service_principal", "mailbox_id": "ann@a.example"}
    rows = built(folder_days, one, {"folders": [f"\\{at:04}" for at in range(3000)]})
    assert rows["folder"].to_list() == [f"\\{at:04}" for at in range(folder_days.MOST_FOLDERS)]


def test_clients_of_people_are_kept_by_day() -> None:
    one = {"principal_id": "ann@a.example", "mailbox_id": "ann@a.example", "client_fp": "00000000000000aa"}
    rows = built(
        client_days,
        one,
        {"principal_type": "user"},
        {"ts": LATER},
        {"client_fp": "00000000000000bb", "mailbox_id": "team@a.example"},
        {"principal_type": "service_account"},
        {"client_fp": None},
        {"outcome": "failure"},
        {"mailbox_id": None},  # a sign-in: no mailbox was opened
    )
    assert rows.select("client_fp", "n_rows", "first_ts", "last_ts").rows() == [
        ("00000000000000aa", 2, NOON, LATER),
        ("00000000000000bb", 1, NOON, NOON),
    ]


def test_every_throttled_mailbox_is_kept_with_whose_it_is() -> None:
    one = {"principal_id": "ann@a.example", "mailbox_id": "ann@a.example", "src_net": "192.0.2.0/24", "throttled": True}
    rows = built(
        throttled_days,
        one,
        {},
        {"ts": LATER, "logon_type": "owner"},
        {"logon_type": "delegate"},
        {"principal_id": None, "app_id": "tool"},
        {"throttled": False},
        {"throttled": None},
        {"mailbox_id": None},
    )
    assert rows.select("actor_id", "is_own", "n_rows", "first_ts", "last_ts").rows() == [
        ("ann@a.example", False, 1, NOON, NOON),
        ("ann@a.example", True, 2, NOON, LATER),
        ("tool", False, 1, NOON, NOON),
    ]


def test_uses_of_services_are_sign_ins_and_hours_of_reads() -> None:
    one = {"principal_id": "app", "principal_type": "service_principal", "src_net": "192.0.2.0/24"}
    read = {"protocol": "ews", "action": "get_item", "item_count": 5}
    rows = built(
        service_uses,
        one,
        {"protocol": "oauth", "action": "signin", "token_id": "tok"},
        {"protocol": "oauth", "action": "signin", "token_id": "tok", "ts": LATER},
        {"protocol": "oauth", "action": "signin", "session_id": "ses"},
        {"protocol": "oauth", "action": "signin"},
        read,
        read | {"ts": LATER, "item_count": None, "op_count": 2},
        read | {"ts": NOON + timedelta(hours=1), "item_count": None},
        read | {"outcome": "failure"},
        {"protocol": "pop3", "action": "auth"},  # stands in sessions
    )
    assert rows.sort("kind", "hour", "unit", nulls_last=False).select("kind", "unit", "items", "first_ts").rows() == [
        ("data", None, 7, NOON),
        ("data", None, 1, NOON + timedelta(hours=1)),
        ("session", "3", 0, NOON),
        ("session", "ses", 0, NOON),
        ("session", "tok", 0, NOON),
    ]


def test_an_account_that_only_the_jobs_of_the_day_name_is_a_service() -> None:
    one = {"principal_id": "gate@a.example", "principal_type": "user", "protocol": "ews", "action": "get_item"}
    events = [{"principal_id": "gate@a.example"}, {"principal_id": "ann@a.example"}]
    job = {"date": DAY, "ts": NOON, "principal_id": "gate@a.example"}
    assert built(service_uses, one, *events, gateway_jobs=[job])["principal_id"].to_list() == ["gate@a.example"]
    before = built(service_uses, one, *events, gateway_jobs=[job | {"date": DAY - timedelta(days=1)}])
    assert before.is_empty()
    named = built(service_uses, one, *events, bindings=[{"principal_id": "ANN@a.example"}])
    assert named["principal_id"].to_list() == ["ann@a.example"]
