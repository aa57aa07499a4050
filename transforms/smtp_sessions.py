"""Sessions of Exchange's SMTP protocol logs: what a row owes to the rows above it.

A row has little but its own words; who the client is, whose password it was and which recipient a reply refuses stands
in rows above, with other sessions between. All of it is found by windows over the session, and what open sessions need
later is carried from block to block.

Replies are matched with commands by counting. With pipelining (RFC 2920) several commands stand before the first reply,
but the replies keep their order, and EHLO, AUTH and STARTTLS wait for theirs: so commands and final replies are counted
anew from each of these.
"""

from typing import Any

import polars as pl

SESSIONS = 20_000  # open ones that are carried to the next block, the latest
COMMANDS = 1000  # unanswered ones that are carried for a session
MOST_COMMANDS = 50_000  # of all sessions
AUTH_VERBS = ("AUTH", "X-EXPS")
LONGEST_SUBJECT = 500  # characters
LONGEST_NAME = 320  # characters: local part, @ and domain (RFC 5321 4.5.3.1)

_VERBS = (
    "EHLO HELO LHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY EXPN HELP AUTH STARTTLS ETRN TURN X-EXPS X-ANONYMOUSTLS "
    "XPROXY XPROXYFROM XPROXYTO XCLIENT XSHADOW XSHADOWREQUEST XQDISCARD XHASH XSESSIONPARAMS XRSETPROXYTO"
)
_WAITING = ("EHLO", "HELO", "LHLO", "AUTH", "STARTTLS", "X-EXPS", "X-ANONYMOUSTLS")
_PROXY = ("XPROXY", "XPROXYFROM")
# what stays in force in a session; "" where it is no longer
STATE = {
    "helo": pl.String,
    "tls_version": pl.String,
    "tls_cipher": pl.String,
    "mechanism": pl.String,
    "why": pl.String,  # authentication has failed, and why
    "name": pl.String,  # user of an authentication under way
    "told": pl.String,  # "1": the outcome of this authentication is an event already
    "user": pl.String,  # authenticated user
    "owner": pl.String,  # whose certificate is told: sent, received
    "owned_by": pl.String,  # subject of that certificate
    "thumbprint": pl.String,  # of the client's certificate
    "subject": pl.String,
    "mail_from": pl.String,
    "message_id": pl.String,
    "internal_id": pl.String,
    "client": pl.String,  # behind an Exchange front end that has been believed
    "synced": pl.Boolean,
}
_ASKED = {"verb": pl.String, "asks_from": pl.String, "asks_rcpt": pl.String, "asks_client": pl.String}
_CARRIED: dict[str, Any] = {
    "record_no": pl.Int64, "key": pl.String, "kind": pl.String, "command": pl.Boolean, **_ASKED, **STATE,
}  # fmt: skip
_CARRY = "smtp_sessions"
_MOST_RUNS = 1 << 30  # of a session

# EHLO [192.0.2.25]    MAIL FROM:<a@b.example> SIZE=1234    X-EXPS GSSAPI
_VERB = r"^([A-Za-z][A-Za-z-]*)(?:[\s:]|$)"
_PATH = r"(?i)^(?:MAIL FROM|RCPT TO):\s*(?:<([^>]*)>|([^\s<>]+))"
# XPROXYFROM SID=08D892B7A9441226 IP=192.0.2.7 PORT=40112 DOMAIN=mx.b.example SEQNUM=1 PERMS=1077
_CLIENT = r"\bIP=([0-9A-Fa-f:.]{3,45})(?:\s|$)"
_PORT = r"\bPORT=(\d{1,5})(?:\s|$)"
# TLS protocol SP_PROT_TLS1_2_SERVER negotiation succeeded using bulk encryption algorithm CALG_AES_256 with strength
# 256 bits, MAC hash algorithm CALG_SHA_384 with strength 0 bits and key exchange algorithm CALG_ECDH_EPHEM with ...
_TLS = (
    r"^TLS protocol SP_PROT_(?P<kind>TLS|SSL)(?P<major>\d)(?:_(?P<minor>\d))?\w* negotiation succeeded using bulk "
    r"encryption algorithm (?P<bulk>\w+) with strength \d+ bits, MAC hash algorithm (?P<mac>\w+) with strength \d+ "
    r"bits and key exchange algorithm (?P<exchange>\w+) "
)
_FAILED = r"^Inbound AUTH ?\S* failed because of (.{1,200})"
_USER_NAME = r"^User Name: (.*)$"
# sending message with RecordId 70798 and InternetMessageId <1@a.example>
_SENDING = r"^sending message with RecordId (\d+)(?: and |, ?)InternetMessageId (<[^>]*>)"
_SUBJECT_ISSUER = r"^(.*?[^,\s]) ((?:CN|OU|O|C|E|DC|L|S|ST|SERIALNUMBER|OID\.[\d.]+)=.*)$"
# CN=a.example CN=CA 12AB 0123456789ABCDEF0123456789ABCDEF01234567 2026-01-01T00:00:00.000Z 2027-... a.example;b.example
_CERTIFICATE = (
    r"^\s*(?P<names>\S.*?) (?P<serial>[0-9A-Fa-f]{2,64}) (?P<thumb>[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64}) "
    r"(?P<begins>\d{4}-\S+) (?P<ends>\d{4}-\S+)(?: (?P<hosts>.*))?$"
)
_SENT, _RECEIVED = r"^Sending certificate", r"^(?:Received|Remote) certificate"


def follow(rows: pl.DataFrame, carry: dict[str, Any]) -> pl.DataFrame:
    """Rows with what their session says of them.

    Args:
        rows: in the order of the log: record_no, kind (+ - < > *), is_receive, session, data, context.
        carry: kept between blocks.

    Returns:
        The rows, in order, with `verb`, `path` (MAIL and RCPT), `code` and `final` of replies, `asked`, `asked_rcpt`
        (the command that a reply answers), `cert` (struct), the columns of STATE after the row, and `told_before` and
        `failed_before` as they were before it.
    """
    marked = _marked(_read(rows))
    held = carry.get(_CARRY)
    joined = pl.concat([held, marked], how="diagonal") if held is not None else marked
    # One id may serve again: a session lasts from + to -.
    begun = (pl.col("kind") == "+").cum_sum().over("key") + (pl.col("kind") == "-").cum_sum().shift(1).over("key")
    joined = joined.with_columns(g=pl.concat_str("key", pl.lit("#"), begun.fill_null(0).cast(pl.String)))
    # Windows over numbers take a third of the time of windows over text.
    joined = joined.with_columns(pl.col("g").rank("dense").cast(pl.Int64))
    followed = _forward(_answered(_numbered(joined)))
    carry[_CARRY] = _kept(followed)
    return followed.filter(pl.col("record_no") >= 0)


def _read(rows: pl.DataFrame) -> pl.DataFrame:
    """Verbs, paths and reply codes; texts of information rows stand in data or in context."""
    data, kind = pl.col("data"), pl.col("kind")
    from_client = kind == pl.when("is_receive").then(pl.lit("<")).otherwise(pl.lit(">"))
    spoken = kind.is_in(["<", ">"])
    verb = pl.when(from_client).then(data.str.extract(_VERB)).str.to_uppercase()
    paths = data.str.extract_groups(_PATH)
    side = pl.when("is_receive").then(pl.lit("r")).otherwise(pl.lit("s"))
    unnamed = pl.concat_str(pl.lit("?"), pl.col("record_no").cast(pl.String))
    return rows.with_columns(
        key=pl.coalesce(side + pl.col("session"), unnamed),
        verb=pl.when(verb.is_in(_VERBS.split())).then(verb),
        code=pl.when(spoken & ~from_client).then(data.str.extract(r"^([2-5]\d\d)(?:[ -]|$)").cast(pl.Int64)),
        final=(spoken & ~from_client & data.str.contains(r"^[245]\d\d(?: |$)")).fill_null(value=False),
        text=pl.when(kind == "*").then(pl.coalesce("data", "context")),
    ).with_columns(
        command=pl.col("verb").is_not_null(),
        path=pl.when(pl.col("verb").is_in(["MAIL", "RCPT"])).then(
            pl.coalesce(paths.struct[0], paths.struct[1]).str.slice(0, LONGEST_NAME)
        ),
        argument=data.str.extract(r"^\S+\s+(\S.*)$"),
    )


def _marked(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of STATE where a row changes them, and what a command asks for."""
    verb, text, data = pl.col("verb"), pl.col("text"), pl.col("data")
    begins = verb.is_in(AUTH_VERBS).fill_null(value=False)
    greets = verb.is_in(["EHLO", "HELO", "LHLO"])
    sending = text.str.extract_groups(_SENDING)
    name = text.str.extract(_USER_NAME).str.strip_chars()
    cleared = pl.when(begins).then(pl.lit(""))
    version, cipher = _tls(text)
    return _certified(rows).with_columns(
        helo=pl.when(greets).then(pl.col("argument").fill_null("").str.slice(0, 255)),
        tls_version=version,
        tls_cipher=cipher,
        mechanism=pl.when(begins)
        .then(pl.col("argument").str.extract(r"^([A-Za-z0-9_-]{1,20})").str.to_uppercase().fill_null(""))
        .otherwise(text.str.extract(r"^Inbound AUTH (\S{1,20}) failed").str.to_uppercase()),
        why=pl.coalesce(text.str.extract(_FAILED), cleared),
        name=pl.coalesce(pl.when(name == "NULL").then(pl.lit("")).otherwise(name.str.slice(0, LONGEST_NAME)), cleared),
        told=pl.when(begins).then(pl.lit("0")),
        user=pl.when((pl.col("kind") == "*") & (pl.col("context") == "authenticated")).then(
            data.str.strip_chars().str.slice(0, LONGEST_NAME)
        ),
        mail_from=pl.when(verb == "MAIL").then(pl.col("path")),
        thumbprint=pl.lit(None, dtype=pl.String),
        subject=pl.lit(None, dtype=pl.String),
        message_id=sending.struct[1],
        internal_id=sending.struct[0],
        client=pl.lit(None, dtype=pl.String),
        asks_from=pl.when(verb == "MAIL").then("path"),
        asks_rcpt=pl.when(verb == "RCPT").then("path"),
        asks_client=pl.when(verb.is_in(_PROXY)).then(_proxied(data)),
        synced=pl.when((pl.col("kind") == "+") | verb.is_in(_WAITING)).then(pl.lit(value=True)),
    )


def _tls(text: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Version as TLSv1.2, and bulk, hash and key exchange algorithms as CALG_AES_256/CALG_SHA_384/CALG_ECDH_EPHEM."""
    tls = text.str.extract_groups(_TLS).struct
    minor = pl.when(tls.field("minor") != "0").then("." + tls.field("minor")).otherwise(pl.lit(""))
    version = pl.concat_str(tls.field("kind"), pl.lit("v"), tls.field("major"), minor)
    return version, pl.concat_str(*(tls.field(name) for name in ("bulk", "mac", "exchange")), separator="/")


def _proxied(data: pl.Expr) -> pl.Expr:
    """Address, with its port, that a front end names as its client's."""
    port, address = data.str.extract(_PORT), data.str.extract(_CLIENT)
    bracketed = pl.when(address.str.contains(":", literal=True)).then("[" + address + "]").otherwise(address)
    return pl.when(port.is_not_null()).then(bracketed + ":" + port).otherwise(address)


def _certified(rows: pl.DataFrame) -> pl.DataFrame:
    """cert: the certificate that a row tells in full, or the thumbprint's own row of older versions."""
    about, data = pl.col("context"), pl.col("data")
    info = pl.col("kind") == "*"
    words = pl.coalesce(about, data)
    side = (
        pl.when(info & words.str.contains(_SENT))
        .then(pl.lit("sent"))
        .when(info & words.str.contains(_RECEIVED))
        .then(pl.lit("received"))
    )
    whole = pl.when(side.is_not_null() & about.str.contains("Thumbprint", literal=True)).then(data)
    parts = whole.str.extract_groups(_CERTIFICATE)
    split = parts.struct.field("names").str.extract_groups(_SUBJECT_ISSUER)
    alone = pl.when(info & (about == "Certificate thumbprint")).then(data.str.extract(r"\b([0-9A-Fa-f]{40,64})\b"))
    thumb = pl.coalesce(parts.struct.field("thumb"), whole.str.extract(r"\b([0-9A-Fa-f]{40})\b"), alone)
    subject = pl.when(info & (about == "Certificate subject")).then(data)
    cert = pl.struct(
        thumbprint=thumb.str.to_lowercase(),
        subject=pl.coalesce(split.struct[0], parts.struct.field("names")),
        issuer=split.struct[1],
        serial=parts.struct.field("serial").str.to_lowercase(),
        not_before=parts.struct.field("begins"),
        not_after=parts.struct.field("ends"),
        names=parts.struct.field("hosts"),
    )
    rows = rows.with_columns(cert=cert, owner=side)
    return rows.with_columns(
        owned_by=pl.coalesce(subject, pl.when(pl.col("owner").is_not_null()).then(pl.lit(""))).str.slice(
            0, LONGEST_SUBJECT
        )
    )


def _numbered(joined: pl.DataFrame) -> pl.DataFrame:
    """run: commands since one that waits for its reply; nth command of it; mth reply to a command of it.

    A reply that nothing has asked for (the banner, a timeout, to a word that is no command) is counted out: it is one
    by which more replies than commands have been seen than ever before in the run.
    """
    waits = pl.col("verb").is_in(_WAITING).fill_null(value=False)
    numbered = joined.with_columns(
        pl.col("synced").forward_fill().over("g").fill_null(value=False).alias("in_step"),
        pl.col("final").fill_null(value=False),
        run=pl.col("g") * _MOST_RUNS + waits.cum_sum().over("g"),
    ).with_columns(
        nth=pl.col("command").cum_sum().over("run").cast(pl.Int64),
        replies=pl.col("final").cum_sum().over("run").cast(pl.Int64),
    )
    surplus = (pl.col("replies") - pl.col("nth")).cum_max().over("run").clip(lower_bound=0)
    numbered = numbered.with_columns(surplus=surplus)
    before = pl.col("surplus").shift(1).over("run").fill_null(0)
    asked = pl.col("final") & pl.col("in_step") & (pl.col("surplus") == before)
    numbered = numbered.with_columns(mth=pl.col("replies") - pl.col("surplus"))
    return numbered.with_columns(turn=pl.when(asked).then("mth"))


def _answered(rows: pl.DataFrame) -> pl.DataFrame:
    """asked, asked_from, asked_rcpt of replies: the command in whose turn they come."""
    commands = rows.filter("command").select(
        "g",
        "run",
        pl.col("nth").alias("turn"),
        pl.col("verb").alias("asked"),
        pl.col("asks_rcpt").alias("asked_rcpt"),
        pl.col("asks_from").alias("asked_from"),
        pl.col("asks_client").alias("asked_client"),
    )
    found = rows.join(commands, on=["g", "run", "turn"], how="left", maintain_order="left")
    believed = pl.when(pl.col("code").is_between(200, 299)).then("asked_client")
    return found.with_columns(client=pl.coalesce("client", believed))


def _forward(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of STATE filled forward in each session, and what they were before the row."""
    rows = rows.with_columns(pl.col(name).forward_fill().over("g") for name in ("owner", "owned_by", "why"))
    thumb, subject = (pl.col("cert").struct.field(name) for name in ("thumbprint", "subject"))
    of_client = (pl.col("owner") == "received") & thumb.is_not_null()
    # The subject of older versions stands in a row above the thumbprint's.
    named = pl.coalesce(subject, pl.when((pl.col("owned_by") != "") & thumb.is_not_null()).then("owned_by"))
    rows = rows.with_columns(
        cert_subject=named.str.slice(0, LONGEST_SUBJECT),
        failed_before=pl.col("why").shift(1).over("g").fill_null("") != "",
    ).with_columns(
        thumbprint=pl.coalesce("thumbprint", pl.when(of_client).then(thumb)),
        subject=pl.coalesce("subject", pl.when(of_client).then(pl.col("cert_subject").fill_null(""))),
    )
    # An event of its own: the user who is in, or the user who has just been refused.
    tells = pl.col("text").str.starts_with("User Name:") & pl.col("failed_before")
    tells = (tells | pl.col("user").is_not_null()) & (pl.col("record_no") >= 0)
    told = pl.coalesce(pl.when(tells).then(pl.lit("1")), "told").forward_fill().over("g")
    rows = rows.with_columns(told=told)
    rows = rows.with_columns(told_before=pl.col("told").shift(1).over("g").fill_null("0") == "1")
    filled = [name for name in STATE if name not in ("owner", "owned_by", "why", "told")]
    return rows.with_columns(pl.col(name).forward_fill().over("g") for name in filled)


def _kept(rows: pl.DataFrame) -> pl.DataFrame:
    """What open sessions need in the next block: their state, and the commands that no reply has answered."""
    named = rows.filter(~pl.col("key").str.starts_with("?"))
    last = named.group_by("key", maintain_order=True).last().filter(pl.col("kind") != "-")
    last = last.sort("record_no", maintain_order=True).tail(SESSIONS)
    done = last.select("g", "run", pl.col("mth").alias("done"))
    open_ones = named.join(done, on=["g", "run"], how="inner", maintain_order="left")
    waiting = open_ones.filter(pl.col("command") & (pl.col("nth") > pl.col("done")))
    lost = waiting.group_by("g").len().filter(pl.col("len") > COMMANDS)["g"]
    if waiting.height > MOST_COMMANDS:
        lost = waiting["g"].unique()
    waiting = waiting.filter(~pl.col("g").is_in(lost.implode()))
    state = {name: pl.col(name) for name in STATE} | {"synced": pl.col("in_step") & ~pl.col("g").is_in(lost.implode())}
    return pl.concat([_carried(last, "state", state), _carried(waiting, "waiting", {n: pl.col(n) for n in _ASKED})])


def _carried(rows: pl.DataFrame, kind: str, columns: dict[str, pl.Expr]) -> pl.DataFrame:
    """Rows that stand before those of the next block; of no place in the evidence."""
    fixed = {"record_no": pl.lit(-1), "key": pl.col("key"), "kind": pl.lit(kind), "command": pl.lit(kind == "waiting")}
    values = dict.fromkeys(_CARRIED, pl.lit(None)) | fixed | columns
    return rows.select(values[name].cast(dtype).alias(name) for name, dtype in _CARRIED.items())
