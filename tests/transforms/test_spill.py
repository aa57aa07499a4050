"""Rows laid down in pieces: none lost, none doubled, those of a key together, and nothing left behind."""

from pathlib import Path

import polars as pl
import pytest

from transforms.spill import Spill, pieces

ROWS = pl.DataFrame({"key": [f"k{n % 7}" for n in range(500)], "n": range(500)})


@pytest.mark.parametrize("number", [0, 1, 3, 16])
def test_each_row_is_in_one_piece_and_keys_stay_together(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = [piece.collect() for piece in pieces(ROWS.lazy(), number, pl.col("key").hash(0))]
    assert sorted(n for piece in found for n in piece["n"]) == list(range(500))
    keys = [set(piece["key"]) for piece in found]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert list(tmp_path.iterdir()) == []


def test_frames_that_were_added_one_by_one_meet_in_their_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="stopped"), Spill(4, pl.col("key").hash(0)) as spill:
        for at in range(0, 500, 100):
            spill.add(ROWS.slice(at, 100).lazy())
        found = [piece.collect() for piece in spill.pieces()]
        assert all(piece.group_by("key").len()["len"].min() >= 70 for piece in found)
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []
