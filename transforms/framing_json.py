"""JSON objects in a block of bytes: the elements of an array, of a wrapped array, or objects one after another.

Structure is found with NumPy: escaped quotes by the parity of the backslashes before them, strings by the parity of
quotes, depth by the running sum of brackets outside strings. A damaged object would shift the depth of all that
follows; so the beginning of an object, as the first one showed it (`{"FirstKey"`), is looked for again after the
damage.
"""

import json
import re
from typing import Any

import numpy as np

OUTSIDE = "text outside of a JSON object"
UNBALANCED = "JSON object is cut or its brackets do not match"
TOO_DEEP = "JSON is nested more than 64 deep"
_DEEPEST = 64
_MOST_FAILURES = 1000  # beginnings that lead nowhere, in one stretch; past it the rest is one damaged record
_FILLER = b" \t\r\n,[]"
_MEMBER = rb'\s*"[^"]{0,100}"\s*:\s*(?:"[^"]{0,1000}"|[-+.\w]{1,40}|\[\s*\])\s*,'
_ARRAY = rb'"(?:value|[Rr]ecords|items|data|results|events|logs)"\s*:'
# Arrays whose name says what their objects are, which these do not say themselves: the name is a record of its own.
_NAMED = rb'"(?:messagesDelivered|messagesBlocked|clicksPermitted|clicksBlocked)"\s*:'
_OPENING = rb"(?:\xef\xbb\xbf)?\{(?:" + _MEMBER + rb"){0,20}"
_ODATA = rb'(?:\s*"d"\s*:\s*\{)'  # verbose OData: {"d": {"results": [...]}}
_WRAPPED = re.compile(  # an API's answer: some plain members, then the array of objects
    rb"(?:\xef\xbb\xbf)?\s*" + _OPENING + rb"(" + _ODATA + rb")?\s*(?:" + _ARRAY + rb"|" + _NAMED + rb")\s*\[\s*\{"
)
_AGAIN = re.compile(_OPENING + rb"\s*" + _ARRAY + rb"\s*\[\s*")
_NEXT = re.compile(rb"(?:" + _OPENING + rb"|(?:" + _MEMBER + rb"){0,20})\s*(" + _NAMED + rb")\s*\[\s*")
_BEGUN = re.compile(rb'(?:\xef\xbb\xbf)?\{\s*"')
_LONGEST_OPENING = 4000  # bytes
_PLAIN = rb'"(?:[^"\\]|\\.){0,1000}"|[-+.\w]{1,40}'


def _structure(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions of brackets outside strings, and the depth after each."""
    buf = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(buf == 34)
    slashes = np.flatnonzero(buf == 92)
    if len(slashes):
        quotes = quotes[~_escaped(quotes, slashes)]
    brackets = np.flatnonzero((buf == 123) | (buf == 125) | (buf == 91) | (buf == 93))
    outside = (np.searchsorted(quotes, brackets) & 1) == 0
    brackets = brackets[outside]
    kinds = buf[brackets]
    step = np.where((kinds == 123) | (kinds == 91), 1, -1)
    return brackets, np.cumsum(step)


def _escaped(quotes: np.ndarray, slashes: np.ndarray) -> np.ndarray:
    """Which quotes stand behind an odd run of backslashes."""
    new_run = np.empty(len(slashes), dtype=bool)
    new_run[0] = True
    np.not_equal(slashes[1:], slashes[:-1] + 1, out=new_run[1:])
    run_start = np.maximum.accumulate(np.where(new_run, np.arange(len(slashes)), 0))
    run_length = np.arange(len(slashes)) - run_start + 1
    at = np.searchsorted(slashes, quotes - 1)
    at_safe = np.minimum(at, len(slashes) - 1)
    behind = (at < len(slashes)) & (slashes[at_safe] == quotes - 1)
    odd: np.ndarray = behind & (run_length[at_safe] % 2 == 1)
    return odd


def _objects(data: bytes, base: int) -> tuple[list[tuple[int, int, str | None]], int]:
    """Whole objects at depth `base`, with what stands between them; and where the unfinished rest begins."""
    brackets, depth = _structure(data)
    buf = np.frombuffer(data, dtype=np.uint8)
    kinds = buf[brackets]
    opens = brackets[(depth == base + 1) & (kinds == 123)]
    closes = brackets[(depth == base) & (kinds == 125)] + 1
    found: list[tuple[int, int, str | None]] = []
    at = 0
    deep = np.flatnonzero(depth > base + _DEEPEST)
    deepest = brackets[deep] if len(deep) else None
    index = np.searchsorted(closes, opens, side="right")
    for start, close in zip(opens.tolist(), index.tolist(), strict=True):
        if start < at:
            continue
        _between(data, at, start, found)
        if close >= len(closes):
            return found, start
        end = int(closes[close])
        too_deep = deepest is not None and np.searchsorted(deepest, start) < np.searchsorted(deepest, end)
        found.append((start, end, TOO_DEEP if too_deep else None))
        at = end
    return found, at


def _between(data: bytes, start: int, end: int, found: list[tuple[int, int, str | None]]) -> None:
    text = data[start:end]
    if len(text) <= _LONGEST_OPENING:
        opening = text.lstrip(_FILLER + b"}")
        if (named := _NEXT.fullmatch(opening)) is not None:
            begin = end - len(opening)
            found.append((begin + named.start(1), begin + named.end(1), None))
            return
        if _AGAIN.fullmatch(opening):  # answers one after another
            return
    inner = text.strip(_FILLER)
    if inner and not (start == 0 and _BEGUN.match(inner) and inner.endswith(b":")):
        begin = start + text.find(inner)
        found.append((begin, begin + len(inner), OUTSIDE))


def _sync(data: bytes, first: int) -> re.Pattern[bytes] | None:
    """How an object begins, by the first one's first key, and by its second where the first value is plain."""
    begin = data[first : first + 2000]
    two = re.match(rb'\{\s*("(?:[^"\\]|\\.){1,100}")\s*:\s*(?:' + _PLAIN + rb')\s*,\s*("(?:[^"\\]|\\.){1,100}")', begin)
    if two:
        return re.compile(
            rb"\{\s*" + re.escape(two[1]) + rb"\s*:\s*(?:" + _PLAIN + rb")\s*,\s*" + re.escape(two[2]) + rb"\s*:"
        )
    one = re.match(rb'\{\s*("(?:[^"\\]|\\.){1,100}")', begin)
    return re.compile(rb"\{\s*" + re.escape(one[1]) + rb"\s*:") if one else None


def _mend(data: bytes, start: int, end: int, sync: re.Pattern[bytes]) -> list[tuple[int, int, str | None]]:
    """A framed piece that may hold several objects because one of them is damaged."""
    begins = [m.start() + start for m in sync.finditer(data[start:end])]
    if len(begins) < 2:
        return [(start, end, None)]
    try:
        json.loads(data[start:end])
    except (ValueError, RecursionError):
        return _recovered(data, start, end, begins)
    return [(start, end, None)]


def _recovered(data: bytes, start: int, end: int, begins: list[int]) -> list[tuple[int, int, str | None]]:
    """The whole objects of a damaged stretch, and what lies between them as damage.

    From each beginning the decoder is tried; a beginning inside an object that was whole is passed over.
    """
    text = data[start:end].decode("latin-1")  # one character a byte: positions hold
    decoder = json.JSONDecoder()
    found: list[tuple[int, int, str | None]] = []
    at, failures = start, 0
    for begin in begins:
        if begin < at or failures > _MOST_FAILURES:
            continue
        try:
            _, stop = decoder.raw_decode(text, begin - start)
        except (ValueError, RecursionError):
            failures += 1
            continue
        _damage(data, at, begin, found)
        found.append((begin, start + stop, None))
        at = start + stop
    _damage(data, at, end, found)
    return found


def _damage(data: bytes, start: int, end: int, found: list[tuple[int, int, str | None]]) -> None:
    """What lies between whole objects: nothing but separators, the rest of a damaged object, or other text."""
    inner = data[start:end].strip(_FILLER)
    if inner:
        begin = start + data[start:end].find(inner)
        found.append((begin, begin + len(inner), UNBALANCED if inner.startswith(b"{") else OUTSIDE))


def split_json(
    data: bytes, carry: dict[str, Any], longest: int, *, last: bool
) -> tuple[np.ndarray, np.ndarray, dict[int, str], int]:
    """Objects of a block.

    Args:
        data: the block; begins between objects.
        carry: kept between blocks: depth of the objects, how one begins.
        longest: bytes that an object may have before it is given up.
        last: whether the evidence ends with the block.

    Returns:
        starts, ends, damage by position, bytes used.
    """
    base = carry.get("base")
    if base is None:
        top = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        wrapped = _WRAPPED.match(data)
        base = 2 + (wrapped[1] is not None) if wrapped else int(top == b"[")
        carry["base"] = 0  # later blocks begin between objects, past the opening brackets
    found, rest = _objects(data, base)
    sync: re.Pattern[bytes] | None = carry.get("sync")
    if sync is None and found:
        first = next((s for s, _, d in found if d is None and data[s : s + 1] == b"{"), found[0][0])
        sync = carry["sync"] = _sync(data, first)
    if last or len(data) - rest > longest:
        found += _unfinished(data, rest, sync, last=last)
        rest = len(data) if last else (found[-1][1] if found else rest)
    if sync is not None:
        found = [p for s, e, d in found for p in (_mend(data, s, e, sync) if d is None else [(s, e, d)])]
    starts = np.array([s for s, _, _ in found], dtype=np.int64)
    ends = np.array([e for _, e, _ in found], dtype=np.int64)
    return starts, ends, {i: d for i, (_, _, d) in enumerate(found) if d}, rest


def _unfinished(
    data: bytes, rest: int, sync: re.Pattern[bytes] | None, *, last: bool
) -> list[tuple[int, int, str | None]]:
    """What is left when no bracket closes: nothing, an end of wrapping, or damage up to the next object's beginning."""
    tail = data[rest:]
    inner = tail.strip(_FILLER + b"}")
    if not inner:
        return []
    if inner.startswith(b'"') and not tail.lstrip(_FILLER).startswith(b"{"):  # keys behind a wrapped array
        return []
    begin = rest + tail.find(inner)
    if sync is None:
        return [(begin, rest + len(tail.rstrip(_FILLER)), UNBALANCED)]
    begins = sorted({begin, *(m.start() + rest for m in sync.finditer(tail))})
    if not last and len(begins) > 1:  # the last one may go on in the next block
        return _recovered(data, begin, begins[-1], begins[:-1])
    return _recovered(data, begin, len(data), begins)
