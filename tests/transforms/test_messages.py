"""messages: one row per message and recipient, whatever files, midnights and hops its records lie in."""

import random
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts import contract
from transforms.derived import messages

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)
MID = "<1@sender.example>"


def frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pl.LazyFrame:
    rows = list(rows)
    if not rows:
        return pl.LazyFrame(schema=contract(name).polars_schema)
    columns = sorted({column for row in rows for column in row})
    data = {column: [row.get(column) for row in rows] for column in columns}
    schema = {column: contract(name).polars_schema[column] for column in columns}
    return contract(name).conform(pl.LazyFrame(data, schema=schema))


def at(seconds: float, days: int = 0) -> datetime:
    return NOON + timedelta(seconds=seconds, days=days)


def line(event: str, when: datetime, **values: Any) -> dict[str, Any]:
    outcome = "failure" if event in ("defer", "bounce", "reject", "expire") else "success"
    common = {"event": event, "ts": when, "date": when.date(), "outcome": outcome, "source": "postfix", "host": "mx1"}
    return common | {"direction": "unknown"} | values


def client(address: str | None) -> dict[str, Any]:
    return {"src_ip": address, "src_net": address and address.rsplit(".", 1)[0] + ".0/24"}


def postfix(queue: str, begin: datetime, rcpts: Iterable[str], **values: Any) -> list[dict[str, Any]]:
    """A message that Postfix takes and hands on within two seconds."""
    who = {"queue_id": queue, "host": values.pop("host", "mx1")}
    mid, source = values.pop("message_id", MID), values.pop("src_ip", "198.51.100.7")
    out = {"relay_host": "mx.b.example", "dst_ip": "203.0.113.9", "dsn": "2.0.0", "status_text": "250 Ok"} | values
    rcpts = list(rcpts)
    return [
        line("receive", begin, src_host="client.example", **client(source), **who),
        line("cleanup", begin, message_id=mid, **who),
        line("queue", begin, mail_from="a@a.example", size_bytes=1000, n_rcpt=len(rcpts), **who),
        *(line("send", begin + timedelta(seconds=1), rcpt=rcpt, delay_s=1.0, **who, **out) for rcpt in rcpts),
        line("remove", begin + timedelta(seconds=1), **who),
    ]


def built(
    mail: list[dict[str, Any]], access: list[dict[str, Any]] | None = None, day: date = DAY, **more: Any
) -> pl.DataFrame:
    tables = {"mail_events": frame("mail_events", mail), "access_events": frame("access_events", access or []), **more}
    rows = messages.build([day], tables)
    streamed = rows.collect(engine="streaming")
    assert_frame_equal(rows.collect(engine="in-memory"), streamed)
    accepted, refused = contract("messages").split(streamed)
    assert refused.is_empty(), refused
    return accepted


def everything(mail: list[dict[str, Any]], access: list[dict[str, Any]] | None = None) -> pl.DataFrame:
    """The table over all days, each built from the days in its reach only."""
    days = sorted({row["date"] for row in mail})
    before, after = messages.REACH
    parts = []
    for day in days:
        near = [day + timedelta(days=n) for n in range(-before, after + 1)]
        given = [[row for row in rows if row["date"] in near] for rows in (mail, access or [])]
        parts.append(built(given[0], given[1], day))
    return pl.concat(parts)


def test_postfix_lines_become_one_row_for_each_recipient() -> None:
    rows = built(postfix("4F9D1", at(0), ["Ann@B.example", "bob@b.example"]))
    assert rows["rcpt"].to_list() == ["ann@b.example", "bob@b.example"]
    row = rows.row(0, named=True)
    expected = {
        "date": DAY, "host": "mx1", "queue_id": "4F9D1", "message_id": MID, "first_ts": at(0), "received_ts": at(0),
        "last_ts": at(1), "src_ip": "198.51.100.7", "src_net": "198.51.100.0/24", "src_host": "client.example",
        "mail_from": "a@a.example", "rcpt_domain": "b.example", "size_bytes": 1000, "status": "sent", "dsn": "2.0.0",
        "status_text": "250 Ok", "relay_host": "mx.b.example", "dst_ip": "203.0.113.9", "attempts": 1, "delay_s": 1.0,
        "n_events": 6, "counts": True, "is_reinjection": False, "is_journal": False, "sources": ["postfix"],
        "chain_id": "mx1/4F9D1/2021-01-12T12:00:00.000000Z", "direction": "unknown",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_a_message_that_waits_three_days_is_one_row_on_the_day_it_came() -> None:
    who = {"queue_id": "4F9D1", "rcpt": "ann@b.example"}
    later = postfix("4F9D1", at(0, 3), ["ann@b.example"])[-3:]  # the queue line again, sent, removed
    mail = [*postfix("4F9D1", at(0), [])[:3], line("defer", at(5), status_text="451 later", dsn="4.3.0", **who)]
    rows = everything(mail + later)
    assert rows.select("date", "status", "attempts", "size_bytes", "last_ts").rows() == [
        (DAY, "sent", 2, 1000, at(1, 3))
    ]
    waiting = built(mail).row(0, named=True)
    assert (waiting["status"], waiting["status_text"], waiting["attempts"]) == ("deferred", "451 later", 1)


def test_nothing_between_reception_and_delivery_but_a_week() -> None:
    mail = postfix("4F9D1", at(0), ["ann@b.example"])
    for row in mail[3:]:
        row["ts"], row["date"] = row["ts"] + timedelta(days=7), row["date"] + timedelta(days=7)
    rows = everything(mail)
    assert rows.select("date", "status", "delay_s").rows() == [(DAY, "sent", 1.0)]


def test_an_id_used_again_is_another_message() -> None:
    again = [
        *postfix("4F9D1", at(0), ["ann@b.example"]),
        *postfix("4F9D1", at(60), ["bob@b.example"], message_id="<2@sender.example>"),
        *postfix("4F9D1", at(120), ["eve@b.example"], message_id="<3@sender.example>")[:-1],  # its end is lost
        *postfix("4F9D1", at(180), ["dan@b.example"], message_id="<4@sender.example>"),
        *postfix("4F9D1", at(0), ["ann@b.example"], host="mx2", message_id="<5@sender.example>"),
    ]
    rows = built(again).sort("first_ts", "host")
    assert rows.select("rcpt", "message_id").rows() == [
        ("ann@b.example", MID), ("ann@b.example", "<5@sender.example>"), ("bob@b.example", "<2@sender.example>"),
        ("eve@b.example", "<3@sender.example>"), ("dan@b.example", "<4@sender.example>"),
    ]  # fmt: skip
    assert rows["counts"].all()


def test_a_content_filter_counts_once_and_keeps_the_client() -> None:
    first = postfix(
        "AAAA1", at(0), ["ann@b.example"], relay_host="127.0.0.1", dst_ip="127.0.0.1",
        status_text="250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as BBBB2",
    )  # fmt: skip
    second = postfix("BBBB2", at(0), ["ann@b.example"], src_ip="127.0.0.1")
    without = [row | {"status_text": "250 Ok"} if row.get("status_text") else row for row in first]
    for mail in (first + second, second + first, without + second):
        rows = built(mail).sort("is_reinjection")
        assert rows.select("queue_id", "is_reinjection", "counts", "previous_queue_id", "src_ip").rows() == [
            ("AAAA1", False, False, None, "198.51.100.7"), ("BBBB2", True, True, "AAAA1", "198.51.100.7")
        ]  # fmt: skip
        assert rows["chain_id"].n_unique() == 1
        assert rows.filter("counts").select("status", "dst_ip").rows() == [("sent", "203.0.113.9")]


def test_one_message_id_for_a_thousand_messages_is_a_thousand_messages() -> None:
    mail = [
        row
        for n in range(50)
        for row in postfix(f"C{n:04}", at(n), ["drop@x.example"], status_text=f"250 Ok: queued as C{n + 1:04}")
    ]
    rows = built(mail)
    assert (rows.height, rows["counts"].sum(), rows["is_reinjection"].sum()) == (50, 50, 0)


def test_a_filter_that_was_down_for_days() -> None:
    """The hand-over, not the reception, is near the second hop; both days agree on what counts."""
    first = postfix("AAAA1", at(0), ["ann@b.example"], relay_host="filter", dst_ip="127.0.0.1")
    for row in first[3:]:
        row["ts"], row["date"] = row["ts"] + timedelta(days=4), row["date"] + timedelta(days=4)
    second = postfix("BBBB2", at(0, 4), ["ann@b.example"], src_ip="127.0.0.1")
    rows = everything(first + second)
    assert rows.select("date", "queue_id", "counts", "src_ip", "received_ts").rows() == [
        (DAY, "AAAA1", False, "198.51.100.7", at(0)),
        (DAY + timedelta(days=4), "BBBB2", True, "198.51.100.7", at(0)),
    ]  # fmt: skip


def test_an_alias_is_followed_and_a_bounce_is_its_own_message() -> None:
    first = postfix("AAAA1", at(0), ["all@b.example"], relay_host="127.0.0.1", dst_ip="127.0.0.1")
    second = postfix("BBBB2", at(2), ["ann@b.example", "bob@b.example"], src_ip="127.0.0.1")
    for row in second:
        if row.get("rcpt"):
            row["orig_rcpt"] = "All@b.example"
    bounce = postfix("CCCC3", at(3), ["a@a.example"], src_ip=None, message_id="<dsn@mx1>")
    rows = built(first + second + bounce).filter("counts")
    assert sorted(rows["rcpt"]) == ["a@a.example", "ann@b.example", "bob@b.example"]


def test_the_next_server_by_reply_or_by_name() -> None:
    reply = postfix("AAAA1", at(0), ["ann@b.example"], status_text="250 2.0.0 Ok: queued as BBBB2")
    named = postfix("AAAA1", at(0), ["ann@b.example"], relay_host="store.b.example")
    for first, host in ((reply, "elsewhere"), (named, "store"), (named, "store.b.example")):
        rows = built(first + postfix("BBBB2", at(-200), ["ann@b.example"], host=host, src_ip="192.0.2.1"))
        counting = {row["host"]: row["counts"] for row in rows.iter_rows(named=True)}
        # A clock that is three minutes behind does not hide who answered; by name the order of times decides.
        assert counting["mx1"] is (first is named)
        near = built(first + postfix("BBBB2", at(1), ["ann@b.example"], host=host, src_ip="192.0.2.1"))
        assert near.filter("counts")["host"].to_list() == [host]
    unrelated = postfix("BBBB2", at(1), ["ann@b.example"], host="other", src_ip="192.0.2.1")
    assert built(named + unrelated)["counts"].all()


def test_sasl_and_tls_stand_in_lines_of_their_own() -> None:
    mail = postfix("4F9D1", at(0), ["ann@b.example"])[1:]
    signed = {
        "ts": at(0), "date": DAY, "source": "postfix", "host": "mx1", "protocol": "smtp", "action": "auth",
        "outcome": "success", "session_id": "4F9D1", "principal_id": "svc@a.example", **client("198.51.100.7"),
    }  # fmt: skip
    session = {**client("198.51.100.7"), "session_id": "77"}
    tls = [line("connect", at(-9), **session), line("tls", at(-9), tls_version="TLSv1.3", **session)]
    later = [line("connect", at(-5), **session)]
    for lines, version in (([], None), (tls, "TLSv1.3"), (tls + later, None)):
        row = built(mail + lines, [signed]).row(0, named=True)
        assert (row["sasl_username"], row["src_ip"], row["tls_version"]) == ("svc@a.example", "198.51.100.7", version)
        assert row["n_events"] == 5
    other_way = line("tls", at(-1), tls_version="TLSv1.2", dst_ip="198.51.100.7", session_id="78")
    assert built([*mail, other_way], [signed])["tls_version"].to_list() == [None]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "queued"),
        (["hold"], "held"),
        (["defer", "hold"], "held"),
        (["hold", "defer"], "deferred"),
        (["defer", "bounce"], "bounced"),
        (["defer", "expire"], "expired"),
        (["reject"], "rejected"),
        (["bounce", "send"], "sent"),
        (["deliver", "send"], "delivered"),
    ],
)
def test_the_final_status(events: list[str], status: str) -> None:
    mail = postfix("4F9D1", at(0), [])[:3]
    for seconds, event in enumerate(events):
        mail.append(line(event, at(10 + seconds), queue_id="4F9D1", rcpt="ann@b.example"))
    row = built(mail).row(0, named=True)
    assert (row["status"], row["rcpt"]) == (status, "ann@b.example" if events else None)


def test_exchange_counts_deliveries_not_records() -> None:
    ids = {"network_message_id": "1E6EB197-0000-0000-0000-000000000001", "message_id": MID, "source": "exchange_msgtrk"}
    many = {"recipients": ["Ann@b.example", "bob@b.example"], "rcpt": "Ann@b.example", "n_rcpt": 2}

    def row(event: str, seconds: int, host: str, number: str, **values: Any) -> dict[str, Any]:
        return line(event, at(seconds), host=host, internal_id=number, **ids, **values)

    taken = {"op_raw": "RECEIVE/SMTP", "direction": "inbound", "size_bytes": 7229, "mail_from": "a@a.example"}
    mail = [
        row("receive", 0, "ex1", "11", **taken, **many, **client("198.51.100.7")),
        row("receive", 0, "ex2", "12", op_raw="HARECEIVE/SMTP", **many, **client("10.0.0.1")),
        row("transfer", 1, "ex1", "13", rcpt="bob@b.example", op_raw="TRANSFER/ROUTING"),
        row("send", 2, "ex1", "11", rcpt="ann@b.example", op_raw="SEND/SMTP"),
        row("receive", 2, "ex2", "21", rcpt="ann@b.example", op_raw="RECEIVE/SMTP", **client("10.0.0.1")),
        row("deliver", 3, "ex2", "21", rcpt="ann@b.example", op_raw="DELIVER/STOREDRIVER"),
        row("deliver", 4, "ex1", "13", rcpt="bob@b.example", op_raw="DELIVER/STOREDRIVER"),
        row("send", 5, "ex1", "13", rcpt="bob@b.example", op_raw="SEND/SMTP"),
    ]
    rows = built(mail)
    columns = ("rcpt", "status", "host", "src_ip", "size_bytes", "attempts", "n_events", "counts", "direction")
    assert rows.select(columns).rows() == [
        ("ann@b.example", "delivered", "ex1", "198.51.100.7", 7229, 1, 7, True, "inbound"),
        ("bob@b.example", "delivered", "ex1", "198.51.100.7", 7229, 1, 7, True, "inbound"),
    ]  # fmt: skip
    # What the protocol log says of it is said again.
    again = line(
        "other", at(0), source="exchange_smtp", host="ex1", internal_id="11", message_id=MID, rcpt="ann@b.example"
    )
    refused = line("reject", at(0), source="exchange_smtp", host="ex1", rcpt="eve@b.example", **client("192.0.2.9"))
    away = line("reject", at(0), source="exchange_smtp", internal_id="11", rcpt="ann@b.example")
    assert built([*mail, again, refused, away])["rcpt"].to_list() == ["eve@b.example", "ann@b.example", "bob@b.example"]
    # Exchange 2010 has no network message id: by server and internal id.
    old = built([{**entry, "network_message_id": None} for entry in mail if entry["internal_id"] in ("11", "21")])
    assert set(old["queue_id"]) == {"11", "21"}


def test_a_group_gives_way_to_its_members() -> None:
    ids = {"network_message_id": "n1", "message_id": MID, "source": "exchange_msgtrk", "host": "ex1"}
    mail = [
        line("receive", at(0), rcpt="all@b.example", **ids),
        line("deliver", at(1), rcpt="ann@b.example", orig_rcpt="all@b.example", **ids),
    ]
    assert built(mail).select("rcpt", "counts").rows() == [("all@b.example", False), ("ann@b.example", True)]


def test_through_a_gateway_service() -> None:
    out = postfix("4F9D1", at(0), ["ann@b.example"], relay_host="smtp.gateway.example", dst_ip="192.0.2.25")
    common = {"source": "mimecast", "host": None, "queue_id": "aCode-1", "message_id": MID, "direction": "outbound"}
    gateway = [
        line("receive", at(2), **common, rcpt="ann@b.example", **client("203.0.113.50")),
        line("hold", at(3), **common, rcpt="ann@b.example"),
        line("send", at(9), **common, rcpt="ann@b.example", dst_ip="203.0.113.9"),
    ]
    rows = built(out + gateway).filter("counts")
    assert rows.select("sources", "status", "src_ip", "size_bytes", "previous_queue_id").rows() == [
        (["mimecast"], "sent", "198.51.100.7", 1000, "4F9D1")
    ]
    # An hour later it is another message under the same id.
    late = [row | {"ts": row["ts"] + timedelta(hours=1)} for row in gateway]
    assert built(out + late)["counts"].to_list() == [True, True]


def test_refusals_without_a_queue_id_and_the_store_behind() -> None:
    refusal = line(
        "reject", at(0), rcpt="Ann@b.example", mail_from="x@x.example", status_text="554", **client("192.0.2.9")
    )
    mail = [
        refusal,
        refusal,
        line("other", at(0), status_text="lost connection"),
        line("connect", at(0), session_id="7"),
    ]
    columns = ("rcpt", "status", "attempts", "n_events", "queue_id", "counts")
    assert built(mail).select(columns).rows() == [("ann@b.example", "rejected", 2, 2, None, True)]
    handed = postfix("4F9D1", at(0), ["ann@b.example"], relay_host="mx1", dst_ip=None)
    for row in handed:
        row["event"] = "deliver" if row["event"] == "send" else row["event"]
    stored = line("deliver", at(1), source="dovecot", message_id=MID, rcpt="ann@b.example")
    assert built([*handed, stored]).filter("counts").select("sources", "size_bytes").rows() == [(["dovecot"], 1000)]
    assert built([line("remove", at(0), queue_id="4F9D1")]).is_empty()


def test_journal_copies_are_marked() -> None:
    boxes = frame("mailboxes", [{"mailbox_id": "Journal@b.example", "tenant_id": "t1", "kind": "journal"}])
    rows = built(postfix("4F9D1", at(0), ["journal@b.example", "ann@b.example"]), mailboxes=boxes)
    assert dict(rows.select("rcpt", "is_journal").iter_rows()) == {"journal@b.example": True, "ann@b.example": False}


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_any_records_gives_the_same_table(seed: int) -> None:
    """Records of few ids, servers and seconds, so that everything collides that can."""
    chance = random.Random(seed)
    events = ["receive", "cleanup", "queue", "send", "deliver", "defer", "bounce", "hold", "expire", "remove", "reject"]
    mail = [
        line(
            chance.choice(events),
            at(chance.randrange(4), chance.choice([-7, -1, 0, 0, 0, 1, 7])),
            host=chance.choice(["mx1", "mx2", None]),
            queue_id=chance.choice(["AAAA1", "BBBB2", None]),
            message_id=chance.choice([MID, None]),
            rcpt=chance.choice(["ann@b.example", "bob@b.example", None]),
            status_text=chance.choice(["queued as AAAA1", "queued as BBBB2", None]),
            recipients=chance.choice([None, None, ["ann@b.example", "eve@b.example"]]),
            source=chance.choice(["postfix", "exim", "dovecot", "mimecast"]),
            subject=chance.choice(["one", "two", None]),
            **client(chance.choice(["127.0.0.1", "198.51.100.7", None])),
        )
        for _ in range(120)
    ]
    once = everything(mail)
    assert once.height > 20
    for _ in range(2):
        chance.shuffle(mail)
        assert_frame_equal(everything(mail), once)


def waiting(
    source: str, host: str, queue: str, times: tuple[datetime, datetime], peers: list[str]
) -> list[dict[str, Any]]:
    """A hop that is tried at once and every day, and succeeds at last; Postfix names the Message-ID once, Exchange always."""
    named = {"message_id": MID} if source == "exchange_msgtrk" else {}
    who = {"host": host, "queue_id": queue, "source": source} | named
    to, (came, left), (src, relay, reply) = {"rcpt": "ann@b.example"}, times, peers
    tries = [came + timedelta(days=n, seconds=2) for n in range((left - came).days or 1)]
    return [
        line("receive", came, **who, **client(src)),
        line("cleanup", came, **who | {"message_id": MID}),
        *(line("defer", when, status_text="451 later", **to, **who) for when in tries),
        line("send", left, relay_host=relay, status_text=reply, **to, **who),
    ]


@pytest.mark.parametrize("source", ["postfix", "exchange_msgtrk"])
@pytest.mark.parametrize("gap", [1, 6])
def test_a_chain_of_long_waits_is_the_same_however_many_days_are_built_at_once(source: str, gap: int) -> None:
    mail = [
        *waiting(source, "mx1", "A1AAA", (at(0), at(0, gap)), ["198.51.100.7", "mx2", "250 Ok: queued as B1BBB"]),
        *waiting(
            source, "mx2", "B1BBB", (at(1, gap), at(0, 2 * gap)), ["203.0.113.1", "mx3", "250 Ok: queued as C1CCC"]
        ),
        *waiting(source, "mx3", "C1CCC", (at(1, 2 * gap), at(9, 2 * gap)), ["203.0.113.9", "mx4", "250 Ok"]),
    ]
    alone = everything(mail)
    days = [DAY + timedelta(days=n) for n in range(2 * gap + 1)]
    tables = {"mail_events": frame("mail_events", mail), "access_events": frame("access_events", [])}
    assert_frame_equal(messages.build(days, tables).collect(), alone, check_row_order=False)
    last = alone.filter(pl.col("host") == "mx3").row(0, named=True)
    assert (last["is_reinjection"], last["counts"]) == (True, True)
    assert last["src_ip"] == ("198.51.100.7" if gap == 1 else "203.0.113.1")
