"""A real Dovecot: what POP3, IMAP and LMTP clients did is what the rows of its own log say."""

import imaplib
import poplib
import smtplib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.live.clients import Imap, Pop3, letter, unchecked
from tests.live.mailstore import LOG, PACKAGES, PASSWORDS, Dovecot
from tests.live.servers import ATTACKER, HOME, OFFICE, ZONE

pytestmark = pytest.mark.live

ALICE, BOB = "alice@gw.example", "bob@gw.example"
SIZES = {"first": 300, "second": 4_000, "third": 70_000}


@dataclass
class Done:
    """What the clients did and were told."""

    taken: Any = None
    octets: dict[int, int] = field(default_factory=dict)
    answered: int = 0
    maildrop: tuple[int, int] = (0, 0)
    left: tuple[int, int] = (0, 0)
    imap_received: int = 0
    imap_sent: int = 0


@pytest.fixture(scope="module")
def done(jail: Callable[..., Any], take: Callable[..., Any]) -> Done:
    what, place = Done(), jail(*PACKAGES)
    server = Dovecot(place)
    _deliver(server)
    _collect(server, what)
    _fail(server)
    _read(server, what)
    log = place.path(LOG)
    place.programs.wait("the summaries of the sessions", lambda: _summed(log.read_text()) == 3, 60)
    server.stop()
    what.taken = take(log, "dovecot", "--tz", ZONE)
    return what


def _summed(log: str) -> int:
    """How many sessions of POP3 and IMAP have ended in good order."""
    return sum(log.count(f"Logged out {first}=") for first in ("top", "in"))


def _deliver(server: Dovecot) -> None:
    session = smtplib.LMTP(str(server.jail.path(server.lmtp)), timeout=30)
    for subject, size in SIZES.items():
        for user in (ALICE, BOB):  # LMTP answers for each recipient, smtplib reads one answer
            assert session.send_message(letter("sender@partner.example", user, subject=subject, size=size)) == {}
    assert session.docmd("MAIL", "FROM:<x@partner.example>")[0] == 250
    assert session.docmd("RCPT", "TO:<nobody@@gw.example>")[0] >= 500
    session.quit()


def _collect(server: Dovecot, what: Done) -> None:
    """Alice at home takes all of her mail over TLS and deletes two messages; then she looks again."""
    session = Pop3(server.pop3, HOME)
    session.stls(unchecked())
    session.user(ALICE)
    session.pass_(PASSWORDS[ALICE])
    what.maildrop = session.stat()
    for number in (1, 2, 3):
        answer, _, octets = session.retr(number)
        what.octets[number] = octets
        what.answered += len(answer) + 2
    session.dele(1)
    session.dele(3)
    session.quit()
    again = Pop3(server.pop3, OFFICE)
    again.user(ALICE)
    again.pass_(PASSWORDS[ALICE])
    what.left = again.stat()
    again.top(1, 0)
    again.quit()


def _fail(server: Dovecot) -> None:
    attacker = Pop3(server.pop3, ATTACKER)
    for user in (BOB, "nobody@gw.example"):
        attacker.user(user)
        with pytest.raises(poplib.error_proto):
            attacker.pass_("hunter2 <guess>, rip=192.0.2.9")
    attacker.quit()
    other = Imap(server.imap, ATTACKER)
    with pytest.raises(imaplib.IMAP4.error):
        other.login(BOB, "hunter2")
    other.logout()
    quiet = Pop3(server.pop3, ATTACKER)  # comes and goes without a word
    quiet.close()


def _read(server: Dovecot, what: Done) -> None:
    """Bob in the office reads two messages by IMAP."""
    session = Imap(server.imap, OFFICE)
    session.forget()  # what the login process said; the answer to the login is the session's
    session.login(BOB, PASSWORDS[BOB])
    session.sent = 0
    assert session.select("INBOX")[1] == [b"3"]
    session.fetch("2:3", "(BODY[])")
    session.fetch("1", "(BODY.PEEK[HEADER])")
    session.logout()
    what.imap_received, what.imap_sent = session.received, session.sent


def test_each_login_names_who_and_from_where(done: Done) -> None:
    logins = done.taken.rows("access_events", action="auth", outcome="success")
    said = [(r["protocol"], r["principal_id"], r["src_ip"], r["auth_method"], r.get("tls_version")) for r in logins]
    assert said == [
        ("pop3", ALICE, HOME, "PLAIN", "TLS"),
        ("pop3", ALICE, OFFICE, "PLAIN", None),
        ("imap", BOB, OFFICE, "PLAIN", None),
    ]
    assert {r["credential_id"] for r in logins} == {f"pw:{ALICE}", f"pw:{BOB}"}


def test_failed_logins_are_told_by_auth_and_by_the_login_service(done: Done) -> None:
    failed = done.taken.rows("access_events", action="auth", outcome="failure")
    assert {r["src_ip"] for r in failed} == {ATTACKER}
    by_auth = [(r["principal_id"], r["reason"]) for r in failed if r["protocol"] == "directory"]
    assert by_auth == [(BOB, "password mismatch"), ("nobody@gw.example", "unknown user"), (BOB, "password mismatch")]
    by_login = [(r["protocol"], r["op_count"]) for r in failed if r["protocol"] != "directory"]
    assert by_login == [("pop3", 2), ("imap", 1)]
    assert "hunter2" not in repr(done.taken.rows("access_events"))


def test_pop3_sessions_count_messages_and_octets(done: Done) -> None:
    first, second = done.taken.rows("access_events", action="session", protocol="pop3")
    assert done.maildrop == (3, sum(done.octets.values()))
    assert first["principal_id"] == second["principal_id"] == ALICE
    assert (first["retr_count"], first["dele_count"], first["maildrop_n"], first["top_count"]) == (3, 2, 3, 0)
    assert first["maildrop_bytes"] == done.maildrop[1]
    assert first["bytes_out"] == sum(done.octets.values()) + done.answered  # the lines `+OK 523 octets` are counted
    assert first["item_count"] == 3
    assert (second["retr_count"], second["top_count"], second["maildrop_n"]) == (0, 1, done.left[0])
    assert done.left == (1, done.octets[2])
    assert second["maildrop_bytes"] == done.left[1]


def test_an_imap_session_counts_bodies_and_octets(done: Done) -> None:
    session = done.taken.row("access_events", action="session", protocol="imap")
    assert (session["principal_id"], session["item_count"]) == (BOB, 2)
    assert session["bytes_out"] == done.imap_received
    assert 0 <= done.imap_sent - session["bytes_in"] <= 2  # the end of the last line is not waited for


def test_a_session_has_the_address_of_its_login(done: Done) -> None:
    logins = {r["session_id"]: r["src_ip"] for r in done.taken.rows("access_events", action="auth", outcome="success")}
    sessions = done.taken.rows("access_events", action="session")
    assert [logins[r["session_id"]] for r in sessions] == [HOME, OFFICE, OFFICE]


def test_deliveries_name_message_and_mailbox(done: Done) -> None:
    rows = done.taken.rows("mail_events", event="deliver")
    assert [(r["message_id"], r["rcpt"], r["outcome"]) for r in rows] == [
        (f"<{subject}@client.example>", user, "success") for subject in SIZES for user in (ALICE, BOB)
    ]
