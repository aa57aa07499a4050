"""Exchange message tracking log (MSGTRK, MSGTRKMD, MSGTRKMS, MSGTRKMA): one row per event of a message.

Specification: learn.microsoft.com/exchange/mail-flow/transport-logs/message-tracking. Times are UTC. 26 columns in
Exchange 2010, 27 in 2013, 30 from 2016 on; where the `#Fields:` line and the width of a row disagree, the row is right.

The session_id of a message received by SMTP is that of the SMTP receive log (source exchange_smtp).
"""

import polars as pl

from transforms import csvrows, exchange, msgtrk_rows
from transforms.model import QUARANTINED, Context, Format, Head, Match

NAME = "exchange_msgtrk"
LOG = exchange.Log(
    kind="Message Tracking Log",
    versions=(msgtrk_rows.EXCHANGE_2010, msgtrk_rows.EXCHANGE_2013, msgtrk_rows.EXCHANGE_2016),
    core=("date-time", "source", "event-id", "message-id", "recipient-address", "sender-address"),
    want=msgtrk_rows.WANT,
    rare={},
    time="date-time",
    second="client-ip",
    single_quotes=False,
)
_WIDTHS = {len(version) for version in LOG.versions}
# A row of a later version that is cut to the width of 2010 has the network message id in the recipient's place.
_GUID = r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_EVENT_ID = LOG.versions[0].index("event-id")


def sniff(head: Head) -> Match | None:
    """Claims a file by its `#` lines, else by rows of a known width that name an event of message tracking."""
    if not any(line.startswith("#Log-type:") for line in head.lines[:200]):
        return _sniff_rows(head)
    # A header that names more columns than there are is no reason to refuse the file.
    return exchange.sniff(head, LOG)


def _sniff_rows(head: Head) -> Match | None:
    if (match := exchange.sniff(head, LOG)) is not None and match.score > 0.9:
        return match
    rows = [line for line in head.lines[:50] if line.strip() and not line.startswith("#")]
    split = [csvrows.fields(row.lstrip("\ufeff")) or [] for row in rows if row.lstrip("\ufeff")[10:11] == "T"]
    fitting = [f for f in split if len(f) in _WIDTHS and f[_EVENT_ID].upper() in msgtrk_rows.EVENT_IDS]
    if rows and len(fitting) * 2 > len(rows):
        return Match(0.6, "rows of message tracking, without a header")
    return None


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: mail_events, or ignored (header, blank line, shadow copy, notice)."""
    rest, rows = exchange.read(records, ctx, LOG, msgtrk_rows.ignored())
    shifted = pl.col("c.recipient-address").str.contains(_GUID).fill_null(value=False)
    misread = rows.filter(shifted).select(
        *exchange.PLACE, disposition=pl.lit(QUARANTINED), reason=pl.lit(exchange.MISFIT)
    )
    told = rows.filter(~shifted).select(
        *exchange.PLACE,
        "ts",
        disposition=pl.lit("mail_events"),
        ts_raw=pl.col("c.date-time"),
        ts_basis=pl.lit("utc"),
        **msgtrk_rows.mail(NAME),
    )
    return pl.concat([told, misread, rest.lazy()], how="diagonal")


FORMAT = Format(
    name=NAME,
    title="Exchange message tracking log",
    spec="https://learn.microsoft.com/exchange/mail-flow/transport-logs/message-tracking",
    tables=("mail_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "one message gives many rows on every server it passes: count DELIVER, SEND and RECEIVE, never rows",
        "SUBMIT (mailbox server to transport) is event queue, so that RECEIVE of STOREDRIVER alone is a submission",
        "a journal report is known as one where the Journaling agent's own row is logged; its delivery is a deliver",
        "the original client is the sender's last hop before Exchange, as the front end noted it",
        "direction outbound of mail to another domain of the same organisation cannot be told from mail that leaves",
        "recipient-status is one text; of several recipients it is not cut apart",
    ),
)
