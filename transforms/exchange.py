"""What the CSV logs of Exchange's web services share: EWS (back end) and HttpProxy (front end).

Files begin with `#` lines, of which `#Fields:` names the columns; both can come again in mid-file after a restart, and
some files begin with a bare row of names. Columns differ by version, so the header in force is used where its width is
that of the row, and else a known version of that width: a row proves its own width, a header may be cut or belong to
another file. Times are UTC. Values are rarely quoted; commas in user agents are written as double spaces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from transforms.csvrows import columns
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context, Head, Match

MISFIT = "field count does not fit the header"
BAD_TIME = "time is not readable"
HEADER = "header"
BLANK = "blank line"
PROBE = "health probe"
HEARTBEAT = "subscription heartbeat"

PLACE = tuple(name for name in RECORD_SCHEMA if name != "raw")

_FIELDS = "#Fields:"
_MARK = "\ufeff"
_QUOTED = r'(^|,)"(?:[^"]|"")*"'
_MOST_LAYOUTS = 32  # per block; real files have one or two, hostile ones may name more
_CARRIED = "exchange_header"

# EWS operations (SoapAction) by action; the many that are not listed are "other"
_OPERATIONS = {
    "get_item": "GetItem GetConversationItems",
    "directory_lookup": "GetPersona ResolveNames ExpandDL FindPeople GetUserAvailability GetUserPhoto GetRooms "
    "GetRoomLists GetMailTips",
    "find_item": "FindItem FindConversation",
    "sync_folder": "SyncFolderItems SyncFolderHierarchy SyncConversation",
    "export": "ExportItems",
    "attachment": "GetAttachment",
    "list": "FindFolder GetFolder",
    "search": "SearchMailboxes GetSearchableMailboxes",
    "send": "SendItem",
    "create": "CreateItem CreateFolder CreateManagedFolder CreateAttachment UploadItems",
    "update": "UpdateItem UpdateFolder MarkAllItemsAsRead",
    "delete": "DeleteItem DeleteFolder EmptyFolder DeleteAttachment",
    "move": "MoveItem CopyItem MoveFolder CopyFolder ArchiveItem MarkAsJunk",
    "subscribe": "Subscribe Unsubscribe GetEvents GetStreamingEvents",
    "config": "UpdateInboxRules GetInboxRules AddDelegate GetDelegate UpdateDelegate RemoveDelegate "
    "GetUserConfiguration CreateUserConfiguration UpdateUserConfiguration DeleteUserConfiguration "
    "GetUserOofSettings SetUserOofSettings InstallApp UninstallApp",
}
ACTIONS = {operation: action for action, operations in _OPERATIONS.items() for operation in operations.split()}

_PASSWORD = ("basic", "ntlm", "negotiate", "kerberos", "digest", "fba", "liveidbasic", "orgidbasic")
_TOKEN = ("oauth", "bearer")
_FEDERATED = ("wssecurity", "federated", "federation", "azuread")

_GUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_APP_ID = rf"(?i)app(?:lication)?_?id[=:] ?'?({_GUID})"  # no real row of an application has been seen

# Loopback, link-local, RFC 1918, unique local. Text, because an address can be malformed in real files.
_NOT_PUBLIC = (
    r"^\[?(?:::ffff:)?(?:127\.|10\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\."
    r"|::1(?:\]|%|$)|fe80:|f[cd][0-9a-f]{2}:)"
)
_LOOPBACK = r"^\[?(?:(?:::ffff:)?127\.|::1(?:\]|%|$))"


@dataclass(frozen=True, slots=True)
class Log:
    """One of the logs: the headers of its known versions and the columns that are read."""

    kind: str  # of the line "#Log-type:"
    versions: tuple[tuple[str, ...], ...]
    core: tuple[str, ...]  # a header without these is damaged
    want: tuple[str, ...]  # columns that are read of every row
    rare: Mapping[str, pl.Expr]  # columns that are read only of rows that (by their wanted columns) need them
    time: str = "DateTime"  # column of the time; a bare row of names begins with it
    second: str = "RequestId"  # the column after it
    single_quotes: bool = True  # whether values stand in single quotes where they hold what would break the row

    @property
    def bare(self) -> str:
        """How a row of names begins that stands without `#Fields:`."""
        return f"{self.time},{self.second},"


def sniff(head: Head, log: Log) -> Match | None:
    """Claims a file by its `#Log-type`, its header row, or the width of rows that begin like the log's."""
    for line in head.lines[:200]:
        if line.startswith("#Log-type:"):
            kind = line.partition(":")[2].strip()
            return Match(1.0, f"#Log-type: {kind}") if kind == log.kind else None
        if line.startswith((_FIELDS, log.bare)) and _header(line, log):
            return Match(0.95, f"columns of {log.kind}")
    widths = {len(version) for version in log.versions}
    rows = [line for line in head.lines[:50] if line and not line.startswith("#")]
    fitting = [line for line in rows if line.count(",") + 1 in widths and line[4:5] == "-" and line[10:11] == "T"]
    if rows and len(fitting) * 2 > len(rows):
        return Match(0.6, f"rows as wide as {log.kind}, without a header")
    return None


_SMALL = 5000  # rows


def read(
    records: pl.LazyFrame, ctx: Context, log: Log, ignored: Mapping[str, pl.Expr]
) -> tuple[pl.DataFrame, pl.LazyFrame]:
    """Records -> those that are no events, and the columns of those that are.

    Args:
        records: RECORD_SCHEMA.
        ctx: the header in force is carried in it from block to block.
        log: which columns there are and which are read.
        ignored: reason for which rows are left out, and the condition on their columns; the first that holds counts.

    Returns:
        (rest, rows): together one row per record. `rest` has the record's place, `disposition` and `reason`; `rows` has
        the place, `ts`, and ``c.<name>`` (String, null for empty) for every name in `log.want` and `log.rare`.
    """
    block = _halves(records.select(list(RECORD_SCHEMA)).collect(), lambda half: half.with_columns(**_line_columns(log)))
    headers = _headers(block, ctx, log)
    block = block.with_columns(segment=pl.col("opens").cum_sum())
    layouts, fitted = _fit(block.filter(pl.col("note").is_null()), headers, log)
    single = log.single_quotes and bool(block["raw"].str.contains(",'", literal=True).any())
    parts = [_read(fitted.filter(layout=number), layout, log, single=single) for number, layout in enumerate(layouts)]
    names = [f"c.{name}" for name in (*log.want, *log.rare)]
    rows = pl.concat([pl.DataFrame(schema=_schema(names)), *parts], how="diagonal")
    rows = rows.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names)
    rows = rows.with_columns(ts=_time(log.time))
    broken = pl.when("bad_csv").then(pl.lit(MISFIT)).when(pl.col("ts").is_null()).then(pl.lit(BAD_TIME))
    left_out = pl.coalesce(pl.lit(None), *(pl.when(holds).then(pl.lit(why)) for why, holds in ignored.items()))
    rows = rows.with_columns(broken=broken, left_out=pl.when(broken.is_null()).then(left_out))
    rest = (
        _left(block, IGNORED, "note"),
        _left(fitted.filter(pl.col("layout") < 0).with_columns(misfit=pl.lit(MISFIT)), QUARANTINED, "misfit"),
        _left(rows, QUARANTINED, "broken"),
        _left(rows, IGNORED, "left_out"),
    )
    sound = rows.filter(pl.col("broken").is_null() & pl.col("left_out").is_null())
    return pl.concat(rest), sound.lazy().drop("broken", "left_out", "bad_csv")


def events(rest: pl.DataFrame, rows: pl.LazyFrame, **fields: pl.Expr) -> pl.LazyFrame:
    """Rows of `read` to access_events with these fields, and the rest beside them: one row per record."""
    constant = {"ts_raw": pl.col("c.DateTime"), "ts_basis": pl.lit("utc"), "agg_level": pl.lit("event")}
    told = rows.select(*PLACE, "ts", disposition=pl.lit("access_events"), **constant, **fields)
    return pl.concat([told, rest.lazy()], how="diagonal")


def lower(name: str) -> pl.Expr:
    """Column of the record in lower case."""
    return pl.col(f"c.{name}").str.to_lowercase()


def number(name: str) -> pl.Expr:
    """Non-negative integer; null where it is none."""
    value = pl.col(f"c.{name}").cast(pl.Int64, strict=False)
    return pl.when(value >= 0).then(value)


def action(name: str) -> pl.Expr:
    """Action of an EWS operation; "other" for what is not listed or not named."""
    operation = pl.col(f"c.{name}")
    return operation.replace_strict(list(ACTIONS), list(ACTIONS.values()), default="other", return_dtype=pl.String)


def status(code: pl.Expr, error: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """HTTP status and error code -> (outcome, status text).

    A redirect is unknown: it is how a page that wants a sign-in answers.
    """
    wrong = error.is_not_null() & ~error.is_in(["NoError", "Success"])
    outcome = (
        pl.when(wrong | (code >= 400))
        .then(pl.lit("failure"))
        .when(code.is_between(200, 299))
        .then(pl.lit("success"))
        .otherwise(pl.lit("unknown"))
    )
    text = pl.when(wrong).then(error).when(code >= 300).then(pl.lit("HTTP ") + code.cast(pl.String))
    return outcome, text


def app_id(user: pl.Expr) -> pl.Expr:
    """Application of a request that came with a token: the user, where that is a GUID, else from GenericInfo."""
    named = pl.coalesce(_guid(user), pl.col("c.GenericInfo").str.extract(_APP_ID).str.to_lowercase())
    return pl.when(has_token()).then(named)


def credentials(user: pl.Expr, app: pl.Expr) -> dict[str, pl.Expr]:
    """principal_id, principal_type, app_id, credential_id and credential_type of lower-case user and application."""
    method, is_token = lower("AuthenticationType"), has_token()
    is_password = method.is_in(_PASSWORD) & user.is_not_null()
    kind = (
        pl.when(is_password)
        .then(pl.lit("password"))
        .when(is_token)
        .then(pl.lit("token"))
        .when(method.is_in(_FEDERATED))
        .then(pl.lit("federated"))
        .when(user.is_null())
        .then(pl.lit("none"))
    )
    return {
        "principal_id": pl.coalesce(user, app),
        "principal_type": principal_type(pl.coalesce(user, app)),
        "app_id": app,
        "credential_id": pl.when(is_password).then(pl.lit("pw:") + user),
        "credential_type": kind,
    }


def principal_type(user: pl.Expr) -> pl.Expr:
    """Kind of a lower-case principal; a GUID is an application."""
    is_system = health_mailbox(user) | user.str.starts_with("nt authority\\") | user.str.starts_with("systemmailbox")
    return (
        pl.when(is_system)
        .then(pl.lit("system"))
        .when(user.str.ends_with("$"))
        .then(pl.lit("computer"))
        .when(_guid(user).is_not_null())
        .then(pl.lit("service_principal"))
        .when(user.is_null())
        .then(pl.lit("anonymous"))
        .otherwise(pl.lit("user"))
    )


def _guid(user: pl.Expr) -> pl.Expr:
    return pl.when(user.str.len_bytes() >= 36).then(user).str.extract(rf"^({_GUID})(?:@|$)")


def has_token() -> pl.Expr:
    """The request came with a token (OAuth, Bearer)."""
    method = pl.col("c.AuthenticationType").str.to_lowercase()
    return (method.str.starts_with(_TOKEN[0]) | method.str.starts_with(_TOKEN[1])).fill_null(value=False)


def health_mailbox(user: pl.Expr) -> pl.Expr:
    """Mailboxes of Exchange's own monitoring: healthmailboxNN@domain, domain\\healthmailboxNN (lower case)."""
    return user.str.starts_with("healthmailbox") | user.str.contains("\\healthmailbox", literal=True)


def is_probe(user: pl.Expr, mailbox: pl.Expr, agent: pl.Expr, address: pl.Expr) -> pl.Expr:
    """Exchange's own monitoring, and nothing that a stranger can pretend to be.

    The user agent is the client's word, so it counts from loopback only; a health mailbox counts from addresses that
    are not public, while it reads no mailbox but a health mailbox.
    """
    monitored = health_mailbox(user).fill_null(value=False)
    says_probe = (agent.str.starts_with("AMProbe") | agent.str.contains("_AM_Probe", literal=True)).fill_null(
        value=False
    )
    says_probe &= user.is_null() | monitored
    own_box = mailbox.is_null() | health_mailbox(mailbox) | ~mailbox.str.contains("@", literal=True)
    asked = pl.when(monitored | says_probe).then(address).str.to_lowercase()
    near = monitored & (address.is_null() | asked.str.contains(_NOT_PUBLIC))
    return own_box & (near | (says_probe & asked.str.contains(_LOOPBACK))).fill_null(value=False)


def domain(organisation: pl.Expr, *accounts: pl.Expr) -> pl.Expr:
    """The organisation where it is a domain name, else the domain of the first mail address; null for none."""
    told = _is_domain(organisation).fill_null(value=False)
    addresses = [pl.when(~told & account.str.contains("@", literal=True)).then(account) for account in accounts]
    ending = pl.coalesce(addresses).str.splitn("@", 2).struct[1]
    return pl.when(told).then(organisation).when(_is_domain(ending)).then(ending)


def _is_domain(text: pl.Expr) -> pl.Expr:
    return text.str.contains(".", literal=True) & ~text.str.contains_any(["\\", "/", " ", "@"])


def same_account(user: pl.Expr, other: pl.Expr) -> pl.Expr:
    """Whether two lower-case names mean one account; DOMAIN\\name is compared with name@domain by its name alone."""
    short = user.str.splitn("\\", 2).struct[1]
    return (user == other) | (short == other.str.splitn("@", 2).struct[0]).fill_null(value=False)


def _line_columns(log: Log) -> dict[str, pl.Expr]:
    """note: why a record is no row; opens: it is a header; quotes: it has some; width: number of its fields."""
    raw = pl.col("raw")
    fields = raw.str.starts_with(_FIELDS) | raw.str.starts_with(_MARK + _FIELDS)
    bare = raw.str.starts_with(log.bare) | raw.str.starts_with(_MARK + log.bare)
    comment = raw.str.starts_with("#") | raw.str.starts_with(_MARK + "#") | bare
    quotes = raw.str.contains('"', literal=True)
    plain = pl.when(quotes).then(raw.str.replace_all(_QUOTED, "${1}")).otherwise(raw)
    return {
        "note": pl.when(comment).then(pl.lit(HEADER)).when(raw.str.contains(r"^\s*$")).then(pl.lit(BLANK)),
        "opens": fields | bare,
        "quotes": quotes,
        "width": plain.str.count_matches(",", literal=True) + 1,
    }


def _header(line: str, log: Log) -> tuple[str, ...] | None:
    """Column names of a header line; None where it is damaged."""
    names = tuple(name.strip(" \"'") for name in line.removeprefix(_MARK).removeprefix(_FIELDS).strip().split(","))
    if len(set(names)) < len(names) or not set(log.core) <= set(names):
        return None
    return names


def _headers(block: pl.DataFrame, ctx: Context, log: Log) -> list[tuple[str, ...] | None]:
    """Header in force in each segment of the block: what was carried, then one for each header row."""
    read: dict[str, tuple[str, ...] | None] = {}
    headers: list[tuple[str, ...] | None] = [ctx.carry.get(_CARRIED)]
    for line in block.filter("opens")["raw"].to_list():
        if line not in read:
            read[line] = _header(line, log)
        headers.append(read[line])
    ctx.carry[_CARRIED] = headers[-1]
    return headers


def _fit(
    rows: pl.DataFrame, headers: Sequence[tuple[str, ...] | None], log: Log
) -> tuple[list[tuple[str, ...]], pl.DataFrame]:
    """The layouts in use, and the rows with the number of theirs in `layout` (-1: none fits)."""
    known = {len(version): version for version in log.versions}
    layouts: dict[tuple[str, ...], int] = {}
    pairs = rows.select("segment", "width").unique()
    chosen = []
    for segment, width in pairs.sort("segment", "width").iter_rows():
        header = headers[segment]
        layout = header if header is not None and len(header) == width else known.get(width)
        if layout is not None and (layout in layouts or len(layouts) < _MOST_LAYOUTS):
            chosen.append((segment, width, layouts.setdefault(layout, len(layouts))))
    schema: dict[str, Any] = {"segment": rows.schema["segment"], "width": rows.schema["width"], "layout": pl.Int64}
    table = pl.DataFrame(chosen, schema=schema, orient="row")
    return list(layouts), rows.join(table, on=["segment", "width"], how="left").with_columns(
        pl.col("layout").fill_null(-1)
    )


def _read(part: pl.DataFrame, layout: tuple[str, ...], log: Log, *, single: bool) -> pl.DataFrame:
    """Columns of rows that have one layout. Rows without a double quote, nearly all, are split at the commas."""
    want = [name for name in log.want if name in layout]
    rare = {name: needed for name, needed in log.rare.items() if name in layout}
    plain = _halves(part.filter(~pl.col("quotes")), lambda half: _split(half, layout, want, rare))
    names = [f"c.{name}" for name in [*want, *rare]]
    both = plain.select(*PLACE, *names, "bad_csv")
    if part["quotes"].any():
        careful = columns(part.filter("quotes").lazy(), layout, [*want, *rare]).collect()
        both = pl.concat([both, careful.select(*PLACE, *names, "bad_csv")])
    if single:
        both = both.with_columns(pl.col(name).str.replace(r"(?s)^'(.*)'$", "${1}") for name in names)
    return both


def _split(
    part: pl.LazyFrame, layout: tuple[str, ...], want: Sequence[str], rare: Mapping[str, pl.Expr]
) -> pl.LazyFrame:
    """Fields of rows that hold as many commas as their layout wants; those behind the wanted ones only where needed."""
    near = max(layout.index(name) for name in want) + 1
    split = part.with_columns(pl.col("raw").str.splitn(",", near + 1).alias("near")).with_columns(
        *(pl.col("near").struct[layout.index(name)].alias(f"c.{name}") for name in want),
        pl.col("near").struct[near].alias("far"),
        pl.lit(value=False).alias("bad_csv"),
    )
    for name, needed in rare.items():
        place, text = layout.index(name), pl.col("raw")
        if place >= near:
            place, text = place - near, pl.col("far")
        field = pl.when(needed).then(text).str.splitn(",", place + 2).struct[place]
        split = split.with_columns(field.alias(f"c.{name}"))
    return split.drop("near", "far")


def _halves(frame: pl.DataFrame, step: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    """A step row by row, on two halves at once: splitting text uses one core for each. Small frames do not gain."""
    if frame.height < _SMALL:
        return step(frame.lazy()).collect()
    middle = frame.height // 2
    return pl.concat([step(frame[:middle].lazy()), step(frame[middle:].lazy())], rechunk=False).collect()


def _left(part: pl.DataFrame, disposition: str, why: str) -> pl.DataFrame:
    """Records that are no events: those that have a reason in the column `why`."""
    return part.filter(pl.col(why).is_not_null()).select(*PLACE, pl.lit(disposition).alias("disposition"), reason=why)


def _schema(names: Sequence[str]) -> dict[str, Any]:
    return {**{name: RECORD_SCHEMA[name] for name in PLACE}, **dict.fromkeys(names, pl.String), "bad_csv": pl.Boolean}


def _time(name: str) -> pl.Expr:
    """2023-01-06T16:00:06.410Z, always UTC -> Datetime('us', 'UTC'); null where unreadable."""
    text = pl.col(f"c.{name}").str.strip_suffix("Z")
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).dt.replace_time_zone("UTC")
