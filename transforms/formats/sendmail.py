"""Sendmail through syslog: `sendmail[32300]: u31FFPtp032300: from=<a@b.example>, size=5938, class=0, nrcpts=7, ...`.

Specification: the "Sendmail Installation and Operation Guide", section "Log level", and Sendmail's own source
(envelope.c, deliver.c, srvrsmtp.c, srvrsmtp's rulesets in recipient.c, tls.c, milter.c), https://www.sendmail.org/.
A message is told by one `from=` line and one `to=` line for each attempt, which names all recipients that it was for;
queue id and host join them. The queue id holds the time and the process id, and is not reused for 60 years.
"""

from collections.abc import Callable

import polars as pl

from transforms import sendmail_rows as rows_of
from transforms.model import QUARANTINED, Context, Format
from transforms.smtp_rows import ROW, groups
from transforms.syslog import refusal, unrepeat

# Since 8.10 eight characters of time and the process id; before, two or three letters and the process id.
_NAMED = r"^(?:(?:([0-9A-Za-z]{8}\d{5,10}|[A-Z]{2,3}\d{5,6})|NOQUEUE): )?(.*)$"

Reader = Callable[[pl.DataFrame], list[pl.LazyFrame]]
_SHAPES: tuple[tuple[Reader, str], ...] = (
    (rows_of.arrivals, r"^from="),
    (rows_of.deliveries, r"^to="),
    (rows_of.rules, r"^ruleset=.*, (?:reject|discard|quarantine)|^ruleset=check_"),
    (rows_of.recipients_refused, r"^<[^>]*>\.\.\. |^<\"[^>]*>\.\.\. "),
    (rows_of.authentications, r"^AUTH=server, relay=|^AUTH failure "),
    (rows_of.tls, r"^STARTTLS=(?:server|client), (?:relay=|error: |cert-subject=)"),
    (rows_of.attacks, r"^\S* ?\[[^\]\s]*\](?: \(may be forged\))?: possible SMTP attack"),
    (rows_of.sessions, "|".join(f"(?:{shape})" for *_, shape in rows_of.SESSIONS)),
    (rows_of.milters, r"^(?:Milter\b[^=]*: |milter=).*\b(?:reject|discard|quarantine)(?:=|$)"),
    (rows_of.notices, r"^[0-9A-Za-z]{8,22}: (?:DSN|return to sender|sender notify|postmaster notify|return receipt)\b"),
    (rows_of.endings, r"^done; delay="),
    (rows_of.warnings, r"^Authentication-Warning: "),
)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn syslog lines of Sendmail into rows of mail_events and access_events (AUTH), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read.
    """
    frame = (
        records.collect()
        .rechunk()
        .with_columns(source=pl.lit("sendmail"), op_raw=pl.col("program"), session_id=pl.col("pid"))
    )
    refused = frame.select(refusal(ctx)).to_series().alias("reason")
    bad = frame.with_columns(refused, disposition=pl.lit(QUARANTINED)).filter(refused.is_not_null())
    left = unrepeat(frame.filter(refused.is_null()))
    left = groups(left.lazy(), pl.col("message"), _NAMED, "queue_id", "body").collect().rechunk()
    left = left.drop("raw", "program", "pid", "message", strict=False)
    parts = [bad.select(*ROW, "disposition", "reason")]
    for read, shape in _SHAPES:
        mine = left["body"].str.contains(shape)
        if mine.any():
            parts += [rows.collect() for rows in read(left.filter(mine))]
            left = left.filter(~mine)
    parts += [rows.collect() for rows in rows_of.ignored(left)]
    return pl.concat(parts, how="diagonal").lazy()


FORMAT = Format(
    name="sendmail",
    title="Sendmail",
    spec="https://www.sendmail.org/ (Installation and Operation Guide; log lines of the daemons)",
    tables=("mail_events", "access_events"),
    parse=parse,
    programs=r"sendmail(?:[-./][\w.-]+)?|sm-[\w.-]+",
    gaps=(
        "HELO names and subjects are not logged",
        "a user who authenticated is told by the AUTH=server line only: join it by host and process id",
        "below LogLevel 10 failed authentications are told only by `possible SMTP attack: command=AUTH`",
        "TLS is joined to a message by host and process id only",
        "a certificate's subject stands in a line of its own, without the client's address",
    ),
)
