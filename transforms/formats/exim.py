"""Exim's main log and reject log, as files and through syslog.

Specification: "Log files" of the Exim specification, https://www.exim.org/exim-html-current/doc/html/spec_html/, and
Exim's own source (log.c, receive.c, deliver.c, smtp_in.c, acl.c). An entry is `<local time> [pid] <message id> <flag>
...`; zone, fractions and process id are there where the configuration asks for them. What is said of a message is
joined by its id. The reject log has the same entries, each followed by the header of the refused message in lines of
its own, which are continuations.
"""

import re
from collections.abc import Callable

import polars as pl

from transforms import exim_rows as rows_of
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, Context, Format, Head, Match
from transforms.smtp_rows import ROW, groups
from transforms.syslog import LONGEST, refusal, unrepeat
from transforms.syslog_time import by_runs, clock, iso_tail

_ABOVE = "exim_above"  # Context.carry: whether lines without a time may follow the last entry; None before the first
_ID = r"[0-9A-Za-z]{6}-(?:[0-9A-Za-z]{6}-[0-9A-Za-z]{2}|[0-9A-Za-z]{11}-[0-9A-Za-z]{4})"
# Only NUL bytes (of a crash) may precede the time: a folded header line could imitate an entry.
_ENTRY = r"^\x00*(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d{1,9})?(?: ([+-]\d\d:?\d\d))?(?: \[(\d{1,10})\])?(?: (.*))?$"
_TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d $"
_NAMED = rf"^({_ID}) "
_FLAG = r"^(<=|\(=|=>|->|>>|\*>|\*\*|==) (.*)$"
_PART = r"^\[(\d{1,4})[\\/]\d{1,4}\] ?"  # [1/7] of an entry that syslog would not take whole
# What stands below a rejection: envelope, header lines with Exim's letter for their kind, and a rule.
_HEADER = r"^(?:\s|-{10}|\*\*\* truncated|Envelope-(?:from|to): |[A-Z*] ?[!-9;-~]+:)"
_CLAIM = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})?(?: [+-]\d{4})?(?: \[\d{1,10}\])? "
    rf"(?:{_ID} \S|H=\S|SMTP (?:connection|command|protocol|syntax|call|data) |no (?:MAIL in|host name|IP address) "
    r"|unexpected disconnection |TLS error on |\S{1,40} authenticator failed for |rejected [A-Z]|Start queue run"
    r"|End queue run|exim \d|cwd=/|Connection from \[)"
)
_STAMPED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\b")
_BELOW = re.compile(_HEADER)


def _ignored(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Say why an entry carries nothing."""
    body = pl.col("body").str
    reason = (
        pl.when(body.contains(r"^(?:Start|End) queue run")).then(pl.lit("exim: queue run"))
        .when(body.contains(r"daemon started|^pid \d+: |SIGHUP")).then(pl.lit("exim: daemon"))
        .when(body.contains(r"^cwd=")).then(pl.lit("exim: command line"))
        .when(body.contains(r"^no (?:host name|IP address) found")).then(pl.lit("exim: name lookup"))
        .when(pl.col("queue_id").is_not_null()).then(pl.lit("exim: remark about a message"))
        .otherwise(pl.lit("exim: no message or session in the line"))
    )  # fmt: skip
    rows = frame.lazy().with_columns(disposition=pl.lit(IGNORED), reason=reason)
    return [rows.select(*ROW, "disposition", "reason")]


Reader = Callable[[pl.DataFrame], list[pl.LazyFrame]]
_READERS: tuple[Reader, ...] = (
    _ignored, rows_of.arrivals, rows_of.deliveries, rows_of.failures, rows_of.completions, rows_of.refusals,
    rows_of.auth_failures, rows_of.sessions, rows_of.remarks, rows_of.oversized,
    rows_of.certificates,
)  # fmt: skip


def sniff(head: Head) -> Match | None:
    """Claim a text of Exim's entries, also where header lines of refused messages stand between them."""
    lines = [line[:300] for line in head.lines[:400] if line.strip("\0 \t\r\n")]
    stamped = [line for line in lines if _STAMPED.match(line)]
    hits = sum(1 for line in stamped if _CLAIM.match(line))
    below = sum(1 for line in lines if _BELOW.match(line))
    if not hits or hits < len(stamped) / 2 or hits + below < len(lines) / 2:
        return None
    reason = f"{hits} of the first {len(stamped)} lines with a time are entries of Exim"
    return Match(0.5 + 0.45 * (hits / len(stamped)), reason)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn entries into rows of mail_events and access_events (failed authentications), one row per record.

    Args:
        records: RECORD_SCHEMA for a log file, SYSLOG_SCHEMA for lines out of syslog.
        ctx: zone of the times; whether an entry is open is kept in `ctx.carry`.
    """
    frame = records.collect().rechunk()
    entries = _from_syslog(frame, ctx) if "program" in frame.columns else _from_file(frame, ctx)
    settled = entries.filter(pl.col("disposition").is_not_null())
    done = [settled.select(*ROW, "disposition", "reason").lazy()]
    unread = entries.filter(pl.col("disposition").is_null()).drop("disposition", "reason", "op_raw")
    left = unread.lazy().with_columns(queue_id=pl.col("text").str.head(24).str.extract(_NAMED))
    named = pl.col("text").str.slice(pl.col("queue_id").str.len_bytes() + 1)
    left = left.with_columns(body=pl.when(pl.col("queue_id").is_not_null()).then(named).otherwise("text")).drop("text")
    left = groups(left, pl.col("body"), _FLAG, "op_raw", "rest")
    frame = left.with_columns(body=pl.coalesce("rest", "body")).drop("rest").collect().rechunk()
    kinds = frame.select(_kind()).to_series()
    for at, read in enumerate(_READERS):
        part = frame.filter(kinds == at)
        if part.height:
            done += read(part)
    return pl.concat([rows.collect() for rows in done], how="diagonal").lazy()


def _kind() -> pl.Expr:
    """Number the entries by what they tell: the position in `_READERS`."""
    flag, body, named = pl.col("op_raw"), pl.col("body").str, pl.col("queue_id").is_not_null()
    host = body.starts_with("H=")
    refused = host & body.contains(r" (?:rejected|discarded|sender verify (?:fail|defer)|Warning:) ")
    remote = body.contains(r"^H=|^Remote host |^SMTP (?:error from|timeout while) |^host ")
    kind = (
        pl.when(flag.is_in(["<=", "(="])).then(1)
        .when(flag.is_in(["=>", "->", ">>", "*>"])).then(2)
        .when(flag.is_in(["**", "=="])).then(3)
        .when(named & body.contains(r"^(?:Completed\b|(?:removed|cancelled) by )")).then(4)
        .when(refused).then(5)
        .when(~named & body.contains(rows_of.CERTIFICATE)).then(10)
        .when(body.contains(rows_of.AUTH)).then(6)
        .when(body.contains(rows_of.SESSION)).then(7)
        .when(named & (remote | body.contains(r"^DKIM: d=|^(?:\*\*\* )?[Ff]rozen\b"))).then(8)
        .when(body.starts_with("rejected from <")).then(9)
        .otherwise(0)
    )  # fmt: skip
    return kind.cast(pl.UInt8)


def _stamps(texts: pl.DataFrame, ctx: Context) -> list[pl.Series]:
    """ts and ts_basis of `seconds`, `fraction`, `zone`; null where there is no such time."""

    def convert(heads: pl.Series) -> pl.DataFrame:
        time = heads.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
        return pl.DataFrame({"time": time}).select(
            pl.when(pl.col("time").dt.year().is_between(1970, 2199)).then(pl.col("time").cast(pl.Int64)).alias("naive")
        )

    known = by_runs(texts["seconds"], convert)
    tail = iso_tail(texts.select(pl.concat_str(pl.col("fraction", "zone").fill_null(""))).to_series())
    parts = pl.DataFrame(
        [known["naive"] + tail["micros"], tail["offset"]], schema={"naive": pl.Int64, "offset": pl.Int64}
    )
    parts = parts.with_columns(month=pl.lit(None, pl.Int8), intra=pl.lit(None, pl.Int64))
    ts, basis = clock(parts, ctx)
    return [ts.alias("ts"), basis.alias("ts_basis")]


def _entries(frame: pl.DataFrame, column: str, ctx: Context) -> pl.DataFrame:
    """Add seconds, fraction, zone, pid, text (all null where the line does not begin with a time), ts, ts_basis.

    A time alone is cut off; what has more (fraction, zone, process id) is read by a regular expression.
    """

    def alone(heads: pl.Series) -> pl.DataFrame:
        return heads.str.contains(_TIME).to_frame()

    timed = by_runs(frame[column].str.head(20), alone).to_series()
    rest = frame[column].str.slice(20)
    plain = timed & ~rest.str.contains(r"^(?:[+-]\d|\[\d)")
    names = ("seconds", "fraction", "zone", "own_pid", "text")
    rows = frame.with_columns(plain=plain, rest=rest)
    rows = groups(rows.lazy(), pl.when(~pl.col("plain")).then(column), _ENTRY, *names).collect()
    rows = rows.with_columns(
        text=pl.when("plain").then("rest").otherwise("text").fill_null(""),
        seconds=pl.when("plain").then(pl.col(column).str.head(19)).otherwise("seconds"),
    ).drop("plain", "rest")
    own = pl.concat_str("seconds", "fraction", pl.format(" {}", "zone"), ignore_nulls=True)
    rows = rows.with_columns(ts_own=pl.when(pl.col("seconds").is_not_null()).then(own))
    return rows.hstack(_stamps(rows, ctx)).rechunk()


def _from_file(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    rows = _entries(frame, "raw", ctx)
    stamped, text = pl.col("seconds").is_not_null(), pl.col("text").str
    opened = text.contains(r"\brejected\b|^Exim configuration error") | text.contains("authenticator failed")
    rows = rows.with_columns(opened=pl.when(stamped).then(opened))
    before = pl.Series([ctx.carry.get(_ABOVE)], dtype=pl.Boolean)
    above = pl.concat([before, rows["opened"]], rechunk=True).forward_fill()
    ctx.carry[_ABOVE] = above[-1]
    below = pl.col("above") & pl.col("raw").str.contains(_HEADER) & ~stamped
    blank = pl.col("raw").str.strip_chars("\0 \t\r") == ""
    below = below.fill_null(value=False) & ~blank
    long = pl.col("raw").str.len_bytes() > LONGEST
    refused = (
        pl.when(~stamped).then(pl.lit("exim: line has no time and belongs to no rejection"))
        .when(pl.col("ts").is_null()).then(pl.lit("time: no such day or time"))
        .when(long).then(pl.lit("exim: entry is longer than 32 KiB"))
    )  # fmt: skip
    rows = rows.with_columns(above=above[1:]).with_columns(reason=pl.when(~below & ~blank).then(refused))
    return rows.with_columns(
        disposition=pl.when(blank).then(pl.lit(IGNORED)).when(below).then(pl.lit(CONTINUATION))
        .when(pl.col("reason").is_not_null()).then(pl.lit(QUARANTINED)),
        reason=pl.when(blank).then(pl.lit("blank line")).otherwise("reason"),
        ts_raw="ts_own",
        host=pl.lit(None, pl.String),
        source=pl.lit("exim"),
        op_raw=pl.lit(None, pl.String),
        session_id="own_pid",
        repeated=pl.lit(1, pl.Int64),
    ).select(*ROW, "session_id", "repeated", "text", "disposition", "reason")  # fmt: skip


def _from_syslog(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Read what stands in the message: mostly the whole entry with its own time, which has a year."""
    reasons = frame.select(refusal(ctx)).to_series().alias("refused")
    frame = unrepeat(frame.with_columns(reasons).rename({"ts": "ts_log", "ts_basis": "basis_log"}))
    frame = frame.with_columns(
        part=pl.col("message").str.extract(_PART).cast(pl.Int64), message=pl.col("message").str.replace(_PART, "")
    )
    rows = _entries(frame, "message", ctx)
    own, long = pl.col("ts").is_not_null(), pl.col("message").str.len_bytes() > LONGEST
    later = (pl.col("part") > 1).fill_null(value=False)
    refused = pl.when(~own | long).then("refused")
    return rows.with_columns(
        disposition=pl.when(later).then(pl.lit(CONTINUATION)).when(refused.is_not_null()).then(pl.lit(QUARANTINED)),
        reason=pl.when(~later).then(refused),
        ts=pl.coalesce("ts", "ts_log"),
        ts_basis=pl.when(own).then("ts_basis").otherwise("basis_log"),
        ts_raw=pl.when(own).then("ts_own").otherwise("ts_raw"),
        text=pl.when(pl.col("seconds").is_not_null()).then("text").otherwise("message"),
        source=pl.lit("exim"),
        op_raw=pl.lit(None, pl.String),
        session_id=pl.coalesce("pid", "own_pid"),
    ).select(*ROW, "session_id", "repeated", "text", "disposition", "reason")


FORMAT = Format(
    name="exim",
    title="Exim",
    spec="https://www.exim.org/ (specification, chapter Log files)",
    tables=("mail_events", "access_events"),
    parse=parse,
    sniff=sniff,
    programs=r"exim\d?(?:[-_.][\w.-]+)?",
    gaps=(
        "a successful authentication is told by the arrival only: sasl_username of the received message",
        "a rejection stands in the main log and again in the reject log (in syslog twice): count one of them",
        "the header of a rejected message stands in continuation lines and is not read",
        "of a delivery's TLS peer the certificate's name is not kept, only version and cipher",
        "recipients of an arrival are logged only with log_selector = +received_recipients",
        "with helo_accept_junk_hosts, which is not the default, a HELO may imitate the fields after it",
    ),
)
