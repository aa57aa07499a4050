"""The demo: a folder is never taken from somebody, and what was planted is held against the cases."""

from pathlib import Path
from typing import Any

import pytest

from data_contracts.errors import UsageError
from flows.commands import demo

STEP = {
    "step": "A1",
    "tenant_id": "t1",
    "network": "198.51.100.0/24",
    "credential_id": "c1",
    "principal_id": "p1",
    "first_seen": "a",
    "last_seen": "b",
    "events": 3,
}


def case(rank: int, **entities: list[str]) -> dict[str, Any]:
    named = {
        "tenant_ids": ["t1"],
        "source_networks": ["198.51.100.0/24"],
        "credential_ids": [],
        "principal_ids": ["p1"],
    }
    return {"rank": rank, "entities": named | entities}


@pytest.mark.parametrize(
    ("cases", "rank"),
    [
        ([], None),
        ([case(1)], 1),
        ([case(1, principal_ids=[], credential_ids=["c1"])], 1),
        ([case(1, tenant_ids=["t2"]), case(2)], 2),
        ([case(1, source_networks=["203.0.113.0/24"])], None),
        ([case(1, principal_ids=["p2"])], None),
    ],
)
def test_a_step_is_found_only_by_tenant_network_and_name_together(
    cases: list[dict[str, Any]], rank: int | None
) -> None:
    (held,) = demo.held_against({"cases": cases}, [STEP])
    assert held["rank"] == rank


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for clobber in (False, True):
        with pytest.raises(UsageError, match="no earlier demo"):
            demo.run_demo(tmp_path, clobber=clobber)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_an_earlier_demo_is_replaced_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"

    def stop(folder: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.world.write_world", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out)
    (out / "old.txt").write_text("old")
    with pytest.raises(UsageError, match="--clobber"):
        demo.run_demo(out)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out, clobber=True)
    assert not (out / "old.txt").exists()


def test_a_link_to_a_folder_is_not_followed_away(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine.txt").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError):
        demo.run_demo(tmp_path / "link", clobber=True)
    assert (tmp_path / "real" / "mine.txt").exists()
