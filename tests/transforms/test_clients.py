"""User agents in short, and fingerprints that stay."""

from hashlib import blake2b

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.clients import LONGEST_FAMILY, ua_family, with_clients


def _family(*agents: str | None) -> list[str | None]:
    frame = pl.DataFrame({"a": agents}, schema={"a": pl.String})
    return frame.select(ua_family(pl.col("a"))).to_series().to_list()


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("ExchangeServicesClient/15.01.2375.007", "ExchangeServicesClient/15"),
        ("MacOutlook/15.35.0.170610 (Intelx64 Mac OS X Version 10.12.5 (Build 16F73))", "MacOutlook/15"),
        ("Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.4266; Pro)", "Outlook/16"),
        ("Microsoft Office/16.0", "Microsoft Office/16"),
        ("Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.2673", "WindowsPowerShell/5"),
        ("Client=WebServices;ExchangeWebServices/10.0 (262)", "ExchangeWebServices/10"),
        ("Client=WebServices;EWSEditor (ExchangeServicesClient/0.0.0.0);", "EWSEditor (ExchangeServicesClient/0)"),
        ("EWSEditor (ExchangeServicesClient/0.0.0.0)", "EWSEditor (ExchangeServicesClient/0)"),
        ("Client=REST;Client=RESTSystem;;", "REST"),
        ("Client=OWA;Action=ViaProxy", "OWA"),
        ("Client=POP3/IMAP4;Protocol=POP3", "POP3/IMAP4"),
        ("Client=ActiveSync;UserAgent=Apple-iPhone9C1/1602.92;Action=/x?Cmd=Sync", "Apple-iPhone9C1/1602"),
        ("Client=OutlookService;Outlook-iOS/2.0;", "Outlook-iOS/2"),
        ("Client=;;", None),
        ("OC/16.0.4546.1000 (Skype for Business)", "OC/16"),
        ("ASProxy/CrossSite/Directory/EXCH/15.00.1104.000", "ASProxy/CrossSite/Directory/EXCH/15"),
        ("AMProbe/Local/ClientAccess", "AMProbe/Local/ClientAccess"),
        ("MapiHttpClient", "MapiHttpClient"),
        ("Mac OS X/10.15.7 (19H2); ExchangeWebServices/8.0 (316); Mail/13.4 (3608.120)", "Mail/13"),
        ("macOS/13.4 (22F66); ExchangeWebServices/10.0.1 (262); CalendarAgent/960", "CalendarAgent/960"),
        ("python-requests/2.31.0", "python-requests/2"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML  like Gecko) Chrome/62.0 Safari/537.36", "Chrome/62"),
        ("Mozilla/5.0 (X11) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36 Edg/121.0", "Edge/121"),
        (
            "Mozilla/5.0 (iPhone) AppleWebKit/605.1 (KHTML, like Gecko) Version/16.5 Mobile/15E Safari/604.1",
            "Mobile Safari/16",
        ),
        ("Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1)", "IE/8"),
        ("Mozilla/5.0 (compatible; bot-x/2.0; +http://x.example)", "bot-x/2"),
        ("BAV2ROPC", "BAV2ROPC"),
        ("a\x00b\nc/9", "a b c/9"),
        ("", None),
        ("-", None),
        (None, None),
    ],
)
def test_family(agent: str | None, family: str | None) -> None:
    assert _family(agent) == [family]


@given(st.lists(st.one_of(st.none(), st.text(max_size=700)), max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_short_printable_family(agents: list[str | None]) -> None:
    families = _family(*agents)
    assert len(families) == len(agents)
    assert all(f is None or (0 < len(f) <= LONGEST_FAMILY and "\n" not in f and "\x1b" not in f) for f in families)


@pytest.mark.parametrize("agent", ["Mozilla/" * 100_000, "Client=a;" * 100_000, "(" * 500_000, "a " * 100_000 + "/1"])
def test_hostile_agents_have_a_short_family_or_none(agent: str) -> None:
    (family,) = _family(agent)
    assert family is None or len(family) <= LONGEST_FAMILY


def test_fingerprint_follows_the_traits_and_nothing_else() -> None:
    frame = pl.LazyFrame(
        {
            "protocol": ["ews", "ews", "ews", "owa", "ews", "ews"],
            "user_agent": ["A/1.0", "A/1.9", "A/2.0", "A/1.0", None, "A/1.0"],
            "auth_method": ["NTLM", "ntlm", "NTLM", "NTLM", None, None],
            "src_ip_raw": ["1.1.1.1", "2.2.2.2", "1.1.1.1", "1.1.1.1", "1.1.1.1", "1.1.1.1"],
        }
    )
    found = with_clients(frame).collect()
    prints = found["client_fp"].to_list()
    assert found["ua_family"].to_list() == ["A/1", "A/1", "A/2", "A/1", None, "A/1"]
    expected = blake2b(b"ews\x1fA/1\x1f\x1fntlm\x1f\x1f", digest_size=8).hexdigest()
    assert prints[0] == prints[1] == expected
    assert prints[4] is None
    assert len({prints[0], prints[2], prints[3], prints[5]}) == 4


def test_smtp_traits_and_missing_columns() -> None:
    smtp = with_clients(pl.LazyFrame({"protocol": ["smtp", "smtp"], "helo": ["mx.a.example", None]})).collect()
    assert smtp["ua_family"].to_list() == [None, None]
    assert smtp["client_fp"].is_null().to_list() == [False, True]
    wide = with_clients(
        pl.LazyFrame({"protocol": ["smtp"], "user_agent": [None], "helo": ["MX.a.example"], "tls_version": [None]})
    ).collect()
    assert wide["client_fp"][0] == smtp["client_fp"][0]  # columns without a value change nothing
    bare = with_clients(pl.LazyFrame({"x": [1]})).collect()
    assert bare.row(0) == (1, None, None)
    assert with_clients(pl.LazyFrame(schema={"protocol": pl.String, "user_agent": pl.String})).collect().height == 0


def test_traits_cannot_be_shifted_into_each_other() -> None:
    frame = pl.LazyFrame({"protocol": ["smtp"] * 2, "helo": ["a\x1fb", "a"], "auth_method": ["c", "b\x1fc"]})
    assert with_clients(frame).collect()["client_fp"].n_unique() == 2
