"""The custody log: appended under a lock, and every change to it is found."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from archive.custody import FIRST, Custody
from archive.storage import Place


@pytest.fixture
def log(tmp_path: Path) -> Custody:
    custody = Custody(Place(tmp_path))
    for number in range(4):
        custody.record("ingest", {"path": f"a\nb\u2028{number}'\"\x00", "at": Path("x")})
    return custody


def lines(tmp_path: Path) -> list[bytes]:
    return (tmp_path / "custody.jsonl").read_bytes().splitlines()


def store(tmp_path: Path, changed: list[bytes]) -> None:
    (tmp_path / "custody.jsonl").write_bytes(b"".join(line + b"\n" for line in changed))


def test_entries(log: Custody, tmp_path: Path) -> None:
    entries = list(log.entries())
    assert [e["seq"] for e in entries] == [1, 2, 3, 4]
    assert entries[0]["prev"] == FIRST
    assert entries[0]["at"].endswith("Z")
    assert set(entries[0]) == {"seq", "at", "who", "action", "details", "prev", "hash"}
    assert len(lines(tmp_path)) == 4
    assert log.verify_chain() is None


def test_tampering_is_found(log: Custody, tmp_path: Path) -> None:
    whole = lines(tmp_path)
    for changed, line in (
        ([whole[0], whole[1].replace(b"ingest", b"nigest"), *whole[2:]], 2),
        ([whole[0], *whole[2:]], 2),
        ([whole[0], whole[1], whole[1], *whole[2:]], 3),
        ([whole[1], whole[0], *whole[2:]], 1),
        ([*whole, b"{"], 5),
        ([*whole, b"[1]"], 5),
        ([*whole, b"[" * 100_000], 5),
        ([*whole[:3], whole[3].replace(b'"seq":4', b'"seq": 4')], None),  # white space alone says the same
    ):
        store(tmp_path, changed)
        broken = log.verify_chain()
        assert (broken.line if broken else None) == line
        if broken:
            assert broken.place == f"custody.jsonl:{line}"


def test_a_forged_line_with_its_own_hash_breaks_the_next(log: Custody, tmp_path: Path) -> None:
    from archive.custody import _canonical, _digest

    whole = lines(tmp_path)
    forged = json.loads(whole[1])
    del forged["hash"]
    forged["action"] = "nothing"
    store(tmp_path, [whole[0], _canonical({**forged, "hash": _digest(forged)}), *whole[2:]])
    broken = log.verify_chain()
    assert broken is not None
    assert broken.line == 3


def test_missing_log_is_named(tmp_path: Path) -> None:
    broken = Custody(Place(tmp_path)).verify_chain()
    assert broken is not None
    assert "missing or empty" in broken.fact


def test_recording_goes_on_after_a_cut_off_line(log: Custody, tmp_path: Path) -> None:
    path = tmp_path / "custody.jsonl"
    path.write_bytes(path.read_bytes() + b'{"seq":5,"at"')
    assert log.record("ingest")["seq"] == 6
    assert log.record("ingest")["seq"] == 7
    broken = log.verify_chain()
    assert broken is not None
    assert broken.line == 5
    assert len(lines(tmp_path)) == 7


def test_long_lines(log: Custody) -> None:
    log.record("ingest", {"text": "x" * 200_000})
    assert log.record("ingest")["seq"] == 6
    assert log.verify_chain() is None


def test_many_writers(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Custody(Place(tmp_path)).record("x", {"n": n}), range(60)))
    custody = Custody(Place(tmp_path))
    assert custody.verify_chain() is None
    assert sorted(e["details"]["n"] for e in custody.entries()) == list(range(60))


def test_object_store() -> None:
    place = Place("memory://custody-test")
    custody = Custody(place)
    for _ in range(3):
        custody.record("x")
    assert custody.verify_chain() is None
    place.write(place.read("custody.jsonl").replace(b'"x"', b'"y"', 1), "custody.jsonl")
    broken = custody.verify_chain()
    assert broken is not None
    assert broken.line == 1
    fsspec.filesystem("memory").rm("/custody-test", recursive=True)
