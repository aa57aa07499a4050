"""A real Courier: POP3 and IMAP sessions and guessed passwords, as its daemons tell them to syslog."""

import imaplib
import poplib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.policy import SMTP as _WIRE
from typing import Any

import pytest

from tests.live.clients import Imap, Pop3, letter
from tests.live.servers import ATTACKER, HOME, OFFICE, ZONE, Jail, Syslog

pytestmark = pytest.mark.live

ALICE, BOB = "alice@gw.example", "bob@gw.example"
PASSWORDS = {ALICE: "correct-horse", BOB: "battery-staple"}
PACKAGES = ("courier-pop", "courier-imap", "courier-authlib-userdb")
WITHOUT = ("exim4-config", "exim4-base", "exim4-daemon-light", "libgnutls28-dev")
AUTH = "/usr/lib/courier/courier-authlib"
# As Debian's start scripts do, in the foreground.
LISTEN = """
set -a; . /etc/courier/{service}
exec /usr/sbin/couriertcpd -stderrlogger=/usr/sbin/courierlogger -stderrloggername={service} -maxprocs=20 -maxperip=20 \\
  $TCPDOPTS -address=127.0.0.1 {port} {command} Maildir
"""
COMMANDS = {
    "pop3d": "/usr/lib/courier/courier/courierpop3login /usr/lib/courier/courier/courierpop3d",
    "imapd": "/usr/lib/courier/courier/imaplogin /usr/bin/imapd",
}


@dataclass
class Done:
    taken: Any = None
    moved: list[tuple[int, int]] = field(default_factory=list)  # octets that a session's client received and sent


def _accounts(place: Jail) -> None:
    """Writes the accounts as makeuserdb does, and three messages for each."""
    shadow = public = ""
    for user, password in PASSWORDS.items():
        coded = place.run("/usr/sbin/userdbpw", text=f"{password}\n").stdout.strip()
        public += f"{user}\tuid=5000|gid=5000|home=/var/mail/{user}|mail=/var/mail/{user}/Maildir|_=\n"
        shadow += f"{user}\tsystempw={coded}\n"
        for name in ("", "/Maildir", "/Maildir/new", "/Maildir/cur", "/Maildir/tmp"):
            place.folder(f"/var/mail/{user}{name}", "vmail", 0o700)
        for subject, size in {"first": 300, "second": 4_000, "third": 70_000}.items():
            text = letter("sender@partner.example", user, subject=subject, size=size).as_string(policy=_WIRE)
            place.write(
                f"/var/mail/{user}/Maildir/new/{size:06}.{subject}.gw", text.replace("\r\n", "\n"), owner="vmail"
            )
    for name, text, mode in (("userdb", public, 0o644), ("userdbshadow", shadow, 0o600)):
        place.run(f"{AUTH}/makedatprog", "-", f"/etc/courier/{name}.tmp", f"/etc/courier/{name}.dat", text=f"{text}.\n")
        place.path(f"/etc/courier/{name}.dat").chmod(mode)


def _server(place: Jail) -> tuple[int, int, Syslog]:
    _accounts(place)
    place.folder("/run/courier/authdaemon", "root")
    place.write(
        "/etc/courier/authdaemonrc", 'authmodulelist="authuserdb"\ndaemons=2\nauthdaemonvar=/run/courier/authdaemon\n'
    )
    syslog = place.syslog()
    authd = place.start("authdaemond", "/usr/sbin/courierlogger", "-name=authdaemond", f"{AUTH}/authdaemond")
    place.programs.wait("authdaemond", place.path("/run/courier/authdaemon/socket").is_socket, 30, authd)
    ports = place.programs.free_ports(2)
    for (service, command), port in zip(COMMANDS.items(), ports, strict=True):
        script = LISTEN.format(service=service, port=port, command=command)
        place.listens(port, place.start(service, "/bin/sh", "-c", script))
    return ports[0], ports[1], syslog


@pytest.fixture(scope="module")
def done(jail: Callable[..., Any], take: Callable[..., Any]) -> Done:
    what, place = Done(), jail(*PACKAGES, without=WITHOUT)
    pop3, imap, syslog = _server(place)
    _collect(pop3, what)
    _fail(pop3, imap)
    _read(imap, what)
    place.programs.wait("the last summary", lambda: "LOGOUT, user=bob" in syslog.log.read_text(), 20)
    place.programs.stop()
    syslog.close()
    what.taken = take(syslog.log, "courier", "--tz", ZONE)
    return what


def _collect(port: int, what: Done) -> None:
    """Alice at home takes all of her mail and deletes two messages; then she looks again from the office."""
    session = Pop3(port, HOME)
    session.user(ALICE)
    session.forget()  # the answer to the login is the session's
    session.pass_(PASSWORDS[ALICE])
    session.sent = 0
    assert session.stat()[0] == 3
    octets = sum(session.retr(number)[2] for number in (1, 2, 3))
    session.dele(1)
    session.dele(3)
    session.quit()
    assert session.received > octets > 74_300
    what.moved.append((session.received, session.sent))
    again = Pop3(port, OFFICE)
    again.user(ALICE)
    again.forget()
    again.pass_(PASSWORDS[ALICE])
    again.sent = 0
    assert again.stat()[0] == 1
    again.top(1, 0)
    again.quit()
    what.moved.append((again.received, again.sent))


def _fail(pop3: int, imap: int) -> None:
    attacker = Pop3(pop3, ATTACKER)
    attacker.user(BOB)
    with pytest.raises(poplib.error_proto):
        attacker.pass_("hunter2")
    attacker.close()
    other = Imap(imap, ATTACKER)
    with pytest.raises(imaplib.IMAP4.error):
        other.login("nobody@gw.example", "hunter2")
    other.logout()


def _read(port: int, what: Done) -> None:
    """Bob in the office reads two messages by IMAP, and the header of the third."""
    session = Imap(port, OFFICE)
    session.forget()
    session.login(BOB, PASSWORDS[BOB])
    session.sent = 0
    assert session.select("INBOX")[1] == [b"3"]
    session.fetch("2:3", "(BODY[])")
    session.fetch("1", "(BODY.PEEK[HEADER])")
    session.logout()
    what.moved.append((session.received, session.sent))


def test_each_login_names_who_and_from_where(done: Done) -> None:
    rows = done.taken.rows("access_events", action="auth")
    assert [(r["protocol"], r["principal_id"], r["src_ip"], r["outcome"]) for r in rows] == [
        ("pop3", ALICE, HOME, "success"),
        ("pop3", ALICE, OFFICE, "success"),
        ("pop3", BOB, ATTACKER, "failure"),
        ("imap", "nobody@gw.example", ATTACKER, "failure"),
        ("imap", BOB, OFFICE, "success"),
    ]
    assert {r["credential_id"] for r in rows} == {f"pw:{user}" for user in (ALICE, BOB, "nobody@gw.example")}
    assert "hunter2" not in repr(rows)


def test_sessions_count_octets_and_lead_to_their_logins(done: Done) -> None:
    rows = done.taken.rows("access_events", action="session")
    assert [(r["protocol"], r["principal_id"], r["src_ip"]) for r in rows] == [
        ("pop3", ALICE, HOME),
        ("pop3", ALICE, OFFICE),
        ("imap", BOB, OFFICE),
    ]
    for row, (received, sent) in zip(rows, done.moved, strict=True):
        assert (row["bytes_out"], row["bytes_in"]) == (received, sent)
    logins = {r["session_id"] for r in done.taken.rows("access_events", action="auth", outcome="success")}
    assert {r["session_id"] for r in rows} == logins


def test_what_is_not_told_is_not_filled(done: Done) -> None:
    """Courier tells bytes, not messages."""
    rows = done.taken.rows("access_events", action="session")
    assert all("retr_count" not in row and "item_count" not in row for row in rows)
