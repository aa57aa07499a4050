"""Rows of Exchange message tracking, whoever exported them: on-premises logs and Exchange Online's detail report.

Field and event names: learn.microsoft.com/exchange/mail-flow/transport-logs/message-tracking. One message gives many
rows, so nothing is counted by rows: DELIVER is what reached a mailbox, SEND what left by SMTP, RECEIVE of STOREDRIVER
what a mailbox submitted.
"""

import polars as pl

SHADOW = "shadow copy for redundancy: no mail"
NOTICE = "notice that a mailbox has something to send: no message yet"

_HEAD = "date-time client-ip client-hostname server-ip server-hostname source-context connector-id source event-id"
_IDS = "internal-message-id message-id"
_TAIL = (
    "recipient-address recipient-status total-bytes recipient-count related-recipient-address reference "
    "message-subject sender-address return-path message-info directionality tenant-id original-client-ip "
    "original-server-ip custom-data"
)
EXCHANGE_2010 = tuple(f"{_HEAD} {_IDS} {_TAIL}".split())
EXCHANGE_2013 = tuple(f"{_HEAD} {_IDS} network-message-id {_TAIL}".split())
EXCHANGE_2016 = (*EXCHANGE_2013, "transport-traffic-type", "log-id", "schema-version")
WANT = tuple(name for name in EXCHANGE_2013 if name not in ("reference", "original-server-ip"))

# event-id: event and outcome
_EVENTS = {
    "RECEIVE": ("receive", "success"),
    "CLIENTSUBMISSION": ("submit", "success"),
    "SUBMIT": ("queue", "success"),
    "SEND": ("send", "success"),
    "SENDEXTERNAL": ("send", "success"),
    "DELIVER": ("deliver", "success"),
    "DUPLICATEDELIVER": ("other", "success"),
    "DUPLICATEEXPAND": ("other", "success"),
    "DUPLICATEREDIRECT": ("other", "success"),
    "EXPAND": ("expand", "success"),
    "RESOLVE": ("expand", "success"),
    "REDIRECT": ("expand", "success"),
    "TRANSFER": ("transfer", "success"),
    "DSN": ("dsn", "success"),
    "AGENTINFO": ("other", "success"),
    "FAIL": ("bounce", "failure"),
    "BADMAIL": ("bounce", "failure"),
    "DELIVERFAIL": ("other", "failure"),
    "SUBMITFAIL": ("other", "failure"),
    "RESUBMITFAIL": ("other", "failure"),
    "DEFER": ("defer", "failure"),
    "SUBMITDEFER": ("defer", "failure"),
    "RESUBMITDEFER": ("defer", "failure"),
    "POISONMESSAGE": ("hold", "unknown"),
    "DROP": ("remove", "unknown"),
}
OTHER_EVENTS = (
    "HADISCARD HARECEIVE HAREDIRECT HAREDIRECTFAIL INITMESSAGECREATED LOAD MODERATIONEXPIRE MODERATORAPPROVE "
    "MODERATORREJECT MODERATORSALLNDR NOTIFYMAPI NOTIFYSHADOW PROCESS PROCESSMEETINGMESSAGE RESUBMIT SUPPRESSED "
    "THROTTLE"
)
EVENT_IDS = frozenset(_EVENTS) | frozenset(OTHER_EVENTS.split())
_SHADOWS = ("HARECEIVE", "HADISCARD", "HAREDIRECT", "HAREDIRECTFAIL", "NOTIFYSHADOW")

# S:AMA=EV|engine=M|v=1|sig=1.155.974.0|name=DOS/Test_File|file=filename;S:SFA=SUM|SFV=SPM|IPV=NLI
_FOUND = r"(?:^|;)S:(?:AMA=EV\||AMA=SUM\|v=1(?:\||;|$)|SFA=SUM\|(?:[^;]*\|)?SFV=SPM(?:\||;|$))"
_PROXIED = r"(?:^|;)S:ProxiedClientIPAddress=([^;]+)"
# 08DC1DB12C345BE5;2024-01-25T15:16:09.544Z;0
_SESSION = r"^;?([0-9A-Fa-f]{16})(?:;|$)"
# in recipient-status of a submission: the header that names the recipient
_HEADERS = r"^(?:To|Cc|Bcc|Unknown)(?:;(?:To|Cc|Bcc|Unknown))*;?$"
_DSN = r"(?:^|[^\d.])([245]\.\d{1,3}\.\d{1,3})(?:[^\d.]|$)"
_LONGEST_STATUS = 2000
_NO_TENANT = "00000000-0000-0000-0000-000000000000"


def ignored() -> dict[str, pl.Expr]:
    """Why rows are left out, and the condition on their columns."""
    event = _event_id()
    return {SHADOW: event.is_in(_SHADOWS), NOTICE: event == "NOTIFYMAPI"}


def mail(source: str) -> dict[str, pl.Expr]:
    """Columns of mail_events out of ``c.<field name>`` and `ts`, but for the time's own.

    The client is the original one where the row tells it: client-ip is often the server's own front end.
    """
    original = pl.coalesce(pl.col("c.original-client-ip"), pl.col("c.custom-data").str.extract(_PROXIED))
    event, outcome = _event()
    sent = event == "send"
    status = pl.coalesce(_status(), pl.when(outcome == "failure").then("c.source-context"))
    there, here = pl.col("c.server-hostname"), pl.col("c.client-hostname")
    writes_as_client = _event_id().is_in(["SEND", "SENDEXTERNAL", "SUBMIT", "DELIVER"])
    return {
        "source": pl.lit(source),
        "host": pl.when(writes_as_client).then(pl.coalesce(here, there)).otherwise(pl.coalesce(there, here)),
        "event": event,
        "op_raw": pl.concat_str("c.event-id", "c.source", separator="/", ignore_nulls=True),
        "outcome": outcome,
        "internal_id": pl.col("c.internal-message-id"),
        "message_id": pl.col("c.message-id"),
        "network_message_id": pl.col("c.network-message-id").str.to_lowercase(),
        "session_id": pl.col("c.source-context").str.extract(_SESSION).str.to_uppercase(),
        "src_ip_raw": pl.coalesce(original, pl.col("c.client-ip")),
        "src_host": pl.when((event == "receive") & (original.is_null() | (original == pl.col("c.client-ip")))).then(
            here
        ),
        "relay_host": pl.when(sent).then(pl.coalesce(there, pl.col("c.connector-id"))),
        "dst_ip_raw": pl.when(sent).then("c.server-ip"),
        "subject": pl.col("c.message-subject"),
        "dsn": status.str.extract(_DSN),
        "status_text": status.str.slice(0, _LONGEST_STATUS),
        "size_bytes": _number("total-bytes"),
        "delay_s": _delay(),
        "tenant_id": pl.when(pl.col("c.tenant-id") != _NO_TENANT).then("c.tenant-id"),
        **_envelope(event),
    }


def recipients(addresses: pl.Expr) -> dict[str, pl.Expr]:
    """rcpt, and recipients where there are several, of addresses joined by `;`."""
    joined = addresses.str.strip_chars("; ")
    several = pl.when(joined.str.contains(";", literal=True)).then(joined).str.split(";")
    named = several.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
    first = joined.str.splitn(";", 2).struct[0].str.strip_chars()
    return {
        "rcpt": pl.when(first != "").then(first),
        "recipients": pl.when(named.list.len() > 1).then(named),
    }


def sender(written: pl.Expr) -> pl.Expr:
    """Address without its angle brackets; "" for the null sender."""
    return written.str.strip_chars().str.replace(r"^<(.*)>$", "${1}")


def domain(address: pl.Expr) -> pl.Expr:
    """Domain of a mail address in lower case; null without one."""
    return address.str.extract(r"@([^@\s;>]+)$").str.to_lowercase()


def directed(incoming: pl.Expr, originating: pl.Expr, within: pl.Expr) -> pl.Expr:
    """Direction seen from the tenant; what originates within and stays there is internal."""
    return (
        pl.when(incoming)
        .then(pl.lit("inbound"))
        .when(originating & within.fill_null(value=False))
        .then(pl.lit("internal"))
        .when(originating)
        .then(pl.lit("outbound"))
        .otherwise(pl.lit("unknown"))
    )


def within(sender_address: pl.Expr, addresses: pl.Expr) -> pl.Expr:
    """Whether all addresses of a `;` list are in the sender's domain."""
    lower = addresses.str.to_lowercase().str.strip_chars("; ") + ";"
    own = lower.str.count_matches(pl.lit("@") + domain(sender_address) + ";", literal=True)
    return (own > 0) & (own == lower.str.count_matches(";", literal=True))


def _event_id() -> pl.Expr:
    return pl.col("c.event-id").str.to_uppercase()


def _event() -> tuple[pl.Expr, pl.Expr]:
    known, source = _event_id(), pl.col("c.source").str.to_uppercase()
    event = known.replace_strict(
        list(_EVENTS), [e for e, _ in _EVENTS.values()], default="other", return_dtype=pl.String
    )
    outcome = known.replace_strict(
        list(_EVENTS), [o for _, o in _EVENTS.values()], default="unknown", return_dtype=pl.String
    )
    received = known == "RECEIVE"
    # The Journaling agent puts its reports into the pipeline under its name.
    report = received & (source == "AGENT") & pl.col("c.source-context").str.contains("(?i)journal")
    found = (known == "AGENTINFO") & pl.col("c.custom-data").str.contains(_FOUND)
    event = (
        pl.when(report)
        .then(pl.lit("journal"))
        .when(received & (source == "STOREDRIVER"))
        .then(pl.lit("submit"))
        .when(found)
        .then(pl.lit("verdict"))
        .otherwise(event)
    )
    return event, outcome


def _status() -> pl.Expr:
    text = pl.col("c.recipient-status")
    return pl.when(~text.str.contains(_HEADERS)).then(text)


def _envelope(event: pl.Expr) -> dict[str, pl.Expr]:
    author, addresses = sender(pl.col("c.sender-address")), pl.col("c.recipient-address")
    mail_from = pl.coalesce(sender(pl.col("c.return-path")), pl.when(author == "").then(author))
    named = recipients(addresses)
    count = _number("recipient-count")
    told = pl.col("c.directionality").str.to_lowercase()
    from_tenant = (told == "originating") | (told.is_null() & event.is_in(["submit", "queue"]))
    to_tenant = (told == "incoming") | (told.is_null() & (event == "deliver"))
    stays = (event == "deliver") | within(author, addresses)
    rewritten = _event_id().is_in(["EXPAND", "RESOLVE", "REDIRECT"])
    return {
        "direction": directed(told == "incoming", told == "originating", stays),
        "mail_from": mail_from,
        "header_from": pl.when(author != "").then(author),
        **named,
        "n_rcpt": pl.coalesce(count, named["recipients"].list.len().cast(pl.Int64)),
        "orig_rcpt": pl.when(rewritten).then("c.related-recipient-address"),
        "tenant_domain": pl.when(to_tenant.fill_null(value=False))
        .then(domain(named["rcpt"]))
        .when(from_tenant)
        .then(domain(author)),
    }


def _delay() -> pl.Expr:
    """Seconds since the message came to the organisation, which DELIVER and SEND rows tell."""
    came = pl.when(_event_id().is_in(["DELIVER", "SEND", "SENDEXTERNAL"])).then("c.message-info")
    text = came.str.extract(r"^(\d{4}-\d\d-\d\dT[\d:.]{8,16})Z(?:;|$)")
    time = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).dt.replace_time_zone("UTC")
    delay = (pl.col("ts") - time).dt.total_microseconds() / 1_000_000
    return pl.when(delay >= 0).then(delay)


def _number(name: str) -> pl.Expr:
    value = pl.col(f"c.{name}").cast(pl.Int64, strict=False)
    return pl.when(value >= 0).then(value)
