"""Windows domain controllers: LDAP searches (1644) and unprotected binds (2889), and network sign-ins to the directory.

Specification: https://learn.microsoft.com/troubleshoot/windows-server/active-directory/
event1644reader-analyze-ldap-query-performance (1644: values by position), the LDAP signing guidance for 2889, and the
security audit events 4624, 4625 and 4776. Which exports are read: see `transforms/windows_events.py`.

1644 is written for searches that are expensive, inefficient or slow only, unless the thresholds were lowered; 2889 for
binds without signing or TLS, whatever their outcome. Of 4624 and 4625 network logons count (types 3 and 8).
"""

import re

import polars as pl

from transforms import windows_events
from transforms.ldap_rows import domain_of, filter_class
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match
from transforms.tabular import whole_number

SEARCH, BIND, LOGON, LOGON_FAILED, NTLM = "1644", "2889", "4624", "4625", "4776"
_IDS = re.compile(
    r'"(?:event_id|code|EventID|Id)"\s*:\s*(?:\{[^{}]{0,100}(?:\{[^{}]{0,200}\})?[^{}]{0,100}"#text"\s*:\s*)?"?'
    r"(1644|2889|4624|4625|4776)\b"
)
_MINE = (SEARCH, BIND, LOGON, LOGON_FAILED, NTLM)
# Values by position: what PowerShell's Properties hold for the security events.
_PLACES = {
    LOGON: {
        "TargetUserName": 5, "TargetDomainName": 6, "TargetLogonId": 7, "LogonType": 8, "LogonProcessName": 9,
        "AuthenticationPackageName": 10, "IpAddress": 18, "IpPort": 19,
    },
    LOGON_FAILED: {
        "TargetUserName": 5, "TargetDomainName": 6, "Status": 7, "SubStatus": 9, "LogonType": 10,
        "LogonProcessName": 11, "AuthenticationPackageName": 12, "IpAddress": 19, "IpPort": 20,
    },
    NTLM: {"PackageName": 0, "TargetUserName": 1, "Workstation": 2, "Status": 3},
}  # fmt: skip
# How the English message names them; the account stands twice, the second time behind these words.
_BEHIND = r"(?s)(?:New Logon|Account For Which Logon Failed):.*?"
_TOLD = {
    "TargetUserName": rf"{_BEHIND}Account Name:[ \t]*([^\r\n]*)",
    "TargetDomainName": rf"{_BEHIND}Account Domain:[ \t]*([^\r\n]*)",
    "TargetLogonId": rf"{_BEHIND}Logon ID:[ \t]*([^\r\n]*)",
    "IpAddress": r"Source Network Address:[ \t]*([^\r\n]*)",
    "IpPort": r"Source Port:[ \t]*([^\r\n]*)",
    "LogonType": r"Logon Type:[ \t]*(\d+)",
    "LogonProcessName": r"Logon Process:[ \t]*([^\r\n]*)",
    "AuthenticationPackageName": r"Authentication Package:[ \t]*([^\r\n]*)",
    "Status": r"(?:Status|Error Code):[ \t]*(0x[0-9A-Fa-f]+)",
    "SubStatus": r"Sub Status:[ \t]*(0x[0-9A-Fa-f]+)",
}
_NTLM_USER = r"Logon Account:[ \t]*([^\r\n]*)"
_SEARCH_PLACES = {"Starting node": 0, "Filter": 1, "Returned entries": 3, "Client": 4, "User": 16}
_BIND_PLACES = {"Client IP address": 0, "Identity the client attempted to authenticate as": 1, "Binding Type": 2}
_STATUS = {
    "0xc0000064": "no such user", "0xc000006a": "wrong password", "0xc000006d": "bad user name or password",
    "0xc000006e": "account restriction", "0xc000006f": "outside the allowed hours",
    "0xc0000070": "workstation not allowed",
    "0xc0000071": "password expired", "0xc0000072": "account disabled", "0xc0000133": "clocks differ",
    "0xc000015b": "logon type not granted", "0xc0000193": "account expired", "0xc0000224": "password must change",
    "0xc0000234": "account locked",
}  # fmt: skip
_PASSWORD_PACKAGES = ("NTLM", "MICROSOFT_AUTHENTICATION_PACKAGE_V1_0")


def sniff(head: Head) -> Match | None:
    """Claim exports of Windows events that hold one of ours; CSV by its header."""
    return windows_events.sniff(head, _IDS)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: access_events, ignored or quarantined. `ctx.variant` is the shape that sniff found."""
    found = windows_events.common(records, ctx)
    event_id = pl.col("event_id")
    found = found.with_columns(**_named()).with_columns(**_placed())
    logon = event_id.is_in([LOGON, LOGON_FAILED])
    reason = (
        pl.when(pl.col("trouble") == "header").then(pl.lit("header"))
        .when(event_id.is_not_null() & ~event_id.is_in(_MINE)).then(pl.lit("windows_directory: event of another kind"))
        .when(logon & ~pl.col("LogonType").is_in(["3", "8"])).then(pl.lit("windows_directory: no network logon"))
    )  # fmt: skip
    refusal = (
        pl.when(pl.col("trouble").is_not_null()).then(pl.lit("windows_directory: ") + pl.col("trouble"))
        .when(event_id.is_null()).then(pl.lit("windows_directory: no event id"))
        .when(pl.col("ts").is_null()).then(pl.lit("windows_directory: time not readable"))
        .when((event_id == SEARCH) & pl.col("node").is_null()).then(pl.lit("windows_directory: no search in the event"))
        .when((event_id == BIND) & pl.col("client").is_null()).then(pl.lit("windows_directory: no client in the event"))
        .when(event_id.is_in([LOGON, LOGON_FAILED, NTLM]) & pl.col("TargetUserName").is_null())
        .then(pl.lit("windows_directory: no account in the event"))
    )  # fmt: skip
    found = found.with_columns(why=reason).with_columns(no=pl.when(pl.col("why").is_null()).then(refusal))
    event = pl.col("why").is_null() & pl.col("no").is_null()
    found = found.with_columns(event=event).with_columns(**_who())
    disposition = (
        pl.when("event").then(pl.lit("access_events"))
        .when(pl.col("no").is_not_null()).then(pl.lit(QUARANTINED)).otherwise(pl.lit(IGNORED))
    )  # fmt: skip
    return found.lazy().select(
        "record_no", "byte_offset", "byte_length", disposition.alias("disposition"),
        pl.when("event").then(_reason()).otherwise(pl.coalesce("why", "no")).alias("reason"),
        *(pl.when("event").then(value).alias(name) for name, value in _columns().items()),
    )  # fmt: skip


def _told(label: str) -> pl.Expr:
    """What stands on the line below a label of the English message of 1644 and 2889."""
    return pl.col("message").str.extract(rf"(?m)^[ \t]*{label}:[ \t]*\r?\n[ \t]*([^\r\n]*?)[ \t]*\r?$")


def _filled(text: pl.Expr) -> pl.Expr:
    bare = text.str.strip_chars()
    return pl.when(~bare.is_in(["", "-"])).then(bare)


def _named() -> dict[str, pl.Expr]:
    """The security events' values: by name, else by position, else from the message."""
    found = {}
    for name in windows_events.NAMED:
        ways = [_filled(pl.col(name))]
        for number, places in _PLACES.items():
            if name in places:
                value = pl.col("values").list.get(places[name], null_on_oob=True)
                ways.append(pl.when(pl.col("event_id") == number).then(_filled(value)))
        if name in _TOLD:
            ways.append(_filled(pl.col("message").str.extract(_TOLD[name])))
        if name == "TargetUserName":
            ways.append(_filled(pl.col("message").str.extract(_NTLM_USER)))
        found[name] = pl.coalesce(ways)
    return found


def _placed() -> dict[str, pl.Expr]:
    """The values of 1644 and 2889: by position, else from the message."""

    def value(number: str, label: str, place: int) -> pl.Expr:
        own = pl.when(pl.col("event_id") == number)
        return pl.coalesce(own.then(pl.col("values").list.get(place, null_on_oob=True)), own.then(_told(label)))

    search = {label: value(SEARCH, label, place) for label, place in _SEARCH_PLACES.items()}
    bind = [value(BIND, label, place) for label, place in _BIND_PLACES.items()]
    return {
        "node": search["Starting node"], "filter": search["Filter"], "returned": search["Returned entries"],
        "client": pl.coalesce(_filled(search["Client"]), _filled(bind[0])),
        "identity": pl.coalesce(_filled(search["User"]), _filled(bind[1])), "binding": _filled(bind[2]),
    }  # fmt: skip


def _who() -> dict[str, pl.Expr]:
    user, domain = pl.col("TargetUserName"), pl.col("TargetDomainName")
    account = pl.when(domain.is_null() | user.str.contains(r"[@\\]")).then(user).otherwise(domain + "\\" + user)
    return {"who": pl.coalesce("identity", account).str.to_lowercase()}


def _columns() -> dict[str, pl.Expr]:
    event_id, who = pl.col("event_id"), pl.col("who")
    anonymous = who.str.contains(r"(?:^|\\)anonymous logon$").fill_null(value=False)
    package = pl.col("AuthenticationPackageName").str.to_uppercase()
    simple = (event_id == BIND) & (pl.col("binding") == "1")
    password = (
        who.is_not_null()
        & ~anonymous
        & (
            simple.fill_null(value=False)
            | package.is_in(_PASSWORD_PACKAGES).fill_null(value=False)
            | (event_id == NTLM)
        )
    )
    bracketed = r"([()])[ \t]+"
    text = pl.col("filter").str.strip_chars().str.replace_all(bracketed, "$1").str.replace_all(r"[ \t]+([()])", "$1")
    port = pl.when(pl.col("IpPort").str.contains(r"^[1-9]\d{0,4}$") & ~pl.col("IpAddress").str.contains(":")).then(
        "IpPort"
    )
    address = pl.col("IpAddress") + pl.coalesce(pl.lit(":") + port, pl.lit(""))
    when = pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S")
    ldap = event_id.is_in([SEARCH, BIND])
    number = pl.col("binding").replace({"0": "SASL unsigned", "1": "SIMPLE"})
    return {
        "source": pl.lit("windows_directory"),
        "source_id": pl.concat_str("host", "channel", "record_id", "event_id", when, separator="|"),
        "ts": pl.col("ts"), "ts_raw": pl.col("ts_raw"), "ts_basis": pl.col("ts_basis"), "host": pl.col("host"),
        "protocol": pl.when(ldap).then(pl.lit("ldap")).otherwise(pl.lit("directory")),
        "action": event_id.replace_strict(
            {SEARCH: "search", BIND: "bind", LOGON: "signin", LOGON_FAILED: "signin", NTLM: "auth"}, default=None,
            return_dtype=pl.String,
        ),
        "op_raw": event_id,
        "outcome": _outcome(),
        "principal_id": who,
        "principal_type": pl.when(anonymous).then(pl.lit("anonymous")).when(who.str.ends_with("$"))
        .then(pl.lit("computer")).when(who.is_not_null()).then(pl.lit("user")),
        "credential_id": pl.when(password).then(pl.lit("pw:") + who),
        "credential_type": pl.when(password).then(pl.lit("password")),
        "auth_method": pl.coalesce(number, "AuthenticationPackageName", "PackageName"),
        "session_id": pl.col("TargetLogonId"),
        "src_ip_raw": pl.coalesce("client", address),
        "tenant_domain": pl.coalesce(domain_of(pl.col("node")), who.str.extract(r"^[^@\s]+@([^@\s]+)$")),
        "ldap_base": pl.col("node").str.strip_chars(),
        "ldap_filter_class": filter_class(text),
        "entries_returned": whole_number(pl.col("returned")),
        "op_count": pl.lit(1, pl.Int64), "bytes_known": pl.lit(value=False), "agg_level": pl.lit("event"),
    }  # fmt: skip


def _outcome() -> pl.Expr:
    event_id = pl.col("event_id")
    zero = pl.col("Status").str.contains(r"^0x0+$")
    return (
        pl.when(event_id.is_in([SEARCH, LOGON])).then(pl.lit("success"))
        .when(event_id == LOGON_FAILED).then(pl.lit("failure"))
        .when((event_id == NTLM) & zero).then(pl.lit("success"))
        .when((event_id == NTLM) & ~zero).then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )  # fmt: skip


def _reason() -> pl.Expr:
    codes = [pl.col(c).str.to_lowercase() for c in ("SubStatus", "Status")]
    told = [pl.when(~c.str.contains("^0x0+$")).then(c) for c in codes]
    code = pl.coalesce(told)
    meaning = code.replace_strict(_STATUS, default=None, return_dtype=pl.String)
    failed = pl.concat_str(code, meaning, separator=" ", ignore_nulls=True)
    unsigned = pl.when(pl.col("event_id") == BIND).then(pl.lit("bind without signing or TLS"))
    return pl.coalesce(unsigned, pl.when(pl.col("event_id").is_in([LOGON_FAILED, NTLM]) & (failed != "")).then(failed))


FORMAT = Format(
    name="windows_directory",
    title="Windows domain controller: LDAP searches, binds, sign-ins",
    spec="https://learn.microsoft.com/troubleshoot/windows-server/active-directory/"
    "event1644reader-analyze-ldap-query-performance",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "1644 is a sample: searches below the thresholds of the domain controller leave no event",
        "2889 tells a bind, not its outcome, and only binds without signing or TLS",
        "4776 names a workstation, not an address",
        "messages without values are read in English only; local times of Export-Csv are taken as the zone given says",
        "CSV of the Event Viewer, and of Export-Csv with its #TYPE line, is not read: the header is of another width",
    ),
)
