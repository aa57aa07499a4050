"""A real Postfix with Dovecot behind it: submission, deliveries, a bounce, a deferral, rejections and guessed passwords."""

import re
import smtplib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.live import mailstore
from tests.live.clients import guess, say, smtp, unchecked
from tests.live.servers import ATTACKER, OFFICE, PARTNER, ZONE, Jail, elsewhere

pytestmark = pytest.mark.live

ALICE, BOB = mailstore.PASSWORDS
LOG = "/var/log/mail.log"
MAIN = """
compatibility_level = 3.6
myhostname = gw.example
mydestination =
mynetworks = 127.0.0.250
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
maillog_file = {log}
alias_maps =
alias_database =
smtp_host_lookup = native
smtp_dns_support_level = disabled
virtual_mailbox_domains = gw.example
virtual_mailbox_maps = inline:{{ {alice}=1, {bob}=1 }}
virtual_alias_maps = inline:{{ {{ info@gw.example = {alice}, {bob} }} }}
virtual_transport = lmtp:unix:private/live/lmtp
transport_maps = inline:{{ partner.example=relay:[127.0.0.1]:{sink}, refuse.example=smtp:[127.0.0.1]:{refusing},
  closed.example=smtp:[127.0.0.1]:{closed} }}
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/live/sasl
smtpd_tls_chain_files = /etc/postfix/both.pem
smtpd_tls_loglevel = 1
"""
# name, type, private, unprivileged, chroot, wakeup, most processes, command
MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
127.0.0.1:{submission} inet n - n - - smtpd -o syslog_name=postfix/submission -o smtpd_tls_security_level=encrypt
  -o smtpd_sasl_auth_enable=yes
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp -o syslog_name=postfix/$service_name
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
TWICE = ("both", "inbound")  # messages to two mailboxes
QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private",
          "public", "saved", "trace")  # fmt: skip


@dataclass
class Done:
    """Queue ids that clients were told, by the subject of their message, and what the rows say."""

    queued: dict[str, str]
    sizes: dict[str, int]
    taken: Any = None

    def story(self, subject: str) -> list[str]:
        """Events of a message in the order of the log."""
        return [r["event"] for r in self.taken.rows("mail_events", queue_id=self.queued[subject])]

    def row(self, subject: str, event: str, **where: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.taken.row("mail_events", queue_id=self.queued[subject], event=event, **where)
        return found


def _say(session: smtplib.SMTP, done: Done, subject: str, *parties: str, size: int = 200) -> None:
    answer, content = say(session, subject, *parties, size=size)
    done.queued[subject] = answer.rsplit(" ", 1)[-1]
    done.sizes[subject] = len(content)


def _server(place: Jail) -> tuple[int, int]:
    """Starts Postfix, Dovecot and two hosts elsewhere, one of which refuses; ports for mail and for submission."""
    places = dict(zip(("smtp", "submission", "sink", "refusing", "closed"), place.programs.free_ports(5), strict=True))
    place.write("/etc/postfix/main.cf", MAIN.format(log=LOG, alice=ALICE, bob=BOB, **places))
    place.write("/etc/postfix/master.cf", MASTER.format(**places))
    place.certificate("/etc/postfix/both.pem")
    place.folder("/var/lib/postfix", "postfix")
    for folder in QUEUES:
        place.folder(f"/var/spool/postfix/{folder}", "root" if folder == "pid" else "postfix")
    mailstore.Dovecot(place, "/var/spool/postfix/private/live")
    elsewhere(place, places["sink"], places["refusing"])
    place.programs.also.append(place.path(LOG))
    running = place.start("postfix", "/usr/lib/postfix/sbin/master", "-s")  # its script wants half of Unix
    place.listens(places["smtp"], running)
    return places["smtp"], places["submission"]


@pytest.fixture(scope="module")
def done(jail: Callable[..., Any], take: Callable[..., Any]) -> Done:
    what, place = Done({}, {}), jail("postfix", *mailstore.PACKAGES, without=("cpio",))
    port, submission = _server(place)
    _submit(submission, what)
    _receive(port, what)
    _guess(submission)
    log = place.path(LOG)
    # each message but the deferred one is removed, the notification of the bounce too
    place.programs.wait("the queue", lambda: log.read_text().count(": removed") == len(what.queued), 60)
    place.programs.wait("the deferral", lambda: "status=deferred" in log.read_text(), 60)
    # postlogd writes what smtpd tells it, and a client may be answered before
    gone = (OFFICE, PARTNER, ATTACKER, ATTACKER)
    place.programs.wait("the last words of the sessions", lambda: _left(log.read_text()) == sorted(gone), 60)
    place.programs.stop()
    what.taken = take(log, "postfix", "--tz", ZONE)
    return what


def _left(log: str) -> list[str]:
    """Addresses that smtpd has told the end of a session of, without those that only look whether it listens."""
    return sorted(ip for ip in re.findall(r"disconnect from \S+\[([0-9.]+)\]", log) if ip != "127.0.0.1")


def _submit(port: int, what: Done) -> None:
    """Alice in the office writes to Bob, to a partner, to two hosts that do not take it."""
    session = smtp(port, OFFICE, helo="office.example")
    session.starttls(context=unchecked())
    session.ehlo()
    session.login(ALICE, mailstore.PASSWORDS[ALICE])
    _say(session, what, "internal", ALICE, BOB, size=5_000)
    _say(session, what, "both", ALICE, "carol@partner.example", "dan@partner.example", size=50_000)
    _say(session, what, "refused", ALICE, "gone@refuse.example")
    _say(session, what, "deferred", ALICE, "later@closed.example")
    session.quit()


def _receive(port: int, what: Done) -> None:
    """A partner writes to an alias; a stranger wants to relay, and asks for a mailbox that is not there."""
    session = smtp(port, PARTNER, helo="mx.partner.example")
    _say(session, what, "inbound", "carol@partner.example", "info@gw.example", size=1_000)
    session.quit()
    stranger = smtp(port, ATTACKER, helo="[192.0.2.66]")
    assert stranger.mail("spam@spam.example")[0] == 250
    assert stranger.rcpt("victim@elsewhere.example")[0] == 554
    assert stranger.rcpt("nobody@gw.example")[0] == 550
    stranger.close()


def _guess(port: int) -> None:
    session = smtp(port, ATTACKER)
    session.starttls(context=unchecked())
    session.ehlo()
    guess(session, ALICE, "mallory@gw.example")
    session.close()


def test_submissions_name_account_address_and_message(done: Done) -> None:
    rows = done.taken.rows("access_events", outcome="success")
    said = [(r["principal_id"], r["src_ip"], r["auth_method"], r["session_id"]) for r in rows]
    submitted = [done.queued[subject] for subject in ("internal", "both", "refused", "deferred")]
    assert said == [(ALICE, OFFICE, "PLAIN", queue_id) for queue_id in submitted]


def test_guessed_passwords_name_account_and_address(done: Done) -> None:
    rows = done.taken.rows("access_events", outcome="failure")
    said = [(r["principal_id"], r["src_ip"], r["auth_method"], r["protocol"]) for r in rows]
    assert said == [(user, ATTACKER, "PLAIN", "smtp") for user in (ALICE, "mallory@gw.example")]


def test_each_message_is_told_from_the_client_to_the_removal(done: Done) -> None:
    assert sorted(done.story("internal")) == sorted(["cleanup", "queue", "deliver", "remove"])
    assert sorted(done.story("both")) == sorted(["cleanup", "queue", "send", "send", "remove"])
    assert sorted(done.story("refused")) == sorted(["cleanup", "queue", "bounce", "other", "remove"])
    assert sorted(done.story("deferred")) == sorted(["cleanup", "queue", "defer"])
    assert sorted(done.story("inbound")) == sorted(["receive", "cleanup", "queue", "deliver", "deliver", "remove"])


def test_senders_sizes_and_numbers_of_recipients(done: Done) -> None:
    for subject in done.queued:
        row = done.row(subject, "queue")
        sender, number = ("carol@partner.example" if subject == "inbound" else ALICE), 2 if subject in TWICE else 1
        assert (row["mail_from"], row["n_rcpt"]) == (sender, number)
        assert 0 < row["size_bytes"] - done.sizes[subject] < 500  # the Received header
        assert done.row(subject, "cleanup")["message_id"] == f"<{subject}@client.example>"


def test_where_messages_went(done: Done) -> None:
    assert done.row("internal", "deliver")["rcpt"] == BOB
    sent = done.taken.rows("mail_events", event="send", queue_id=done.queued["both"])
    assert [(r["rcpt"], r["dst_ip"], r["dsn"]) for r in sent] == [
        (f"{name}@partner.example", "127.0.0.1", "2.0.0") for name in ("carol", "dan")
    ]
    got = done.taken.rows("mail_events", event="deliver", queue_id=done.queued["inbound"])
    assert [(r["rcpt"], r["orig_rcpt"]) for r in got] == [(ALICE, "info@gw.example"), (BOB, "info@gw.example")]
    late = done.row("deferred", "defer")
    assert (late["rcpt"], late["dsn"], late["outcome"]) == ("later@closed.example", "4.4.1", "failure")
    assert "Connection refused" in late["status_text"]


def test_the_bounce_leads_to_its_notification(done: Done) -> None:
    bounced = done.row("refused", "bounce")
    assert (bounced["rcpt"], bounced["outcome"], bounced["dst_ip"]) == ("gone@refuse.example", "failure", "127.0.0.1")
    notice = done.row("refused", "other")["internal_id"]
    assert done.taken.row("mail_events", queue_id=notice, event="queue")["mail_from"] == ""
    assert done.taken.row("mail_events", queue_id=notice, event="deliver")["rcpt"] == ALICE


def test_clients_and_what_they_were_refused(done: Done) -> None:
    inbound = done.row("inbound", "receive")
    assert (inbound["src_ip"], inbound["src_host"]) == (PARTNER, "mx.partner.example")
    refused = done.taken.rows("mail_events", event="reject")
    assert [(r["src_ip"], r["helo"], r["mail_from"], r["rcpt"], r["dsn"]) for r in refused] == [
        (ATTACKER, "[192.0.2.66]", "spam@spam.example", "victim@elsewhere.example", "5.7.1"),
        (ATTACKER, "[192.0.2.66]", "spam@spam.example", "nobody@gw.example", "5.1.1"),
    ]
    came = [r["src_ip"] for r in done.taken.rows("mail_events", event="connect")]
    assert [ip for ip in came if ip != "127.0.0.1"] == [OFFICE, PARTNER, ATTACKER, ATTACKER]
    safe = done.taken.rows("mail_events", event="tls")
    assert [(r["src_ip"], r["tls_version"]) for r in safe] == [(OFFICE, "TLSv1.3"), (ATTACKER, "TLSv1.3")]
