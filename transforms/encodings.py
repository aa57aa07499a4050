"""Text that is not UTF-8: UTF-16 as Windows tools write it, with and without byte order mark.

The framing works on UTF-8. A UTF-16 stream is transcoded on the way in, and every place in the UTF-8 text is told back
as a place in the evidence: UTF-8 shows where the code units of UTF-16 lie, so nothing else needs to be kept.
"""

import codecs
from typing import BinaryIO, Literal

import numpy as np

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be"]

_LOOKED_AT = 4096
_MOSTLY, _HARDLY = 0.4, 0.02  # parts of bytes that are zero, at the one and at the other place of a code unit


def encoding_of(data: bytes) -> Encoding:
    """How the text that begins so is written; "utf-8" stands for everything that is not UTF-16."""
    if data.startswith(b"\xff\xfe") and not data.startswith(b"\xff\xfe\x00\x00"):
        return "utf-16-le"
    if data.startswith(b"\xfe\xff"):
        return "utf-16-be"
    data = data[:_LOOKED_AT]
    half = len(data) // 2
    if half < 2:
        return "utf-8"
    first, second = (data[i : 2 * half : 2].count(b"\x00") / half for i in (0, 1))
    if second > _MOSTLY and first < _HARDLY:
        return "utf-16-le"
    if first > _MOSTLY and second < _HARDLY:
        return "utf-16-be"
    return "utf-8"


def text_of(data: bytes, encoding: Encoding) -> str:
    """Text of some bytes of evidence: of UTF-8 that is none Latin-1, in which every byte means something."""
    if encoding != "utf-8":
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class Utf16:
    """A UTF-16 stream read as UTF-8.

    Half a surrogate pair becomes U+FFFD, which is as long as it; half a code unit at the end is left out.
    """

    def __init__(self, stream: BinaryIO, encoding: Encoding) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")

    def read(self, size: int) -> bytes:
        """About `size` bytes of UTF-8; empty only at the end."""
        while chunk := self._stream.read(size):
            if text := self._decoder.decode(chunk):
                return text.encode("utf-8", errors="replace")
        return b""


def size_in_utf16(data: bytes) -> int:
    """Bytes that UTF-8 text fills in UTF-16."""
    return int(2 * _units(data).sum(dtype=np.int64))


def places_in_utf16(data: bytes, at: np.ndarray) -> np.ndarray:
    """Offsets into UTF-8 `data` as offsets into the same text in UTF-16, bytes."""
    before = np.zeros(len(data) + 1, dtype=np.int32)
    np.cumsum(_units(data), out=before[1:])
    places: np.ndarray = 2 * before[at].astype(np.int64)
    return places


def _units(data: bytes) -> np.ndarray:
    """Code units of UTF-16 that begin at each byte of UTF-8: four-byte characters have two, inner bytes none."""
    octets = np.frombuffer(data, dtype=np.uint8)
    units: np.ndarray = ((octets & 0xC0) != 0x80).astype(np.uint8) + (octets >= 0xF0)
    return units
