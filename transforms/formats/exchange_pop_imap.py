"""Exchange POP3 and IMAP4 protocol logs (Logging\\Pop3, Logging\\Imap4): one row per command.

Specification: https://learn.microsoft.com/exchange/clients/pop3-and-imap4/configure-protocol-logging. Its names of the
fields are older than those that files have: 12 columns, 13 (`puid`) from Exchange 2016 on. Times are UTC. The column
`context` holds `k=v;` whose values may be quoted again inside the quoted field, so that R="-ERR no" is written

    ...Z,00000000000ABC12,2,192.0.2.1:110,198.51.100.7:12345,jan,163,10,34,pass,*****,"R=""-ERR no"";Msg=x",

A client's session is logged twice: by the front end, which knows the client's address and hands the session on after
the login, and by the back end (ports 1995 and 1993, files POP3BE* and IMAP4BE*), which sees the commands but has the
front end's address for the client's. Rows of the back end have no source address, and `be:` before the command in
op_raw. sessionId is a counter of the process; session_id is `server|family|sessionId`, the family being pop3, imap,
pop3be or imapbe.
"""

import re

import polars as pl

from transforms import exchange
from transforms.csvrows import columns
from transforms.distinct import once_each
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context, Format, Head, Match

_FIELDS = "dateTime,sessionId,seqNumber,sIp,cIp,user,duration,rqsize,rpsize,command,parameters,context"
COLUMNS_2013 = tuple(_FIELDS.split(","))
COLUMNS_2016 = (*COLUMNS_2013, "puid")

MISFIT = "field count does not fit the header"
BAD_TIME = "time is not readable"
BAD_ROW = "session, sequence number or command is no such thing"
NO_PROTOCOL = "neither port nor command tells the protocol"

_PLACE = tuple(name for name in RECORD_SCHEMA if name != "raw")
_KNOWN = {len(layout): layout for layout in (COLUMNS_2013, COLUMNS_2016)}
_REPEATED = ("c.sIp", "c.user", "c.command", "c.parameters", "c.context", "back_end")
_WANT = tuple(name for name in COLUMNS_2013 if name != "duration")
_CORE = ("dateTime", "sessionId", "sIp", "cIp", "user", "command", "context")
_BARE = "dateTime,sessionId,"
_MARK = "\ufeff"
_QUOTED = r'(^|,)"(?:[^"]|"")*"'
_MOST_LAYOUTS = 32  # per block; real files have one
_CARRIED, _CARRIED_END = "pop_imap_header", "pop_imap_back_end"
_BACK_END = r"(?i)back ?-?end|(?:pop3|imap4)be"
_ROW = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]{8,20}Z,[0-9A-Fa-f]{8,32},\d{1,9},[^,]{0,60},[^,]{0,60},")

_PORTS = {"110": "pop3", "995": "pop3", "1995": "pop3", "143": "imap", "993": "imap", "1993": "imap"}
_BACK_PORTS = ("1995", "1993")
_TLS_PORTS = ("995", "993")
_POP3 = "user pass apop auth retr top dele uidl stat capa stls rset last quit utf8"
_IMAP = (
    "login authenticate fetch search select examine status lsub xlist append create copy move store expunge delete "
    "rename subscribe unsubscribe idle capability namespace starttls logout id check close unselect enable compress "
    "getquota getquotaroot setquota getacl myrights listrights"
)
_BOTH = "list noop opensession closesession"
_OPERATIONS = {
    "auth": "user pass apop auth login authenticate",
    "list": "list uidl stat select examine status lsub xlist",
    "get_item": "fetch",
    "search": "search",
    "create": "append create",
    "move": "copy move rename",
    "update": "store",
    "delete": "expunge delete",
    "subscribe": "subscribe unsubscribe",
    "connect": "opensession",
    "retr": "retr",
    "top": "top",
    "dele": "dele",
}
_ACTIONS = {command: action for action, commands in _OPERATIONS.items() for command in commands.split()}
_FAMILIES = dict.fromkeys(_POP3.split(), "pop3") | dict.fromkeys(_IMAP.split(), "imap")
_COMMANDS = (*_FAMILIES, *_BOTH.split())
_PASSWORDS = ("PLAIN", "LOGIN", "NTLM", "CRAM-MD5", "DIGEST-MD5", "APOP", "USER")
_TOKENS = ("XOAUTH2", "OAUTHBEARER")
_METHODS = (*_PASSWORDS, *_TOKENS, "GSSAPI", "EXTERNAL", "NEGOTIATE", "KERBEROS_V4")
_SPOKEN = {"login": "LOGIN", "user": "USER", "pass": "USER", "apop": "APOP"}


def sniff(head: Head) -> Match | None:
    """Claim a file by its `#Log-type` or `#Fields` line, or by rows with session, number and two endpoints.

    The variant is the protocol, pop3 or imap, by which rows are read that do not tell it themselves.
    """
    lines = [line.removeprefix(_MARK) for line in head.lines[:300] if line.strip()]
    rows = [line for line in lines if not line.startswith(("#", _BARE))]
    fitting = [line for line in rows if _ROW.match(line[:300])]
    told = [line for line in lines if line.startswith("#Log-type:") and re.search(r"(?i)\b(?:pop3|imap4)", line[:200])]
    if any(line.startswith(("#Fields:", _BARE)) and _header(line) for line in lines):
        return Match(0.95, "columns of the POP3 and IMAP4 protocol logs", variant=_variant(told, fitting))
    if told:
        return Match(0.9, "#Log-type of a POP3 or IMAP4 protocol log", variant=_variant(told, fitting))
    if rows and len(fitting) * 2 > len(rows):
        return Match(0.8, "rows of the POP3 and IMAP4 protocol logs, without a header", variant=_variant(told, fitting))
    return None


def _variant(told: list[str], rows: list[str]) -> str:
    if told:
        return "pop3" if "pop3" in told[0].lower() else "imap"
    ports = [line.split(",", 4)[3].rpartition(":")[2] for line in rows]
    votes = [_PORTS[port] for port in ports if port in _PORTS]
    commands = [(line.split(",", 10)[9:10] or [""])[0].lower() for line in rows]
    votes = votes or [_FAMILIES[command] for command in commands if command in _FAMILIES]
    return max(sorted(set(votes)), key=votes.count) if votes else ""


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: access_events, or ignored (header, blank line, Exchange's own health probe).

    Args:
        records: RECORD_SCHEMA.
        ctx: `variant` is the protocol of the file; the header in force is carried in it from block to block.
    """
    block, parts = _split(records.select(list(RECORD_SCHEMA)).collect(), ctx)
    names = [f"c.{name}" for name in _WANT]
    schema = {name: RECORD_SCHEMA[name] for name in _PLACE} | {"back_end": pl.Boolean(), "bad_csv": pl.Boolean()}
    rows = pl.concat([pl.DataFrame(schema=schema | dict.fromkeys(names, pl.String())), *parts], how="diagonal")
    rows = rows.with_columns(pl.when(pl.col(name) != "").then(name).alias(name) for name in names)
    told_of = {**_access(), **_result()}
    rows = once_each(rows, _REPEATED, lambda few: _endpoints(few, ctx).with_columns(**told_of))
    sized = rows.lazy().with_columns(_time()).with_columns(why=_why()).with_columns(disposition=_disposition())
    event = pl.col("disposition") == "access_events"
    told = sized.filter(event).select(
        *_PLACE, "disposition", "ts", **_each(), **{name: pl.col(name) for name in told_of}
    )
    rest = sized.filter(~event).select(*_PLACE, "disposition", reason="why")
    other = block.lazy().filter(pl.col("note").is_not_null())
    other = other.select(*_PLACE, pl.lit(IGNORED).alias("disposition"), reason="note")
    misfit = block.lazy().filter(pl.col("note").is_null() & (pl.col("layout") < 0))
    misfit = misfit.select(*_PLACE, pl.lit(QUARANTINED).alias("disposition"), reason=pl.lit(MISFIT))
    return pl.concat([told, rest, other, misfit], how="diagonal")


def _split(block: pl.DataFrame, ctx: Context) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """The block's lines with `note` (why a line is no row) and `layout` (-1: none), and the fields of its rows."""
    raw = pl.col("raw")
    comment = raw.str.starts_with("#") | raw.str.starts_with(_BARE)
    plain = pl.when(raw.str.contains('"', literal=True)).then(raw.str.replace_all(_QUOTED, "${1}")).otherwise(raw)
    opens = raw.str.starts_with("#Fields:") | raw.str.starts_with(_BARE)
    kind = pl.when(raw.str.starts_with("#Log-type:")).then(raw.str.contains(_BACK_END))
    block = block.with_columns(raw.str.strip_prefix(_MARK)).with_columns(
        note=pl.when(comment).then(pl.lit("header")).when(raw.str.contains(r"^\s*$")).then(pl.lit("blank line")),
        segment=opens.cum_sum(),
        width=plain.str.count_matches(",", literal=True) + 1,
        back_end=kind.forward_fill().fill_null(ctx.carry.get(_CARRIED_END, False)),
    )
    if block.height:
        ctx.carry[_CARRIED_END] = block["back_end"][-1]
    layouts, block = _layouts(block, [_header(line) for line in block.filter(opens)["raw"].to_list()], ctx)
    rows = block.lazy().filter(pl.col("note").is_null())
    kept = [*_PLACE, "back_end", *(f"c.{name}" for name in _WANT), "bad_csv"]
    parts = [
        columns(rows.filter(pl.col("layout") == number), layout, _WANT).select(kept).collect()
        for number, layout in enumerate(layouts)
    ]
    return block, parts


def _layouts(
    block: pl.DataFrame, headers: list[tuple[str, ...] | None], ctx: Context
) -> tuple[list[tuple[str, ...]], pl.DataFrame]:
    """Columns of each row: those of the header in force where its width is the row's, else of a known version."""
    headers = [ctx.carry.get(_CARRIED), *headers]
    ctx.carry[_CARRIED] = headers[-1]
    layouts: dict[tuple[str, ...], int] = {}
    chosen = []
    pairs = block.filter(pl.col("note").is_null()).select("segment", "width").unique().sort("segment", "width")
    for segment, width in pairs.iter_rows():
        header = headers[segment]
        layout = header if header is not None and len(header) == width else _KNOWN.get(width)
        if layout is not None and (layout in layouts or len(layouts) < _MOST_LAYOUTS):
            chosen.append((segment, width, layouts.setdefault(layout, len(layouts))))
    schema = {"segment": block.schema["segment"], "width": block.schema["width"], "layout": pl.Int64()}
    table = pl.DataFrame(chosen, schema=schema, orient="row")
    joined = block.join(table, on=["segment", "width"], how="left", maintain_order="left")
    return list(layouts), joined.with_columns(pl.col("layout").fill_null(-1))


def _header(line: str) -> tuple[str, ...] | None:
    """Column names of a header line; None where it is damaged or another log's."""
    names = tuple(name.strip(" \"'") for name in line.removeprefix("#Fields:").strip().split(","))
    return names if len(set(names)) == len(names) and set(_CORE) <= set(names) else None


def _endpoints(rows: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """command, server (without port), protocol, end and user of each row."""
    port = pl.col("c.sIp").str.extract(r":(\d{1,5})$")
    command = pl.col("c.command").str.strip_chars().str.to_lowercase()
    base = command.str.replace(r"^uid[+ ]", "")
    family = base.replace_strict(_FAMILIES, default=None, return_dtype=pl.String)
    by_port = port.replace_strict(_PORTS, default=None, return_dtype=pl.String)
    typed = pl.when(base.is_in(["login", "user"])).then(pl.col("c.parameters")).str.strip_chars()
    typed = typed.str.strip_suffix("*****").str.strip_chars(' "').str.to_lowercase()
    user = pl.col("c.user").str.strip_chars().str.to_lowercase()
    return rows.with_columns(
        command=command,
        base=base,
        port=port,
        protocol=pl.coalesce(by_port, family, pl.lit(ctx.variant or None, pl.String)),
        of_back=port.is_in(_BACK_PORTS).fill_null(value=False) | (pl.col("back_end") & by_port.is_null()),
        server=pl.col("c.sIp").str.replace(r":\d{1,5}$", "").str.strip_chars("[]"),
        typed=pl.when(typed != "").then(typed),
        user=pl.when(user != "").then(user),
    ).with_columns(account=pl.coalesce("user", "typed"))


def _time() -> pl.Expr:
    stamp = pl.col("c.dateTime").str.strip_suffix("Z")
    utc = stamp.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).dt.replace_time_zone("UTC")
    return utc.alias("ts")


def _why() -> pl.Expr:
    """Why a row is no event."""
    sound = pl.col("c.sessionId").str.contains(r"^[0-9A-Fa-f]{1,32}$") & pl.col("c.seqNumber").str.contains(r"^\d+$")
    sound = (sound & pl.col("command").is_not_null()).fill_null(value=False)
    nobody = pl.lit(None, pl.String)
    probe = exchange.is_probe(pl.col("account"), nobody, nobody, pl.col("c.cIp"))
    return (
        pl.when("bad_csv").then(pl.lit(MISFIT))
        .when(pl.col("ts").is_null()).then(pl.lit(BAD_TIME))
        .when(~sound).then(pl.lit(BAD_ROW))
        .when(pl.col("protocol").is_null()).then(pl.lit(NO_PROTOCOL))
        .when(probe).then(pl.lit(exchange.PROBE))
    )  # fmt: skip


def _disposition() -> pl.Expr:
    why = pl.col("why")
    return (
        pl.when(why == exchange.PROBE).then(pl.lit(IGNORED))
        .when(why.is_not_null()).then(pl.lit(QUARANTINED))
        .otherwise(pl.lit("access_events"))
    )  # fmt: skip


def _each() -> dict[str, pl.Expr]:
    """What differs from row to row."""
    back, total = pl.col("of_back"), pl.col("base") != "closesession"  # which repeats what the commands have counted
    family = pl.concat_str("protocol", pl.when(back).then(pl.lit("be")).otherwise(pl.lit("")))
    return {
        "ts_raw": pl.col("c.dateTime"),
        "session_id": pl.concat_str("server", family, "c.sessionId", separator="|"),
        "src_ip_raw": pl.when(~back).then("c.cIp"),
        "bytes_in": pl.when(total).then(exchange.number("rqsize")),
        "bytes_out": pl.when(total).then(exchange.number("rpsize")),
        "bytes_known": total & exchange.number("rpsize").is_not_null(),
    }


def _access() -> dict[str, pl.Expr]:
    who, base, back = pl.col("account"), pl.col("base"), pl.col("of_back")
    named = pl.col("c.parameters").str.strip_chars().str.extract(r"^([A-Za-z0-9_-]{1,20})(?:\s|$)").str.to_uppercase()
    asked = pl.when(base.is_in(["auth", "authenticate"]) & named.is_in(_METHODS)).then(named)
    method = pl.coalesce(asked, base.replace_strict(_SPOKEN, default=None, return_dtype=pl.String))
    password = who.is_not_null() & (method.is_null() | method.is_in(_PASSWORDS))
    # What a client sends that is no command may be its password.
    spoken = pl.when(base.is_in(_COMMANDS)).then("command").otherwise(pl.lit("invalid"))
    address = pl.coalesce("user", "typed").str.extract(r"@([^@\s\\/]+\.[^@\s\\/]+)$")
    return {
        "source": pl.lit("exchange_pop_imap"),
        "ts_basis": pl.lit("utc"),
        "agg_level": pl.lit("event"),
        "protocol": pl.col("protocol"),
        "action": base.replace_strict(_ACTIONS, default="other", return_dtype=pl.String),
        "op_raw": pl.concat_str(pl.when(back).then(pl.lit("be:")).otherwise(pl.lit("")), spoken),
        "principal_id": who,
        "principal_type": pl.when(who.is_not_null()).then(exchange.principal_type(who)),
        "mailbox_id": who,
        "credential_id": pl.when(password).then(pl.lit("pw:") + who),
        "credential_type": pl.when(method.is_in(_TOKENS)).then(pl.lit("token"))
        .when(password).then(pl.lit("password")),
        "auth_method": method,
        "tls_version": pl.when(~back & pl.col("port").is_in(_TLS_PORTS)).then(pl.lit("TLS")),
        "tenant_domain": pl.coalesce(address, pl.col("typed").str.extract(r"@([^@\s\\/]+\.[^@\s\\/]+)$")),
    }  # fmt: skip


def _result() -> dict[str, pl.Expr]:
    """outcome, reason, sizes and counts; R is the server's own word, Msg repeats what the client sent."""
    context, base = pl.col("c.context").str, pl.col("base")
    parts = context.extract_groups(r'^R=(?:"([^"]*)|([^";]*))').struct
    answer = pl.coalesce(parts[0], parts[1])
    good = answer.str.to_lowercase() == "ok"
    session = base.is_in(["opensession", "closesession"]) & answer.is_null()
    error = pl.col("c.context").str.extract(r"(?:^|;)ErrMsg=([^;\"]{1,200})$")
    text = pl.when(answer != "").then(answer.str.replace(r"^(?:-ERR |\S+ (?:NO|BAD) )", ""))
    failed = answer.is_not_null() & ~good | (answer.is_null() & error.is_not_null())
    done = (good & base.is_in(["retr", "top", "dele"])).fill_null(value=False)
    rows = pl.col("c.context").str.replace_all(r'"[^"]*"', "").str.extract(r"(?:^|;)Rows=(\d{1,15})(?:;|$)")
    folder = pl.col("c.parameters").str.strip_chars(' "')
    return {
        "outcome": pl.when(failed).then(pl.lit("failure"))
        .when(base == "user").then(pl.lit("unknown"))  # the name is taken, whatever it is
        .when(good | session).then(pl.lit("success")).otherwise(pl.lit("unknown")),
        "reason": pl.when(failed).then(pl.coalesce(error, text)),
        "item_count": pl.when(done).then(1).otherwise(rows.cast(pl.Int64, strict=False)),
        "folders": pl.when(base.is_in(["select", "examine"]) & good & (folder != "")).then(pl.concat_list(folder)),
    }  # fmt: skip


FORMAT = Format(
    name="exchange_pop_imap",
    title="Exchange POP3 and IMAP4 protocol logs",
    spec="https://learn.microsoft.com/exchange/clients/pop3-and-imap4/configure-protocol-logging",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "front end and back end both log the login: count one; rows of the back end have be: in op_raw, no address",
        "sessionId is a counter that begins anew with the service: session_id repeats over weeks",
        "user is the account's short name, cut at 20 characters; the name that the client typed tells the tenant only",
        "the answer to USER is no login: its outcome is unknown",
        "which parts of a message a FETCH asks for is not told apart: reading flags counts as get_item",
        "commands after the login do not name the credential: they are put down to the account's password",
        "sizes of CloseSession repeat those of the session's commands and are left out",
        "no real RETR, TOP or DELE row has been seen",
    ),
)
