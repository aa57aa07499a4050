"""A real Sendmail: submission, deliveries, a bounce, a deferral, rejections and a guessed password, out of syslog."""

import re
import smtplib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.live.clients import guess, say, smtp
from tests.live.servers import ATTACKER, OFFICE, PARTNER, ZONE, Jail, Syslog, elsewhere

pytestmark = pytest.mark.live

ALICE, PASSWORD, BOB = "alice@gw.example", "correct-horse", "bob@gw.example"
PACKAGES = ("sendmail-bin", "sendmail-cf", "m4", "sasl2-bin", "libsasl2-modules", "libsasl2-modules-db")
PROGRAM = "/usr/libexec/sendmail/sendmail"
CONFIGURATION = """divert(0)dnl
include(`/usr/share/sendmail/cf/m4/cf.m4')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `gw.example')dnl
define(`confLOG_LEVEL', `10')dnl
define(`confSERVICE_SWITCH_FILE', `/etc/mail/service.switch-nodns')dnl
define(`confDONT_PROBE_INTERFACES', `true')dnl
define(`confPID_FILE', `/run/sendmail.pid')dnl
define(`confTO_IDENT', `0s')dnl
define(`confFORWARD_PATH', `')dnl
define(`confAUTH_MECHANISMS', `PLAIN')dnl
define(`STATUS_FILE', `')dnl
define(`ALIAS_FILE', `/etc/mail/aliases')dnl
define(`QUEUE_DIR', `/var/spool/mqueue')dnl
define(`LOCAL_MAILER_PATH', `/bin/sh')dnl
define(`LOCAL_MAILER_FLAGS', `Pn9')dnl
define(`LOCAL_MAILER_ARGS', `sh /bin/deliver $u')dnl
define(`ESMTP_MAILER_ARGS', `TCP $h {sink}')dnl
define(`SMTP_MAILER_ARGS', `TCP $h {refusing}')dnl
define(`SMTP8_MAILER_ARGS', `TCP $h {closed}')dnl
TRUST_AUTH_MECH(`PLAIN')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`mailertable', `text -k0 -v1 /etc/mail/mailertable')dnl
LOCAL_DOMAIN(`gw.example')dnl
DAEMON_OPTIONS(`Family=inet, Name=MTA, Port={smtp}, Addr=127.0.0.1')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""
ROUTES = """partner.example esmtp:[127.0.0.1]
refuse.example smtp:[127.0.0.1]
closed.example smtp8:[127.0.0.1]
"""
SASL = "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\nsasldb_path: /etc/sasldb2\n"


@dataclass
class Done:
    """Queue ids that clients were told, by the subject of their message, and what the rows say."""

    queued: dict[str, str]
    sizes: dict[str, int]
    taken: Any = None

    def rows(self, subject: str, event: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.taken.rows("mail_events", queue_id=self.queued[subject], event=event)
        return found

    def row(self, subject: str, event: str) -> dict[str, Any]:
        (found,) = self.rows(subject, event)
        return found


def _say(session: smtplib.SMTP, done: Done, subject: str, *parties: str, size: int = 200) -> None:
    answer, content = say(session, subject, *parties, size=size)
    done.queued[subject] = answer.split()[1]  # 2.0.0 6AM5n085009640 Message accepted for delivery
    done.sizes[subject] = len(content) - content.count(b"\r\n")  # it counts the end of a line as one


def _server(place: Jail, others: Jail) -> tuple[int, Syslog]:
    ports = dict(zip(("smtp", "sink", "refusing", "closed"), place.programs.free_ports(4), strict=True))
    place.write("/etc/mail/gateway.mc", CONFIGURATION.format(**ports))
    place.write("/etc/mail/sendmail.cf", place.run("/usr/bin/m4", "/etc/mail/gateway.mc").stdout)
    place.write("/etc/mail/mailertable", ROUTES)
    place.write("/etc/mail/aliases", "info: alice, bob\npostmaster: alice\nMAILER-DAEMON: postmaster\n")
    place.write("/bin/deliver", 'exec cat > "/var/mail/$1.$$"\n')
    place.folder("/var/mail", "root", 0o1777)
    place.folder("/var/spool/mqueue", "root", 0o700)
    for folder in ("/etc/sasl2", "/usr/lib/sasl2"):
        place.write(f"{folder}/Sendmail.conf", SASL)
    words = ("-p", "-c", "-u", "gw.example", "-f", "/etc/sasldb2", "alice")
    place.run("/usr/sbin/saslpasswd2", *words, text=PASSWORD)
    place.run(PROGRAM, "-bi")
    syslog = place.syslog()
    elsewhere(others, ports["sink"], ports["refusing"])
    place.listens(ports["smtp"], place.start("sendmail", PROGRAM, "-bD"))
    return ports["smtp"], syslog


@pytest.fixture(scope="module")
def done(jail: Callable[..., Any], take: Callable[..., Any]) -> Done:
    what = Done({}, {})
    place, others = jail(*PACKAGES), jail("postfix", without=("cpio",))
    port, syslog = _server(place, others)
    _submit(port, what)
    _receive(port, what)
    _guess(port)
    place.programs.wait("the deliveries", lambda: _all_told(what, syslog.log.read_text()), 60)
    place.programs.stop()
    syslog.close()
    what.taken = take(syslog.log, "sendmail", "--tz", ZONE)
    return what


def _all_told(what: Done, log: str) -> bool:
    """Whether each message but the deferred one has been done with, the notification of the bounce too."""
    notice = re.search(r": (\w+): DSN: ", log)
    ended = {**what.queued, "notice": notice[1] if notice else "none yet"}
    late = ended.pop("deferred")
    return f"{late}: to=" in log and all(f"{queue_id}: done; " in log for queue_id in ended.values())


def _submit(port: int, what: Done) -> None:
    """Alice in the office writes to Bob, to a partner, to two hosts that do not take it."""
    session = smtp(port, OFFICE, helo="office.example")
    session.login(ALICE, PASSWORD)
    _say(session, what, "internal", ALICE, BOB, size=5_000)
    _say(session, what, "both", ALICE, "carol@partner.example", "dan@partner.example", size=50_000)
    _say(session, what, "refused", ALICE, "gone@refuse.example")
    _say(session, what, "deferred", ALICE, "later@closed.example")
    session.quit()


def _receive(port: int, what: Done) -> None:
    """A partner writes to an alias; a stranger wants to relay, asks for nobody's mailbox, and smuggles line feeds."""
    session = smtp(port, PARTNER, helo="mx.partner.example")
    _say(session, what, "inbound", "carol@partner.example", "info@gw.example", size=1_000)
    session.quit()
    stranger = smtp(port, ATTACKER, helo="[192.0.2.66]")
    assert stranger.mail("spam@spam.example")[0] == 250
    assert stranger.rcpt("victim@elsewhere.example")[0] == 550
    assert stranger.rcpt("no-one@gw.example")[0] == 550
    assert stranger.rcpt(BOB)[0] == 250
    stranger.putcmd("DATA")
    assert stranger.getreply()[0] == 354
    stranger.send(b"Subject: smuggled\n.\nMAIL FROM:<x@y.example>\r\n.\r\n")
    assert stranger.getreply()[0] >= 400
    stranger.close()


def _guess(port: int) -> None:
    session = smtp(port, ATTACKER)
    guess(session, ALICE, "mallory@gw.example")
    session.quit()


def test_each_message_is_told_from_the_client_to_its_end(done: Done) -> None:
    stories = {
        "internal": ["deliver", "receive", "remove"],
        "both": ["receive", "remove", "send"],
        "refused": ["bounce", "dsn", "receive", "remove"],
        "deferred": ["defer", "receive"],
        "inbound": ["deliver", "receive", "remove"],
    }
    for subject, story in stories.items():
        rows = done.taken.rows("mail_events", queue_id=done.queued[subject])
        assert sorted({row["event"] for row in rows}) == story, subject


def test_arrivals_name_sender_address_and_size(done: Done) -> None:
    for subject in done.queued:
        row = done.row(subject, "receive")
        where = (PARTNER, "mx.partner.example") if subject == "inbound" else (OFFICE, "office.example")
        assert (row["src_ip"], row["src_host"]) == where
        assert row["mail_from"] == ("carol@partner.example" if subject == "inbound" else ALICE)
        assert row["n_rcpt"] == (2 if subject == "both" else 1)
        assert row["message_id"] == f"<{subject}@client.example>"
        assert row["size_bytes"] == done.sizes[subject], subject


def test_where_messages_went(done: Done) -> None:
    assert done.row("internal", "deliver")["rcpt"] == BOB
    sent = done.row("both", "send")
    assert (sorted(sent["recipients"]), sent["n_rcpt"]) == (["carol@partner.example", "dan@partner.example"], 2)
    assert (sent["dst_ip"], sent["dsn"]) == ("127.0.0.1", "2.0.0")
    named = {name for row in done.rows("inbound", "deliver") for name in row.get("recipients", [row["rcpt"]])}
    assert named == {"alice", "bob"}
    late = done.row("deferred", "defer")
    assert (late["rcpt"], late["dsn"], late["outcome"]) == ("later@closed.example", "4.4.1", "failure")


def test_the_bounce_leads_to_its_notification(done: Done) -> None:
    bounced = done.row("refused", "bounce")
    assert (bounced["rcpt"], bounced["dst_ip"], bounced["dsn"]) == ("gone@refuse.example", "127.0.0.1", "5.3.0")
    notice = done.row("refused", "dsn")["internal_id"]
    assert done.taken.row("mail_events", queue_id=notice, event="deliver")["rcpt"] == ALICE


def test_what_clients_were_refused(done: Done) -> None:
    refused = done.taken.rows("mail_events", event="reject")
    cut_short = [r for r in refused if str(r["status_text"]).startswith("message refused")]  # while it was sent
    assert all(r["src_ip"] and "status=" in r["status_text"] for r in cut_short)
    relay, unknown = (r for r in refused if r not in cut_short)
    assert (relay["src_ip"], relay["rcpt"], relay["dsn"]) == (ATTACKER, "victim@elsewhere.example", "5.7.1")
    assert (unknown["rcpt"], unknown["status_text"]) == ("no-one@gw.example", "User unknown")
    assert unknown["queue_id"] == relay["queue_id"]
    came = [r["src_ip"] for r in done.taken.rows("mail_events", event="connect")]
    assert [ip for ip in came if ip != "127.0.0.1"] == [OFFICE, PARTNER, ATTACKER, ATTACKER]


def test_authentications_name_account_and_address(done: Done) -> None:
    good = done.taken.row("access_events", outcome="success")
    assert (good["principal_id"], good["src_ip"], good["auth_method"]) == (ALICE, OFFICE, "PLAIN")
    assert good["session_id"] == done.row("internal", "receive")["session_id"]
    failed = done.taken.rows("access_events", outcome="failure", auth_method="PLAIN")
    said = [(r["principal_id"], r["src_ip"]) for r in failed]
    assert said == [(user, ATTACKER) for user in (ALICE, "mallory@gw.example")]
    assert {r["src_ip"] for r in done.taken.rows("access_events", outcome="failure")} == {ATTACKER}
