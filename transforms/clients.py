"""Clients: what a user agent says in short, and a fingerprint of the traits that stay when an address changes.

A user agent is free text written by the client. It is cut, cleaned and reduced to product and major version over
distinct values. Browsers are named by ua-parser's rules (linear regular expressions); what says its name in front, as
mail clients and programs do, is called by that name, and the client strings of the mailbox audit are unwrapped.
"""

from collections.abc import Sequence
from hashlib import blake2b

import polars as pl

from transforms.addresses import encode

LONGEST_AGENT = 512  # characters read
LONGEST_FAMILY = 64  # characters kept
TRAITS = ("helo", "auth_method", "tls_version", "ews_version")
FINGERPRINT_BYTES = 8

_UNPRINTABLE = r"[\pC\s]+"

# Client=WebServices;EWSEditor (ExchangeServicesClient/0.0.0.0);
# Client=REST;Client=RESTSystem;;
_WRAPPER = r"^(?:Client=[^;]*;)+"
_WRAPPER_NAME = r"^Client=([^;]+)"
# in the mailbox audit: Client=ActiveSync;UserAgent=Apple-iPhone9C1/1602.92;Action=Sync
_WRAPPED = r"(?:^|;)UserAgent=([^;]+)"

# Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.4266; Pro)
_OUTLOOK = r"\bMicrosoft Outlook (\d{1,4})\b"
_BROWSER = r"^(?:Mozilla|Opera)/"
# macOS/13.4 (22F66); ExchangeWebServices/10.0.1 (262); Mail/16.0 (3731): the program comes last
_MAC = r"^(?:Mac OS X|macOS)/.*; ?(?P<product>[A-Za-z][\w .-]{0,40})/(?P<major>\d{1,6})[^;]*$"
# Mozilla/5.0 (compatible; Name/1.2; ...)
_COMPATIBLE = r"^Mozilla/[\d.]+ \(compatible; (?P<product>[A-Za-z][\w .-]{0,40})/(?P<major>\d{1,6})"
# Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.2673: no browser, so what comes last
_BEHIND = r"^Mozilla/[\d.]+ \([^()]*\) (?:\S+ )*(?P<product>[A-Za-z][\w.-]{0,40})/v?(?P<major>\d{1,6})[^ /]*$"
# ASProxy/CrossSite/Directory/EXCH/15.00.1104.000: product with slashes, then version
_PRODUCT = r"^(?P<product>[^();,=\d][^();,=]*?)/v?(?P<major>\d{1,6})(?:[.;, ()]|$)"
# EWSEditor (ExchangeServicesClient/0.0.0.0): a name of its own, with the library in brackets
_NAME = r"^([^();,]+)"
_LIBRARY = r"\((ExchangeServicesClient/\d{1,4})"


def ua_family(agent: pl.Expr) -> pl.Expr:
    """User agent or client string -> "Product/major", or the bare name where no version is given; null for none.

    `Microsoft Office/16.0 (...; Microsoft Outlook 16.0.5; Pro)` gives `Outlook/16`; `EWSEditor
    (ExchangeServicesClient/0.0.0.0)` gives `EWSEditor (ExchangeServicesClient/0)`; the wrapper `Client=WebServices;`
    of the mailbox audit is taken off, so that both logs name a client alike.
    """
    return agent.map_batches(_families, return_dtype=pl.String)


def client_fp(protocol: pl.Expr, traits: Sequence[pl.Expr]) -> pl.Expr:
    """16 hex digits over protocol and traits (String); null where no trait is known. Stable over runs and machines."""
    clean = [trait.str.slice(0, 255).str.replace_all("\x1f", "", literal=True).fill_null("") for trait in traits]
    joined = pl.concat_str([protocol.fill_null(""), *clean], separator="\x1f")
    known = pl.any_horizontal(part != "" for part in clean)
    return pl.when(known).then(joined).map_batches(_fingerprints, return_dtype=pl.String)


def with_clients(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Adds `ua_family` and `client_fp`.

    Reads, where they are there: protocol, user_agent, helo, auth_method, tls_version and the helper column ews_version.
    Shape: the rows of `frame` in their order, two columns more (String); columns of these names are replaced.
    """
    given = frame.collect_schema().names()

    def column(name: str) -> pl.Expr:
        return pl.col(name).cast(pl.String) if name in given else pl.lit(None, dtype=pl.String)

    # all traits, in one order, so that the columns that a format has do not move the others
    traits = [pl.col("ua_family"), *(column(name).str.to_lowercase() for name in TRAITS)]
    fingerprint = client_fp(column("protocol"), traits).alias("client_fp")
    return frame.with_columns(ua_family(column("user_agent")).alias("ua_family")).with_columns(fingerprint)


def _families(agents: pl.Series) -> pl.Series:
    distinct, place = encode(agents)
    return _reduce(distinct).gather(place).alias(agents.name)


def _reduce(agents: pl.Series) -> pl.Series:
    """Families of distinct agents."""
    text = pl.col("agent").str.slice(0, LONGEST_AGENT).str.replace_all(_UNPRINTABLE, " ").str.strip_chars(" \"'")
    bare = pl.col("text").str.replace(_WRAPPER, "").str.strip_chars(" ;")
    inner = pl.coalesce(bare.str.extract(_WRAPPED), bare)
    name = pl.col("inner").str.extract(_NAME).str.strip_chars()
    family = pl.coalesce(
        pl.lit("Outlook/") + pl.col("inner").str.extract(_OUTLOOK),
        _product(_MAC),
        _product(_COMPATIBLE),
        pl.when(pl.col("inner").str.contains(_BROWSER)).then("inner").map_batches(_browsers, return_dtype=pl.String),
        _product(_BEHIND),
        _product(_PRODUCT),
        name + " (" + pl.col("inner").str.extract(_LIBRARY) + ")",
        pl.col("text").str.extract(_WRAPPER_NAME),
        name,
        pl.col("inner"),
    )
    return (
        agents.alias("agent")
        .to_frame()
        .select(text=text)
        .with_columns(inner=inner)
        .select(family=family.str.slice(0, LONGEST_FAMILY).str.strip_chars())
        .select(pl.when(pl.col("family").is_in(["", "-"])).then(None).otherwise(pl.col("family")))
        .to_series()
    )


def _browsers(agents: pl.Series) -> pl.Series:
    """What ua-parser calls each agent; null for null and for what it does not know."""
    if agents.null_count() == len(agents):
        return agents
    from ua_parser import parse_user_agent

    def named(agent: str) -> str | None:
        found = parse_user_agent(agent)
        return None if found is None else f"{found.family}/{found.major}" if found.major else found.family

    return pl.Series(agents.name, [a and named(a) for a in agents.to_list()], dtype=pl.String)


def _product(pattern: str) -> pl.Expr:
    parts = pl.col("inner").str.extract_groups(pattern)
    return parts.struct.field("product") + "/" + parts.struct.field("major")


def _fingerprints(joined: pl.Series) -> pl.Series:
    distinct, place = encode(joined)
    digests = [blake2b(value.encode(), digest_size=FINGERPRINT_BYTES).hexdigest() for value in distinct.to_list()]
    return pl.Series(joined.name, digests, dtype=pl.String).gather(place)
