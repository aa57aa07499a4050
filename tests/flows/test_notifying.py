"""Who is told of which cases, once; and that the address of a webhook shows nowhere."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import polars as pl
import pytest
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block

from archive.store import Archive
from data_contracts import contract
from data_contracts.errors import UsageError
from flows.pipeline import notifying
from flows.pipeline.notifying import (
    BLOCK,
    WEBHOOK,
    NotSentError,
    due,
    has_way,
    message,
    post,
    post_out,
    remember,
    waiting,
)
from flows.pipeline.retrospective import hunt_slice, is_done, slices
from flows.prefect_parts import tell, ways, worth_repeating
from queries.cases import Surroundings, build
from queries.engine import HuntResult
from queries.evidence import Evidence
from queries.findings import ENTITIES, Finding

SECRET = "T0KEN-a1b2c3"
HOSTILE = "<!channel> https://evil.example \x1b[2J"


class Receiver(BaseHTTPRequestHandler):
    """Takes what is posted, and answers as it is told to."""

    got: ClassVar[list[tuple[str, Any]]] = []
    answer: ClassVar[int] = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, json.loads(body)))
        self.send_response(self.answer)
        if self.answer == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Receiver.got.clear()
    monkeypatch.setattr(Receiver, "answer", 204)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/hooks/{SECRET}"
    monkeypatch.setenv(WEBHOOK, url)
    monkeypatch.delenv(BLOCK, raising=False)
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "archive")


def hunted(*severities: str, number: int = 1) -> HuntResult:
    """One case for each severity."""
    when = datetime(2021, 1, 10, tzinfo=UTC)
    findings = [
        Finding(
            finding_id=f"F-{place:016x}", detection="T01", title="", family="tenant_connection", severity=severity,
            score=70.0, first_seen=when, last_seen=when, explanation=HOSTILE, tactics=(), techniques=(),
            entities=dict.fromkeys(ENTITIES, ()) | {"principal_ids": (f"{HOSTILE}{place}",), "tenant_ids": ("t1",)},
            evidence=Evidence("access_events", (), 0), sql="", facts={},
        )
        for place, severity in enumerate(severities)
    ]  # fmt: skip
    return HuntResult(
        run_id=f"R-{number}", run_at=when, window_from=when, window_to=when + timedelta(days=1), archive_version={},
        detections_run=("T01",), detections_skipped=(), cases=build(findings, Surroundings(), 100), limits=(),
    )  # fmt: skip


def test_people_are_told_once_of_what_is_serious(archive: Archive, address: str) -> None:
    result = hunted("critical", "high", "medium")
    cases = due(archive, result, "high", {})
    assert [case["severity"] for case in cases] == ["critical", "high"]
    post_out(archive, "R-1", "high", cases)
    assert due(archive, result, "high", {}) == []  # these wait already
    assert tell(archive.uri, "R-1", "high", None) == 2
    assert tell(archive.uri, "R-1", "high", None) == 0
    ((path, body),) = Receiver.got
    assert path.endswith(SECRET)
    assert (body["count"], body["run_id"], body["level"]) == (2, "R-1", "high")
    assert cases[0]["case_id"] in body["text"]
    assert "evil.example" not in body["text"]
    assert "\x1b" not in json.dumps(body["cases"], ensure_ascii=False)
    assert due(archive, hunted("critical", "high", "medium", number=2), "high", {}) == []
    assert [case["severity"] for case in due(archive, hunted("high", "high", "critical"), "high", {})] == ["critical"]
    custody = (Path(archive.uri) / "custody.jsonl").read_text()
    assert '"notify"' in custody
    assert SECRET not in custody
    assert address not in custody


def test_what_was_settled_is_not_told(archive: Archive) -> None:
    result = hunted("high", "high")
    for state, number in (("benign", 1), ("closed", 1), ("duplicate", 1), ("confirmed", 2), ("investigating", 2)):
        assert len(due(archive, result, "high", {f"F-{0:016x}": {"state": state}})) == number
    with pytest.raises(UsageError, match="no severity"):
        due(archive, result, "loud", {})


@pytest.mark.parametrize("answer", [302, 400, 404, 500])
def test_a_message_that_is_not_taken_is_sent_by_the_next_run(
    archive: Archive, address: str, answer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Receiver, "answer", answer)
    cases = due(archive, hunted("high"), "high", {})
    post_out(archive, "R-1", "high", cases)
    with pytest.raises(NotSentError) as caught:
        tell(archive.uri, "R-1", "high", None)
    assert str(answer) in str(caught.value)
    assert [path for path, _ in Receiver.got] == [urlsplit(address).path]
    assert waiting(archive, {}) == cases
    assert waiting(archive, {f"F-{0:016x}": {"state": "benign"}}) == []
    monkeypatch.setattr(Receiver, "answer", 200)
    assert tell(archive.uri, "R-2", "high", None) == 1
    assert waiting(archive, {}) == []
    assert worth_repeating(None, None, type("State", (), {"data": caught.value})())


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/{SECRET}",
        f"https://127.0.0.1:1/{SECRET}",
        f"https://user:{SECRET}@127.0.0.1/",
        f"http://soc.example/{SECRET}",
        f"ftp://soc.example/{SECRET}",
        f"file:///etc/{SECRET}",
        f"https://soc.example:{SECRET}/",
        f"https://[{SECRET}/",
        f"https://soc.example/{SECRET} x",
        f"https://soc.example/{SECRET}\r\nX: y",
        f"https:///{SECRET}",
        SECRET,
    ],
)
def test_an_address_that_does_not_work_is_named_nowhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "TIMEOUT", 2.0)
    with pytest.raises((UsageError, NotSentError)) as caught:
        post({"text": "x"}, url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def test_without_a_way_of_notification_nothing_is_forgotten(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)
    assert not has_way(None)
    assert has_way("slack-webhook/soc")
    cases = due(archive, hunted("high"), "high", {})
    assert tell(archive.uri, "R-1", "high", None) == 0
    assert due(archive, hunted("high"), "high", {}) == cases


class Quiet(NotificationBlock):  # type: ignore[misc]  # its types are not checked
    """A block that takes what it is given, or fails with the address in its error."""

    fails: bool = False
    sent: ClassVar[list[tuple[str, str | None]]] = []

    async def notify(self, body: str, subject: str | None = None) -> None:
        if self.fails:
            raise RuntimeError(f"https://hooks.example/{SECRET}")
        self.sent.append((body, subject))


def test_a_block_sends_the_text_and_its_errors_are_not_repeated(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: dict[str, Any] = {"quiet/soc": Quiet(), "quiet/down": Quiet(fails=True), "json/x": object()}

    def load(name: str) -> Any:
        if name not in blocks:
            raise ValueError("no such block")
        return blocks[name]

    monkeypatch.setattr(Block, "load", load)
    post_out(archive, "R-1", "high", due(archive, hunted("high"), "high", {}))
    for name in ("json/x", "quiet/none"):
        with pytest.raises(UsageError, match="no such notification block"):
            tell(archive.uri, "R-1", "high", name)
    with pytest.raises(NotSentError) as caught:
        tell(archive.uri, "R-1", "high", "quiet/down")
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None
    assert tell(archive.uri, "R-1", "high", "quiet/soc") == 1
    ((text, subject),) = Quiet.sent
    assert "gatehound: 1 new case at or above high" in text
    assert subject == "gatehound: 1 new case"


def test_a_block_is_named_and_an_address_in_its_place_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BLOCK, raising=False)
    assert ways("high", None) is None
    assert ways("high", "slack-webhook/soc") == "slack-webhook/soc"
    monkeypatch.setenv(BLOCK, "email/soc team")
    assert ways("low", None) == "email/soc team"
    with pytest.raises(UsageError) as caught:
        ways("high", f"https://hooks.example/{SECRET}")
    assert SECRET not in str(caught.value)


def test_a_long_message_is_cut(archive: Archive) -> None:
    cases = due(archive, hunted(*["high"] * 30), "high", {})
    body = message("R-1", "high", cases)
    assert body["count"] == 30
    assert len(body["cases"]) == 20
    assert "and 10 more" in body["text"]
    remember(archive, "R-1", cases, "webhook")
    assert due(archive, hunted(*["high"] * 30), "high", {}) == []


def events(*days: date, source: str = "postfix") -> pl.DataFrame:
    rows = [
        {
            "event_uid": f"{source}{day:%Y%m%d}".encode().hex()[:40].ljust(40, "0"), "date": day, "ts_raw": "",
            "ts": datetime(day.year, day.month, day.day, 9, tzinfo=UTC), "ts_basis": "utc", "source": source,
            "tenant_id": "t1", "tenant_basis": "given", "protocol": "pop3", "action": "session", "outcome": "success",
            "principal_id": "a@t1.example", "agg_level": "session", "evidence_id": "0" * 64, "record_no": 0,
            "byte_offset": 0, "byte_length": 1,
        }
        for day in days
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=contract("access_events").polars_schema)


def test_slices_are_done_once_and_again_where_their_logs_changed(archive: Archive) -> None:
    archive.append("access_events", events(date(2019, 12, 31), date(2020, 2, 29), date(2021, 1, 5)))
    pieces = slices(archive, months=3, detections=["T01"])
    found = [(p.begin.isoformat(), p.end.isoformat()) for p in pieces]
    assert found == [("2019-10-01", "2020-01-01"), ("2020-01-01", "2020-04-01"), ("2021-01-01", "2021-04-01")]
    assert pieces[1].window == ("2019-12-02", "2020-03-31")
    assert not any(is_done(archive, piece) for piece in pieces)
    for piece in pieces[:2]:
        hunt_slice(archive, piece, detections=["T01"])

    after = Archive.open(archive.uri)  # after a restart
    assert slices(after, months=3, detections=["T01"]) == pieces
    assert [is_done(after, piece) for piece in pieces] == [True, True, False]
    assert not any(is_done(after, piece) for piece in slices(after, months=3, detections=["M01"]))

    after.append("access_events", events(date(2020, 2, 3), source="dovecot"))
    done = [is_done(after, piece) for piece in slices(after, months=3, detections=["T01"])]
    assert done == [True, False, False]
    runs = [e["details"]["window"] for e in after.custody_log.entries() if e["action"] == "hunt"]
    assert [run["from"][:10] for run in runs] == ["2019-09-01", "2019-12-02"]


def test_an_empty_archive_has_no_slices_and_a_slice_has_a_length(archive: Archive) -> None:
    assert slices(archive) == []
    for months in (0, -1, 1000):
        with pytest.raises(UsageError, match="no length"):
            slices(archive, months=months)
