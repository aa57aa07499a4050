"""The syslog envelope: `<time> <host> <program>[pid]: message`, whoever wrote the message.

Read are RFC 3164 (https://www.rfc-editor.org/rfc/rfc3164) as syslogd, rsyslog and `journalctl -o short[-precise]` write
it, the ISO 8601 stamps of rsyslog's default file format and of `journalctl -o short-iso[-precise]`, both also mixed in
one file, with or without `<PRI>` or FreeBSD's `<mail.info>`, and Dovecot's own log file, which names no host. How times
become UTC: see `syslog_time`.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import polars as pl

from transforms.model import RECORD_SCHEMA, SYSLOG_SCHEMA, Context, Head, Match
from transforms.syslog_time import (
    STAMP,
    bsd_stamps,
    bsd_times,
    by_runs,
    by_values,
    clock,
    count_years,
    iso_seconds,
    iso_tail,
    odd_times,
    plan_year,
    time_trouble,
)

__all__ = ["LONGEST", "UNTAGGED", "count_years", "envelope", "in_parallel", "plan_year", "refusal", "sniff", "unrepeat"]

LONGEST = 32 << 10  # bytes of a message; syslog daemons cut at 8 KiB
UNTAGGED = ""  # program of a syslog line that names none

T = TypeVar("T")
_SLICE = 50_000  # rows that are worth a thread
_STAMP = re.compile(STAMP)
_TAG = re.compile(r"^(?:\S+ )?[^\s:\[\]]+(?:\[[^\]]*\]:?|:)(?: |$)")
# pop3-login: Info: ... and imap(user)<pid><session>: ... of Dovecot's own log file
_DOVECOT = (
    r"^(?P<message>(?:(?:Info|Warning|Error|Fatal|Panic|Debug): )?"
    r"(?:dovecot|anvil|auth|config|deliver|dict|doveadm|imap|indexer|lda|lmtp|log|managesieve|master|pop3|replicator"
    r"|ssl-params|stats|submission)(?:-[a-z-]+)?(?:[(<].*?)?: .*)$"
)
# raptor deliver(John Doe): ...
_HOSTED = (
    r"^(?P<host>\S+) +(?P<program>[^\s:\[\]()]+\([^()]*\)|[^\s:\[\]]+)"
    r"(?:\[(?P<pid>[^\]]*)\]:?|:)(?: (?P<message>.*))?$"
)
_SHAPES = (
    _DOVECOT,
    r"^(?P<program>[^\s:\[\]]+)(?:\[(?P<pid>[^\]]*)\])?: (?P<message>.*)$",  # pop3d[12]: LOGIN FAILED ..., no host
    _HOSTED,
    r"^(?P<host>\S+) (?P<message>last message repeated \d+ times?)$",
    r"^(?P<host>\S+) +(?P<message>\S.*)$",
)
_PROGRAMS = ("dovecot", None, None, "syslog", UNTAGGED)
_AT = pl.col("at").cast(pl.Int64)
_BEFORE = pl.col("t").bin.slice(0, _AT).cast(pl.String).alias("before")
_AFTER = pl.col("t").bin.slice(_AT + 1).cast(pl.String).alias("after")
_BRACKET = pl.col("t").str.find("[", literal=True).cast(pl.Int64)
_TAG_BYTES = pl.col("t").cast(pl.Binary).bin
_PROGRAM = _TAG_BYTES.slice(0, pl.coalesce("at", _TAG_BYTES.size())).cast(pl.String)
_PROGRAM = _PROGRAM.str.strip_chars_end(":").alias("program")
_INNER = _TAG_BYTES.slice(_AT + 1).cast(pl.String).str.strip_chars_end("]:")
_PID = pl.when(pl.col("at").is_not_null()).then(_INNER).alias("pid")
_ENDED = (pl.col("t").str.ends_with(":") | pl.col("t").str.ends_with("]")).alias("ended")
_PLAIN = (pl.col("ended") & (pl.col("program") != "")).alias("plain")
_PARTS = {"month": pl.Int8(), "intra": pl.Int64(), "naive": pl.Int64(), "offset": pl.Int64()}
_TEXTS = ("ts_raw", "host", "program", "pid", "message")


def sniff(head: Head) -> Match | None:
    """Claim a text whose lines begin with a time, mostly a host, and a program tag."""
    lines = [line[:400] for line in head.lines[:400] if line.strip("\0 \t\r\n") and not line.startswith("-- ")]
    hits = 0
    for line in lines:
        found = _STAMP.match(line)
        if found and (_TAG.match(found["rest"]) or " last message repeated " in found["rest"]):
            hits += 1
    if hits < max(1, len(lines) // 2):
        return None
    reason = f"{hits} of the first {len(lines)} lines have a syslog time and program tag"
    return Match(0.5 + 0.4 * hits / len(lines), reason)


def envelope(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Split records into SYSLOG_SCHEMA, in their order; `program` is null where a record is no syslog line.

    `ts` is null, with a program, where there is no such time or its year is unknown: see `time_trouble`. Blocks of one
    evidence must come in order; the clock is kept in `ctx.carry`. What a syslogd or journalctl wrote about itself has
    the program `syslog` or `journalctl`, a line without a tag the empty program.
    """
    frame = records.collect()
    halves = in_parallel(lambda part: _split(part["raw"]), frame.select("raw"))
    parts = halves[0] if len(halves) == 1 else pl.concat(halves)
    ts, basis = clock(parts, ctx)
    whole = (
        frame.select(list(RECORD_SCHEMA))
        .hstack(parts.select(list(_TEXTS)))
        .hstack([ts.alias("ts"), basis.alias("ts_basis")])
    )
    # Polars 2.1 fails ("assertion failed: i < self.len()") on text columns that are in pieces of different lengths.
    return whole.select(list(SYSLOG_SCHEMA)).rechunk().lazy()


def in_parallel(read: Callable[[pl.DataFrame], T], frame: pl.DataFrame) -> list[T]:
    """Apply `read` to slices of a large frame, one for each thread that Polars has; to the whole of a small one."""
    threads = min(pl.thread_pool_size(), 8, frame.height // _SLICE)
    if threads < 2:
        return [read(frame)]
    step = -(-frame.height // threads)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, frame.iter_slices(step)))


def refusal(ctx: Context) -> pl.Expr:
    """Reason why an enveloped line is not to be parsed; null for the others."""
    long = pl.col("message").str.len_bytes() > LONGEST
    undated = pl.when(pl.col("ts").is_null()).then(time_trouble(ctx))
    return undated.when(long).then(pl.lit("syslog: message is longer than 32 KiB"))


def unrepeat(frame: pl.DataFrame) -> pl.DataFrame:
    """Unwrap rsyslog's `message repeated 3 times: [ ... ]` and add the column `repeated` (1 for other lines)."""
    wrapped = frame["message"].str.starts_with("message repeated ")
    if not wrapped.any():
        return frame.with_columns(repeated=pl.lit(1, pl.Int64))
    text = pl.when(wrapped).then("message")
    groups = text.str.extract_groups(r"^message repeated (\d{1,9}) times: \[ ?(.*)\]$").struct
    times = groups[0].cast(pl.Int64, strict=False).fill_null(1)
    return frame.with_columns(message=pl.coalesce(groups[1], "message"), repeated=times)


def _split(raw: pl.Series) -> pl.DataFrame:
    """Split lines into `_PARTS` and `_TEXTS`; the common shapes are read without a regular expression a line."""
    left, text, done = pl.int_range(len(raw), dtype=pl.UInt32, eager=True).alias("row"), raw, []
    for read in (_read_one_host, _read_bsd, _read_iso, _read_odd):
        if not len(left):
            break
        part, good = read(text)
        if good.all():
            done.append(part.with_columns(left))
            left = left.clear()
        elif good.any():
            done.append(part.with_columns(left).filter(good))
            left, text = left.filter(~good), text.filter(~good)
    if len(left) or not done:
        done.append(left.to_frame())
    whole = done[0]
    if len(done) > 1:
        whole = pl.concat(done, how="diagonal")
        whole = whole[whole["row"].arg_sort()]
    types = _PARTS | dict.fromkeys(_TEXTS, pl.String())
    absent = [pl.lit(None, kind).alias(name) for name, kind in types.items() if name not in whole.columns]
    return whole.with_columns(absent).select(list(types))


def _read_one_host(raw: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Read lines that begin as most logs do from end to end: a stamp without a year, and the host of the first line."""
    host = str(raw.first() or "")[16:].split(" ", 1)[0]
    begin = 17 + len(host)
    if not host.isascii() or not _plain_host(pl.Series([host])).item():
        return raw.to_frame("raw"), pl.Series([False]).new_from_index(0, len(raw))

    def convert(heads: pl.Series) -> pl.DataFrame:
        table = bsd_stamps(heads.str.head(16))
        known = table["intra"].is_not_null() & (heads.str.slice(16) == f"{host} ")
        return table.with_columns(known.alias("known"), heads.str.head(15).alias("ts_raw"))

    times = by_runs(raw.str.head(begin), convert)
    good = times["known"]
    if not good.any():
        return times, good
    tag, message = _halves(raw.str.slice(begin))
    tags = by_values(tag, _tags)
    plain = good & tags["plain"].fill_null(value=False)
    texts = times.drop("known").hstack([pl.repeat(host, len(raw), dtype=pl.String, eager=True).alias("host")])
    return texts.hstack(tags.drop("plain")).hstack([message.alias("message")]), plain


def _halves(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Cut at the first space; the second half is empty where there is none."""
    rows = pl.DataFrame({"t": text.cast(pl.Binary), "at": text.str.find(" ", literal=True)})
    halves = rows.with_columns(pl.col("at").fill_null(pl.col("t").bin.size())).select(_BEFORE, _AFTER)
    return halves.to_series(0), halves.to_series(1)


def _read_bsd(raw: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    times = bsd_times(raw.str.slice(0, 16))
    good = times["intra"].is_not_null()
    if not good.any():
        return times, good
    rest, plain = _split_rest(raw.str.slice(16))
    return times.hstack(rest).with_columns(raw.str.slice(0, 15).alias("ts_raw")), good & plain


def _read_iso(raw: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    times = by_runs(raw.str.slice(0, 19), iso_seconds)
    good = times["naive"].is_not_null()
    if not good.any():
        return times, good
    text = raw.str.splitn(" ", 2).struct.unnest()
    stamp = text.to_series(0).alias("ts_raw")
    tail = iso_tail(stamp.str.slice(19))
    naive = (times["naive"] + tail["micros"]).alias("naive")
    rest, plain = _split_rest(text.to_series(1))
    return pl.DataFrame([naive, tail["offset"], stamp]).hstack(rest), plain & naive.is_not_null()


def _read_odd(raw: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Read any shape, by regular expressions; also the marks of journalctl (-- Reboot --)."""
    fields = raw.str.extract_groups(STAMP).struct.unnest()
    parts = odd_times(fields).hstack(_odd_rest(fields["rest"]))
    mark = raw.str.starts_with("-- ")
    parts = parts.with_columns(
        pl.when(mark).then(pl.lit("journalctl")).otherwise("program").alias("program"),
        pl.when(mark).then(raw).otherwise("message").alias("message"),
    )
    return parts, parts["program"].is_not_null()


def _split_rest(rest: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Split `host program[pid]: message`; the second value tells the rows that have this plain shape."""
    first = str(rest.drop_nulls().first() or "").split(" ", 1)[0]
    if first and rest.str.starts_with(first + " ").all():  # one host, as in nearly every log: nothing to search for
        texts = rest.str.slice(len(first) + 1).str.splitn(" ", 2).struct.unnest().get_columns()
        texts.insert(0, pl.repeat(first, len(rest), dtype=pl.String, eager=True))
    else:
        texts = rest.str.splitn(" ", 3).struct.unnest().get_columns()
    tags = by_values(texts[1], _tags)
    host, message = texts[0].alias("host"), texts[2].fill_null("").alias("message")
    plain = by_runs(host, _plain_host).to_series() & tags["plain"]
    return pl.DataFrame([host, tags["program"], tags["pid"], message]), plain.fill_null(value=False)


def _tags(tags: pl.Series) -> pl.DataFrame:
    """Read `postfix/smtpd[61691]:`, also without the colon after the bracket."""
    return tags.to_frame("t").with_columns(at=_BRACKET).select(_PROGRAM, _PID, _ENDED).select("program", "pid", _PLAIN)


def _plain_host(heads: pl.Series) -> pl.DataFrame:
    return heads.str.contains(r"^[^\s(<]*[^\s(<:]$").to_frame()


def _odd_rest(rest: pl.Series) -> pl.DataFrame:
    """Split what follows the time where it is not the plain `host program[pid]: message`: the first shape that fits."""
    names = ("host", "program", "pid", "message")
    found = {name: pl.lit(None, pl.String) for name in names}
    for shape, program in reversed(list(zip(_SHAPES, _PROGRAMS, strict=True))):
        fits, groups = pl.col("rest").str.contains(shape), pl.col("rest").str.extract_groups(shape).struct
        for name in names:
            value = groups.field(name) if f"<{name}>" in shape else pl.lit(None, pl.String)
            if name == "program" and program is not None:
                value = pl.lit(program)
            found[name] = pl.when(fits).then(value).otherwise(found[name])
    return rest.to_frame("rest").select(**found).with_columns(pl.col("message").fill_null(""))
