import bz2
import gzip
import hashlib
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from archive.evidence import find, identify, pieces
from data_contracts.errors import RefusedError, UsageError

DATA = b"".join(b"line %d of the log\n" % i for i in range(50_000))
PACKED = {
    "plain": DATA,
    "gzip": gzip.compress(DATA),
    "bzip2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
    "zstd": pa.Codec("zstd").compress(DATA).to_pybytes(),
}


@pytest.mark.parametrize("kind", PACKED)
def test_content_is_the_same_however_it_is_packed(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "mail.log"
    file.write_bytes(PACKED[kind])
    (piece,) = pieces(str(file))
    found = identify(piece, [18, len(DATA)])
    assert found.evidence_id == hashlib.sha256(DATA).hexdigest()
    assert found.file_sha256 == hashlib.sha256(PACKED[kind]).hexdigest()
    assert found.container == ("none" if kind == "plain" else kind)
    assert found.prefixes[18] == hashlib.sha256(DATA[:18]).hexdigest()
    assert found.prefixes[len(DATA)] == found.evidence_id
    assert (found.content_bytes, found.ends_with_newline, found.damage) == (len(DATA), True, None)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_a_cut_stream_gives_what_was_readable_and_says_so(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "mail.log"
    file.write_bytes(PACKED[kind][: len(PACKED[kind]) // 2])
    found = identify(pieces(str(file))[0], [])
    assert found.damage is not None
    assert found.content_bytes < len(DATA)
    assert DATA.startswith(found.tail) or found.tail in DATA


def test_streams_behind_each_other_are_one_and_junk_is_named(tmp_path: Path) -> None:
    two, junk = tmp_path / "two.gz", tmp_path / "junk.gz"
    two.write_bytes(PACKED["gzip"] * 2)
    junk.write_bytes(PACKED["gzip"] + b"junk behind")
    assert identify(pieces(str(two))[0], []).content_bytes == 2 * len(DATA)
    found = identify(pieces(str(junk))[0], [])
    assert (found.content_bytes, found.damage) == (
        len(DATA),
        "bytes behind the end of the gzip stream are no gzip stream",
    )


def test_members_of_a_zip_are_pieces_and_names_are_only_names(tmp_path: Path) -> None:
    file = tmp_path / "logs.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/mail.log", DATA)
        archive.writestr("inner.log.gz", PACKED["gzip"])
    before = sorted(tmp_path.rglob("*"))
    found = pieces(str(file))
    assert [p.member for p in found] == ["../../etc/mail.log", "inner.log.gz"]
    assert {identify(p, []).evidence_id for p in found} == {hashlib.sha256(DATA).hexdigest()}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.evidence._BOMB_BYTES", 1 << 20)
    file = tmp_path / "bomb.bz2"
    file.write_bytes(bz2.compress(bytes(64 << 20)))
    with pytest.raises(RefusedError, match="expands more than"):
        identify(pieces(str(file))[0], [])


def test_find_is_sorted_and_once(tmp_path: Path) -> None:
    for name in ("b.log", "a.log", "sub/c.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    every = [str(tmp_path / n) for n in ("a.log", "b.log", "sub/c.log")]
    assert list(find([str(tmp_path), str(tmp_path / "*.log")])) == every
    with pytest.raises(UsageError, match="no such file"):
        list(find([str(tmp_path / "nothing*")]))
