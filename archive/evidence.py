"""Evidence as it lies: files, members of archives, compressed streams. Opened for reading only, read in a stream."""

import bz2
import hashlib
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_contracts.errors import RefusedError, UsageError

CHUNK = 1 << 20
HEAD = 64 << 10
_XZ_MEMORY = 256 << 20  # a header may ask for 4 GiB
_BOMB_BYTES = 8 << 30
_BOMB_RATIO = 1000

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}


def container_of(head: bytes) -> str:
    """Compression or archive kind by the first bytes: none, gzip, zstd, bzip2, xz, zip."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "none")


class Decompressed(io.RawIOBase):
    """A compressed stream, decompressed while it is read.

    Several streams one after another are one. A stream that is cut or damaged ends there, and `damage` says so: what
    was readable has been handed out. Raises RefusedError when it expands like a decompression bomb.
    """

    def __init__(self, raw: BinaryIO, kind: str) -> None:
        self._raw = raw
        self._kind = kind
        self._pending = b""
        self._in = 0
        self._out = 0
        self._decoder: Any = None
        self.damage: str | None = None

    def readable(self) -> bool:
        return True

    def _new(self) -> Any:
        if self._kind == "gzip":
            return zlib.decompressobj(wbits=31)
        if self._kind == "bzip2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readinto(self, buffer: Any) -> int:
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        self._out += len(data)
        if self._out > _BOMB_BYTES and self._out > _BOMB_RATIO * max(self._in, 1):
            raise RefusedError(
                f"the {self._kind} stream expands more than {_BOMB_RATIO} times", "decompress it by hand"
            )
        return len(data)

    def _some(self, size: int) -> bytes:
        while self.damage is None:
            if not self._pending:
                self._pending = self._raw.read(CHUNK)
                self._in += len(self._pending)
            if self._decoder is None:
                if self._kind == "xz":
                    self._pending = self._pending.lstrip(b"\x00")  # stream padding
                if not self._pending:
                    return b""
                self._decoder = self._new()
            data = self._step(size)
            if data:
                return data
        return b""

    def _step(self, size: int) -> bytes:
        fed = self._pending
        try:
            data: bytes = self._decoder.decompress(fed, size)
        except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as error:
            if self._out and self._kind == "gzip" and self._decoder_is_fresh:
                self.damage = "bytes behind the end of the gzip stream are no gzip stream"
            else:
                self.damage = f"{self._kind} stream is damaged ({type(error).__name__})"
            return b""
        self._decoder_is_fresh = False
        self._pending = getattr(self._decoder, "unconsumed_tail", b"")
        if self._decoder.eof:
            self._pending = self._decoder.unused_data
            self._decoder, self._decoder_is_fresh = None, True
        elif not data and not fed:
            self.damage = f"{self._kind} stream is cut off"
        return data

    _decoder_is_fresh = True

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Zstd(io.RawIOBase):
    """Zstandard through pyarrow; ends at damage like Decompressed."""

    def __init__(self, raw: BinaryIO) -> None:
        import pyarrow as pa

        self._raw = raw
        self._in = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        self.damage: str | None = None
        self._out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.damage:
            return 0
        try:
            data = self._in.read(min(len(buffer), CHUNK))
        except (OSError, ValueError) as error:
            self.damage = f"zstd stream is cut off or damaged ({type(error).__name__})"
            return 0
        buffer[: len(data)] = data
        self._out += len(data)
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def decompressed(raw: BinaryIO) -> tuple[BinaryIO, str, Callable[[], str | None]]:
    """The content of a stream: (stream, container kind, a function that tells what was damaged once it is read)."""
    head = _peek(raw)
    kind = container_of(head)
    source = cast(BinaryIO, _Rejoined(head, raw))
    if kind in ("gzip", "bzip2", "xz"):
        inner = Decompressed(source, kind)
        return cast(BinaryIO, io.BufferedReader(inner, CHUNK)), kind, lambda: inner.damage
    if kind == "zstd":
        zstd = _Zstd(source)
        return cast(BinaryIO, io.BufferedReader(zstd, CHUNK)), kind, lambda: zstd.damage
    return source, "none", lambda: None


def _peek(raw: BinaryIO) -> bytes:
    return raw.read(8)


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were looked at already, with what must be closed behind it."""

    def __init__(self, head: bytes, rest: BinaryIO, *behind: Any) -> None:
        self._head, self._rest, self._behind = head, rest, behind

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            if size is None or size < 0:
                out, self._head = self._head + self._rest.read(), b""
                return out
            if size <= len(self._head):
                out, self._head = self._head[:size], self._head[size:]
                return out
            out, self._head = self._head, b""
            return out + self._rest.read(size - len(out))
        return self._rest.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        for stream in (self._rest, *self._behind):
            stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of evidence: a file, or a member of an archive."""

    path: str
    member: str | None = None
    mtime: datetime | None = None
    file_bytes: int = 0
    in_zip: bool = False

    @property
    def label(self) -> str:
        return self.path if self.member is None else f"{self.path}!{self.member}"

    def open_raw(self) -> BinaryIO:
        """The bytes as they lie (of a zip member: inflated)."""
        raw = open_binary(self.path)
        if not self.in_zip or self.member is None:
            return raw
        try:
            archive = zipfile.ZipFile(raw)
            return cast(BinaryIO, _Rejoined(b"", cast(BinaryIO, archive.open(self.member)), archive, raw))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, OSError) as error:
            raw.close()
            raise RefusedError(f"{self.label}: {error}") from error

    def open(self) -> tuple[BinaryIO, str, Callable[[], str | None]]:
        """The content, decompressed: stream, container kind, and what was damaged once it is read."""
        stream, kind, damage = decompressed(self.open_raw())
        return stream, ("zip" if self.in_zip else kind), damage


def open_binary(path: str) -> BinaryIO:
    """A file or object for reading only."""
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return cast(BinaryIO, fsspec.open(path, "rb").open())


def find(paths: list[str]) -> Iterator[str]:
    """Files below the given files, folders, patterns and URIs, in sorted order, each once.

    Raises:
        UsageError: a path or pattern that names nothing.
    """
    import glob

    seen: set[str] = set()
    for given in paths:
        if "://" in given:
            found = _find_remote(given)
        elif os.path.isdir(given):
            found = sorted(str(p) for p in Path(given).rglob("*") if p.is_file())
        elif os.path.isfile(given):
            found = [given]
        else:
            found = sorted(p for p in glob.glob(given, recursive=True) if os.path.isfile(p))
        if not found and not os.path.isdir(given):
            raise UsageError(f"{given}: no such file or folder", "give files, folders, patterns or URIs")
        yield from (p for p in found if not (p in seen or seen.add(p)))  # type: ignore[func-returns-value]


def _find_remote(uri: str) -> list[str]:
    import fsspec

    fs, path = fsspec.core.url_to_fs(uri)
    scheme = uri.split("://", 1)[0]
    found = [path] if fs.isfile(path) else fs.glob(path) if "*" in path else fs.find(path)
    return sorted(f"{scheme}://{p}" for p in found if fs.isfile(p))


def pieces(path: str) -> list[Piece]:
    """The pieces of evidence in a file: itself, or the members of a zip archive.

    Raises:
        RefusedError: a zip archive that can't be opened.
    """
    if "://" in path:
        mtime, size = None, 0
    else:
        stat = os.stat(path)
        mtime, size = datetime.fromtimestamp(stat.st_mtime, UTC), stat.st_size
    with open_binary(path) as raw:
        if container_of(raw.read(8)) != "zip":
            return [Piece(path, None, mtime, size)]
        raw.seek(0)
        try:
            with zipfile.ZipFile(raw) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise RefusedError(f"{path}: the zip archive can't be read ({error})") from error
    return [Piece(path, m.filename, _zip_time(m), size, in_zip=True) for m in members]


def _zip_time(member: zipfile.ZipInfo) -> datetime | None:
    """A member's time; zip keeps no zone, so it may be off by one."""
    try:
        return datetime(*member.date_time, tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a piece of evidence is, by its bytes."""

    evidence_id: str
    file_sha256: str
    content_bytes: int
    container: str
    head: bytes
    tail: bytes
    ends_with_newline: bool
    damage: str | None
    prefixes: dict[int, str]  # sha256 of the first n bytes, for the sizes asked for


def identify(piece: Piece, sizes: list[int], progress: Callable[[int], None] | None = None) -> Identity:
    """Reads a piece once and hashes it.

    Args:
        piece: what to read.
        sizes: content lengths of known evidence; the hash of that much of this piece shows whether it has grown.
        progress: told the bytes read.
    """
    stream, container, damage = piece.open()
    digest, total, head, tail = hashlib.sha256(), 0, b"", b""
    prefixes: dict[int, str] = {}
    wanted = sorted({s for s in sizes if s > 0})
    at = 0
    with stream:
        while chunk := stream.read(CHUNK):
            hashed = 0
            while at < len(wanted) and total + len(chunk) >= wanted[at]:
                digest.update(memoryview(chunk)[hashed : wanted[at] - total])
                hashed = wanted[at] - total
                prefixes[wanted[at]] = digest.copy().hexdigest()
                at += 1
            digest.update(memoryview(chunk)[hashed:])
            total += len(chunk)
            if len(head) < HEAD:
                head = (head + chunk)[:HEAD]
            tail = chunk[-HEAD:] if len(chunk) >= HEAD else (tail + chunk)[-HEAD:]
            if progress:
                progress(len(chunk))
    content = digest.hexdigest()
    file_hash = content if container == "none" else hash_file(piece.path)
    return Identity(content, file_hash, total, container, head, tail, tail.endswith(b"\n"), damage(), prefixes)


def head_of(piece: Piece, size: int) -> bytes:
    """The first bytes of a piece's content."""
    stream, _, _ = piece.open()
    with stream:
        head = b""
        while len(head) < size and (more := stream.read(size - len(head))):
            head += more
    return head


def prefix_sha256(piece: Piece, size: int) -> str | None:
    """sha256 of the first `size` bytes of a piece's content; None when it is shorter or can't be read."""
    digest = hashlib.sha256()
    try:
        stream, _, _ = piece.open()
        with stream:
            while size > 0 and (chunk := stream.read(min(size, CHUNK))):
                digest.update(chunk)
                size -= len(chunk)
    except (OSError, RefusedError):
        return None
    return None if size else digest.hexdigest()


def hash_file(path: str) -> str:
    """sha256 of a file as it lies."""
    with open_binary(path) as raw:
        digest = hashlib.sha256()
        while chunk := raw.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
