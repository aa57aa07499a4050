"""Hops: the records that one server wrote about one message, put together over files and midnights.

What names a hop is, in this order: Exchange's network message id, which all servers of an organisation share (so that
front end, hub and mailbox server are one hop); the server and its queue id or internal id; for deliveries without
either (Dovecot) the server and the Message-ID.

Queue ids are used again. A hop ends with `removed` (Exim: Completed), after 7.5 days without a record, or when a
reception follows an attempt at delivery, as it does where the log lacks the end. Times are those of the logs, to the
second: within a second the order is that of a message's life, never that of the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from transforms import spill
from transforms.derived._parts import table, within

REACH = (8, 8)
LIFE = timedelta(days=7, hours=12)  # Postfix, Sendmail and Exim give up after 4 to 5 days, some sites after 7
_SAME_DELIVERY = timedelta(hours=1)  # of a Message-ID that stands for a missing queue id

_ELSEWHERE = ("connect", "disconnect", "tls", "click", "verdict")
_HANDLED = ("deliver", "send", "defer", "bounce", "reject", "expire", "hold", "quarantine", "journal", "receive")
_TRIED = ("deliver", "send", "defer", "bounce", "expire")
_OPENED_ONCE = ("postfix", "exim", "sendmail")
_COPY = r"(?i)(?:^|[^A-Za-z])HA(?:RECEIVE|DISCARD|REDIRECT|REDIRECTFAIL)(?:[^A-Za-z]|$)"
_RANKS = {"submit": 0, "receive": 0, "journal": 0, "cleanup": 1, "queue": 2, "remove": 9}

HOP = ("hop_host", "hop_id")
CLIENT = ("src_ip", "src_net", "src_asn", "src_class", "src_host")
DECIDING = ("dsn", "status_text", "relay_host", "dst_ip")
_FACTS = ("helo", "sasl_username", "tls_version", "mail_from", "subject", "size_bytes", "direction")
_FIRST = ("host", "message_id", "network_message_id", "helo", "sasl_username", "mail_from", "subject")
_TEXTS = (
    "ts", "source", "host", "tenant_id", "event", "op_raw", "outcome", "queue_id", "internal_id", "network_message_id",
    "message_id", *CLIENT, *_FACTS, *DECIDING, "delay_s", "rcpt", "orig_rcpt",
)  # fmt: skip
# Done weighs more than given up, that more than not yet.
_WEIGHTS = {"delivered": 5, "sent": 4, "bounced": 3, "rejected": 3, "expired": 3, "deferred": 2, "held": 2}
_ROWS_AT_ONCE = 350_000
PRIORITY = 2**40  # more than a day has records: priority and place in one number


def records(tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """Records about messages, with the hop that they belong to (hop_id null: none).

    Shadow copies are left out, and of Exchange's protocol logs all but refusals of a client: message tracking has the
    rest. Postfix and Sendmail tell of an authenticated submission in a line that is kept as an authentication.
    """
    copy = pl.col("op_raw").str.contains(_COPY).fill_null(value=False)
    refused = (pl.col("event") == "reject") & pl.col("internal_id").is_null() & pl.col("src_ip").is_not_null()
    told_again = (pl.col("source") == "exchange_smtp") & ~refused
    mail = table(tables, "mail_events").filter(~pl.col("event").is_in(_ELSEWHERE) & ~copy & ~told_again)
    mail = mail.select("date", *_TEXTS, "recipients")
    # Of Sendmail it is a queue id or, where there was none, the number of a process.
    sendmail = (pl.col("source") == "sendmail") & pl.col("session_id").str.contains("[A-Za-z]")
    signed = table(tables, "access_events").filter(
        ((pl.col("source") == "postfix") | sendmail) & (pl.col("action") == "auth") & (pl.col("outcome") == "success")
    )
    names = ("date", "ts", "source", "host", "tenant_id", "src_ip", "src_net", "src_asn", "src_class", "outcome")
    signed = signed.filter(pl.col("session_id").is_not_null()).select(
        *names,
        event=pl.when(pl.col("source") == "postfix").then(pl.lit("receive")).otherwise(pl.lit("submit")),
        queue_id="session_id",
        sasl_username="principal_id",
    )
    return pl.concat([mail, signed], how="diagonal").with_columns(**_keys())


def _keys() -> dict[str, pl.Expr]:
    network, message = pl.col("network_message_id"), pl.col("message_id")
    by_message = message.is_not_null() & pl.col("event").is_in(_HANDLED)
    return {
        "hop_host": pl.when(network.is_null()).then(pl.col("host").fill_null("")).otherwise(pl.lit("")),
        "hop_id": pl.when(network.is_not_null()).then(pl.lit("net:") + network.str.to_lowercase())
        .when(pl.col("queue_id").is_not_null()).then("queue_id")
        .when(pl.col("internal_id").is_not_null()).then("internal_id")
        .when(by_message).then(pl.lit("mid:") + message),
    }  # fmt: skip


def gathered(rows: pl.LazyFrame, days: Sequence[date], at_most: int) -> Iterator[pl.LazyFrame]:
    """Records of hops that have one on `days`, and of hops of the same messages: all that these days' rows depend on.

    Of the other days in reach only the keys are read throughout, and the other columns where a key was found: there
    are few, since most messages are done within the day. The records come in pieces of bounded size, all of a hop in
    one of them; `at_most` is how many there may be.
    """
    rows = rows.filter(pl.col("hop_id").is_not_null())
    today = within(days)
    here, others = rows.filter(today), rows.filter(~today)
    if others.select("date").limit(1).collect().is_empty():
        yield from spill.pieces(here, -(-at_most // _ROWS_AT_ONCE), pl.col("hop_id").hash(0))
        return
    keys = here.select(HOP).unique()
    spanning = others.select(HOP).join(keys, on=HOP, how="semi").unique().collect(engine="streaming")
    own = pl.concat([here, _of(others, spanning)])
    names = own.select("message_id").drop_nulls().unique()
    related = others.filter(pl.col("message_id").is_not_null()).select(*HOP, "message_id")
    related = related.join(names, on="message_id", how="semi").select(HOP).unique()
    more = related.join(spanning.lazy(), on=HOP, how="anti").collect(engine="streaming")
    whole = pl.concat([here, _of(others, pl.concat([spanning, more]))])
    yield from spill.pieces(whole, -(-at_most // _ROWS_AT_ONCE), pl.col("hop_id").hash(0))


def _of(rows: pl.LazyFrame, keys: pl.DataFrame) -> pl.LazyFrame:
    if keys.is_empty():
        return rows.limit(0)
    found = rows.filter(pl.col("hop_id").is_in(keys["hop_id"].unique().implode()))
    return found.join(keys.lazy(), on=HOP, how="semi")


def numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Records with `at` (place in the order), `hop` (number of the hop), `began` (its first time), status, score.

    `score` is the priority of the record for the status, times PRIORITY, plus its place. The records stay as they lie:
    to put so many columns in order costs more than all else.
    """
    event, hop_id = pl.col("event"), pl.col("hop_id")
    opened = pl.col("source").is_in(_OPENED_ONCE) & (event == "receive")
    marks = {
        "rank": event.replace_strict(_RANKS, default=3, return_dtype=pl.UInt8),
        "named": hop_id.str.starts_with("mid:"),
        "queued": ~hop_id.str.starts_with("net:"),
        "opened": opened.fill_null(value=False),
        "tried": event.is_in(_TRIED),
        "removed": event == "remove",
    }
    ordered = _ordered(rows, rows.select(*HOP, "ts", row=pl.int_range(pl.len(), dtype=pl.UInt32), **marks))
    before = {name: pl.col(name).shift(1) for name in ("code", "ts", "tried", "removed")}
    longest = pl.when("named").then(pl.lit(_SAME_DELIVERY)).otherwise(pl.lit(LIFE))
    again = pl.col("opened") & before["tried"]
    over = (pl.col("ts") - before["ts"] > longest) | (pl.col("queued") & (before["removed"] | again))
    first = (pl.col("code") != before["code"]).fill_null(value=True) | over.fill_null(value=False)
    found = ordered.select("row", "ts", first=first).with_columns(
        pl.col("first").cum_sum().cast(pl.Int64).alias("hop"), pl.when("first").then("ts").forward_fill().alias("began")
    )
    found = found.filter(pl.col("ts") - pl.col("began") <= LIFE)
    found = found.with_columns(at=pl.int_range(pl.len(), dtype=pl.Int64)).sort("row")
    kept = rows if found.height == rows.height else rows[found["row"]]
    weight = status().replace_strict(_WEIGHTS, default=0, return_dtype=pl.Int64)
    return kept.with_columns(found["at"], found["hop"], found["began"], status().alias("status")).with_columns(
        (weight * PRIORITY + pl.col("at")).alias("score")
    )


def _ordered(rows: pl.DataFrame, marked: pl.DataFrame) -> pl.DataFrame:
    """The marks in the order of the hops (`code`, a number for each HOP) and of their lives."""
    hops = rows.select(HOP).unique().sort(HOP).with_row_index("code")
    found = marked.join(hops, on=HOP, how="left", maintain_order="left").drop(HOP).sort("code", "ts", "rank")
    again = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in ("code", "ts", "rank"))
    again = again.fill_null(value=False)
    tied = found.filter(again | again.shift(-1).fill_null(value=False))["row"]
    # No two records that differ have a tie that the files' order would have to break.
    ties = rows[tied].select(pl.struct(*_TEXTS, pl.col("recipients").list.join(";")).hash(0).alias("tie"), row=tied)
    return found.join(ties, on="row", how="left").sort("code", "ts", "rank", "tie")


def status() -> pl.Expr:
    """What a record makes of the message."""
    event, failed = pl.col("event"), pl.col("outcome") == "failure"
    return (
        pl.when(event.is_in(["deliver", "send"]) & failed).then(pl.lit("deferred"))
        # In message tracking the report that begins its way, elsewhere the copy that has arrived.
        .when((event == "journal") & (pl.col("source") == "exchange_msgtrk")).then(pl.lit("queued"))
        .when(event.is_in(["deliver", "journal"])).then(pl.lit("delivered"))
        .when(event == "send").then(pl.lit("sent"))
        .when(event == "bounce").then(pl.lit("bounced"))
        .when(event == "reject").then(pl.lit("rejected"))
        .when(event == "expire").then(pl.lit("expired"))
        .when(event == "defer").then(pl.lit("deferred"))
        .when(event.is_in(["hold", "quarantine"])).then(pl.lit("held"))
        .otherwise(pl.lit("queued"))
    )  # fmt: skip


def facts(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each hop of `numbered` records: what its records tell about the message as a whole.

    Of what several tell, the first in time counts: it is found by its place, and fetched at the end.
    """
    coming = pl.col("event").is_in(["receive", "submit", "cleanup", "journal"])
    tried = pl.col("event").is_in([*_TRIED, "transfer"])
    tells = {name: pl.col(name).is_not_null() for name in _FIRST} | {
        "queue_id": pl.coalesce("queue_id", "internal_id").is_not_null(),
        "client": pl.col("src_ip").is_not_null() & ~tried,
        "tls_version": pl.col("tls_version").is_not_null() & ~tried,
        "direction": pl.col("direction") != "unknown",
    }
    summed = (
        rows.lazy()
        .select(
            "hop", "began", "ts", "tenant_id", "size_bytes",
            came=pl.when(coming).then("ts"),
            named=pl.when(pl.col("message_id").is_not_null()).then("ts"),
            empty=pl.col("event").is_in(["remove", "other"]),
            **{f"_{name}": pl.when(wanted).then("at") for name, wanted in tells.items()},
        )
        .group_by("hop")
        .agg(
            pl.col("began").min(),
            pl.col("came").min(),
            pl.col("ts").max().alias("ended"),
            pl.col("named").min(),
            pl.len().cast(pl.Int64).alias("n_events"),
            pl.col("tenant_id").min().alias("_tenant"),
            pl.col("size_bytes").max().clip(0),
            pl.col("empty").all().alias("_empty"),
            *(pl.col(f"_{name}").min() for name in tells),
        )
        .collect(engine="streaming")
    )  # fmt: skip
    lines = rows["at"].arg_sort()

    def told(name: str, by: str) -> pl.Series:
        column = rows.select(pl.coalesce("queue_id", "internal_id"))["queue_id"] if name == "queue_id" else rows[name]
        return column.gather(lines.gather(summed[f"_{by}"]))

    sources = rows.select("hop", "source").unique().sort("hop", "source").group_by("hop").agg(sources="source")
    return (
        summed.with_columns(
            *(told(name, name) for name in ("queue_id", *_FIRST, "tls_version")),
            *(told(name, "client") for name in CLIENT),
            told("direction", "direction").fill_null("unknown"),
        )
        .drop(f"_{name}" for name in tells)
        .join(sources, on="hop")
    )


def addressed(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The records once for each recipient that they name; `rcpt` is lower case, null where they name none."""
    several = pl.col("recipients").list.len() > 0
    named = pl.when(several).then("recipients").otherwise(pl.concat_list("rcpt"))
    clean = pl.col("rcpt").str.to_lowercase().str.strip_chars(" <>")
    return (
        rows.with_columns(named.alias("rcpt"))
        .drop("recipients")
        .explode("rcpt", empty_as_null=True)
        .with_columns(pl.when(clean != "").then(clean).alias("rcpt"))
    )
