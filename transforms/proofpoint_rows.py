"""Rows out of Proofpoint on Demand's records: what the filter decided about a message, and what sendmail wrote.

The mail log is sendmail's, taken apart into `sm`. The taking apart cuts values at an equals sign
(`stat=Sent (<x@y> [InternalId`), so that the line itself, which stands in `data`, is asked where it says more.
"""

import polars as pl

from transforms import gateway_fields as g

_COMMON = ("ts", "id", "guid", "event_type", "data", "pps.agent", "pps.cid")
_ORIGIN = ("metadata.origin.data.agent", "metadata.origin.data.cid")
_SENDMAIL = "qid from to ctladdr relay stat dsn delay xdelay mailer msgid nrcpts sizeBytes proto reject"
_MESSAGE = (
    "connection.ip connection.host connection.helo connection.sid connection.tls.inbound.version "
    "connection.tls.inbound.cipher envelope.from envelope.rcpts msg.sizeBytes msg.header.from msg.header.subject "
    "msg.header.message-id msg.normalizedHeader.from msg.normalizedHeader.subject msg.normalizedHeader.message-id "
    "filter.qid filter.disposition filter.routeDirection filter.msgSizeBytes filter.quarantine.folder "
    "filter.quarantine.rule filter.quarantine.module filter.startTime filter.actions final_action final_rule "
    "final_module"
)
PATHS = (
    *_COMMON,
    *_ORIGIN,
    *(f"sm.{name}" for name in _SENDMAIL.split()),
    "sm.tls.version",
    "sm.tls.cipher",
    "tls.version",
    "tls.cipher",
    *_MESSAGE.split(),
)

# Disposition of the filter -> event, outcome. What is left of a message that is neither passed on nor refused is told
# by its quarantine.
_DISPOSITIONS = {
    "continue": ("receive", "success"),
    "accept": ("receive", "success"),
    "deliver": ("receive", "success"),
    "reroute": ("receive", "success"),
    "reject": ("reject", "failure"),
    "retry": ("defer", "failure"),
    "tempfail": ("defer", "failure"),
    "quarantine": ("quarantine", "unknown"),
    "discard": ("other", "failure"),
}
_LOCAL = ("local", "*file*", "prog", "cyrus", "dsn", "*include*")


def identity() -> dict[str, pl.Expr]:
    """What message records and mail log records have in common."""
    return {
        "host": pl.coalesce(_text("pps.agent"), _text("metadata.origin.data.agent")),
        "tenant_id": pl.coalesce(_text("pps.cid"), _text("metadata.origin.data.cid")),
    }


def message(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of mail_events for records of the filter; one record stands for all recipients."""
    frame = frame.with_columns(
        _first(frame, f"msg.{header}.{name}").alias(f"{header}.{name}")
        for header in ("header", "normalizedHeader")
        for name in ("from", "subject", "message-id")
    )
    frame = frame.with_columns(
        column.alias(f"to.{name}")
        for name, column in g.recipients(g.addresses(frame.get_column("envelope.rcpts"))).items()
    )
    disposition = _text("filter.disposition").str.to_lowercase()
    folder = _text("filter.quarantine.folder")
    kept = (disposition == "discard") & folder.is_not_null()
    said = {part: _told(disposition, part) for part in ("event", "outcome")}
    moment = pl.coalesce(_text("ts"), _text("filter.startTime"))
    status = g.told(
        disposition=disposition,
        folder=folder,
        rule=_text("filter.quarantine.rule"),
        final_action=_final("action"),
        final_module=_final("module"),
        final_rule=_final("rule"),
    )
    columns = {
        "source_id": pl.when(_text("guid").is_not_null()).then(
            pl.concat_str(pl.lit("message|"), "guid", pl.lit("|"), moment)
        ),
        "event": pl.when(kept).then(pl.lit("quarantine")).otherwise(pl.coalesce(said["event"], pl.lit("receive"))),
        "outcome": pl.when(kept).then(pl.lit("unknown")).otherwise(pl.coalesce(said["outcome"], pl.lit("unknown"))),
        "op_raw": pl.concat_str(pl.lit("message"), disposition, separator=" ", ignore_nulls=True).str.slice(0, 60),
        "queue_id": _text("filter.qid"),
        "internal_id": _text("guid"),
        "message_id": g.message_id(pl.coalesce("header.message-id", "normalizedHeader.message-id")),
        "direction": g.direction(_text("filter.routeDirection")),
        "session_id": _text("connection.sid"),
        "src_ip_raw": _text("connection.ip"),
        "src_host": _text("connection.host"),
        "helo": _text("connection.helo"),
        "tls_version": _text("connection.tls.inbound.version"),
        "tls_cipher": _text("connection.tls.inbound.cipher"),
        "mail_from": g.envelope(pl.col("envelope.from")),
        "header_from": pl.coalesce(g.text(pl.col("normalizedHeader.from")), g.text(pl.col("header.from"))),
        "rcpt": pl.col("to.rcpt"),
        "recipients": pl.col("to.recipients"),
        "n_rcpt": pl.col("to.n_rcpt"),
        "subject": pl.coalesce(g.text(pl.col("normalizedHeader.subject")), g.text(pl.col("header.subject"))),
        "status_text": status,
        "size_bytes": pl.coalesce(g.whole(pl.col("msg.sizeBytes")), g.whole(pl.col("filter.msgSizeBytes"))),
    }
    return frame.select("record_no", *(value.alias(name) for name, value in (identity() | columns).items()))


def _first(frame: pl.DataFrame, path: str) -> pl.Series:
    return g.listed(frame.get_column(path)).list.first()


def _final(what: str) -> pl.Expr:
    """What decided: told beside the filter's part in newer records, else by the action that is marked as final."""
    action = pl.col("filter.actions").str.extract(r'(\{[^{}]*"isFinal"\s*:\s*true[^{}]*\})')
    return pl.coalesce(_text(f"final_{what}"), action.str.extract(rf'"{what}"\s*:\s*"([^"\\]*)"'))


def _told(value: pl.Expr, part: str) -> pl.Expr:
    known = {name: both[part == "outcome"] for name, both in _DISPOSITIONS.items()}
    return value.replace_strict(known, default=None, return_dtype=pl.String)


def maillog(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of mail_events for records of sendmail: `from=` is queued, `to=` is sent, deferred or bounced."""
    frame = frame.with_columns(
        column.alias(f"to.{name}") for name, column in g.recipients(g.addresses(frame.get_column("sm.to"))).items()
    )
    frame = frame.with_columns(_status().alias("status"), _place().alias("place")).unnest("place")
    frame = frame.with_columns(_fate().alias("fate")).unnest("fate")
    sent = pl.col("sm.to").is_not_null()
    said = pl.coalesce(_text("sm.nrcpts").pipe(g.whole), pl.when(sent).then("to.n_rcpt"))
    columns = {
        "source_id": "maillog|" + _text("id"),
        "event": pl.col("event"),
        "outcome": pl.col("outcome"),
        "op_raw": pl.concat_str(
            pl.lit("maillog"),
            pl.when(sent).then(_text("sm.mailer")).otherwise(_text("sm.proto")),
            separator=" ",
            ignore_nulls=True,
        ).str.slice(0, 60),
        "queue_id": _text("sm.qid"),
        "message_id": g.message_id(pl.col("sm.msgid")),
        "direction": pl.lit("unknown"),
        "src_ip_raw": pl.when(~sent).then("peer_ip"),
        "src_host": pl.when(~sent).then("peer_name"),
        "dst_ip_raw": pl.when(sent).then("peer_ip"),
        "relay_host": pl.when(sent).then("peer_name"),
        "tls_version": pl.coalesce(_text("tls.version"), _text("sm.tls.version")),
        "tls_cipher": pl.coalesce(_text("tls.cipher"), _text("sm.tls.cipher")),
        "mail_from": _sender(),
        "rcpt": pl.col("to.rcpt"),
        "recipients": pl.col("to.recipients"),
        "n_rcpt": said,
        "dsn": _text("sm.dsn").str.extract(r"^([245]\.\d{1,3}\.\d{1,3})$"),
        "status_text": g.without_password(pl.col("status")).str.slice(0, g.MAX_TEXT),
        "size_bytes": g.whole(pl.col("sm.sizeBytes")),
        "delay_s": _seconds(pl.col("sm.delay")),
    }
    return frame.select("record_no", *(value.alias(name) for name, value in (identity() | columns).items()))


def _status() -> pl.Expr:
    """The reply as the line has it, where that begins as the cut one does; else the cut one; else a rejection."""
    cut = _text("sm.stat")
    line = pl.col("data").str.extract(r", stat=(.*)$").str.strip_chars()
    rejected = pl.col("data").str.extract(r" (reject=.*)$")
    return pl.coalesce(pl.when(line.str.starts_with(cut)).then(line), cut, line, _text("sm.reject"), rejected)


def _sender() -> pl.Expr:
    """The sender; from the line where the equals sign of an address has cut it."""
    cut = pl.col("sm.from")
    broken = cut.str.starts_with("<") & ~cut.str.ends_with(">")
    line = pl.col("data").str.extract(r": from=<([^>]*)>, size=")
    return pl.when(broken & line.is_not_null()).then(line).otherwise(g.envelope(cut).str.strip_prefix("<"))


def _place() -> pl.Expr:
    """Struct of name and address out of `mx.example. [IPv6:2001:db8::1]`."""
    relay = _text("sm.relay")
    name = relay.str.extract(r"^([^\s\[\]]+)").str.strip_suffix(".")
    address = relay.str.extract(r"\[(?:IPv6:)?([^\]\s]+)\]")
    return pl.struct(name.alias("peer_name"), address.alias("peer_ip"))


def _fate() -> pl.Expr:
    """Struct of event and outcome out of the reply, the delivery status and the mailer."""
    status, dsn = pl.col("status").str.to_lowercase(), pl.col("sm.dsn")
    local = _text("sm.mailer").is_in(_LOCAL)
    arrived = pl.when(local).then(pl.lit("deliver")).otherwise(pl.lit("send"))
    refused = status.str.starts_with("reject=") | _text("sm.reject").is_not_null()
    to = pl.col("sm.to").is_not_null() | _text("sm.stat").is_not_null()
    failed = dsn.str.starts_with("5") | status.str.contains(r"unknown|unavailable|error|refused|denied|timed out with")
    event = (
        pl.when(refused)
        .then(pl.lit("reject"))
        .when(to & status.str.starts_with("sent"))
        .then(arrived)
        .when(to & status.str.starts_with("queued"))
        .then(pl.lit("queue"))
        .when(to & (status.str.starts_with("deferred") | dsn.str.starts_with("4")))
        .then(pl.lit("defer"))
        .when(to & failed)
        .then(pl.lit("bounce"))
        .when(~to & pl.col("sm.from").is_not_null())
        .then(pl.lit("queue"))
        .otherwise(pl.lit("other"))
    )
    outcome = (
        pl.when(event.is_in(["send", "deliver", "queue"]))
        .then(pl.lit("success"))
        .when(event.is_in(["reject", "defer", "bounce"]))
        .then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )
    return pl.struct(event.alias("event"), outcome.alias("outcome"))


def _seconds(delay: pl.Expr) -> pl.Expr:
    """`1+02:03:04` (days, hours, minutes, seconds) in seconds."""
    parts = delay.str.extract_groups(r"^(?:(\d{1,5})\+)?(\d\d):(\d\d):(\d\d)$").struct
    days, hours, minutes, seconds = (parts[at].cast(pl.Float64) for at in range(4))
    return days.fill_null(0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _text(path: str) -> pl.Expr:
    return g.text(pl.col(path))
