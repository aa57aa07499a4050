"""A real Exim: submission, deliveries, a bounce, a deferral, rejections and guessed passwords, from its main log."""

import smtplib
from collections.abc import Callable
from dataclasses import dataclass
from email.policy import SMTP as _WIRE
from typing import Any

import pytest

from tests.live.clients import guess, letter, say, smtp, unchecked
from tests.live.servers import ATTACKER, OFFICE, PARTNER, ZONE, Jail, elsewhere

pytestmark = pytest.mark.live

ALICE, PASSWORD, BOB = "alice@gw.example", "correct-horse", "bob@gw.example"
LOG = "/var/log/exim4/mainlog"
CONFIGURATION = """
primary_hostname = gw.example
domainlist local_domains = gw.example
daemon_smtp_ports = {smtp}
local_interfaces = 127.0.0.1
log_file_path = /var/log/exim4/%slog
log_selector = +smtp_connection +smtp_protocol_error +smtp_syntax_error +delivery_size +received_recipients
host_lookup = *
host_lookup_order = byaddr
rfc1413_query_timeout = 0s
tls_certificate = /etc/exim4/both.pem
tls_advertise_hosts = *
deliver_drop_privilege = true
acl_smtp_rcpt = acl_check_rcpt
acl_smtp_data = acl_check_data
keep_environment =

begin acl
acl_check_rcpt:
  accept authenticated = *
  deny domains = !+local_domains
       message = relay not permitted
  accept verify = recipient
acl_check_data:
  deny condition = ${{if match{{$h_subject:}}{{virus}}}}
       message = no such things here
  accept

begin routers
aliases:
  driver = redirect
  data = ${{if eq{{$local_part@$domain}}{{info@gw.example}}{{{alice}, {bob}}}}}
local:
  driver = accept
  domains = +local_domains
  local_parts = alice : bob
  transport = maildir
partner:
  driver = manualroute
  route_list = partner.example 127.0.0.1::{sink} byname ; refuse.example 127.0.0.1::{refusing} byname ; \\
    closed.example 127.0.0.9::{closed} byname
  self = send
  transport = remote

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = /var/mail/$local_part_data
remote:
  driver = smtp
  port = 25
  hosts_try_fastopen =

begin retry
* * F,1h,15m

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{alice}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"""


@dataclass
class Done:
    """Message ids that clients were told, by the subject of their message, and what the rows say."""

    queued: dict[str, str]
    sizes: dict[str, int]
    lines: dict[str, int]
    taken: Any = None

    def rows(self, subject: str, event: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.taken.rows("mail_events", queue_id=self.queued[subject], event=event)
        return found

    def row(self, subject: str, event: str) -> dict[str, Any]:
        (found,) = self.rows(subject, event)
        return found


def _say(session: smtplib.SMTP, done: Done, subject: str, *parties: str, size: int = 200) -> None:
    answer, content = say(session, subject, *parties, size=size)
    done.queued[subject] = answer.rsplit("id=", 1)[-1]
    done.sizes[subject], done.lines[subject] = len(content), content.count(b"\r\n")


def _server(place: Jail, others: Jail) -> int:
    ports: dict[str, int] = dict(zip(("smtp", "sink", "refusing", "closed"), place.programs.free_ports(4), strict=True))
    text = CONFIGURATION.format(alice=ALICE, bob=BOB, password=PASSWORD, **ports)
    place.write("/etc/exim4/exim4.conf", text)
    place.certificate("/etc/exim4/both.pem")
    for folder in ("/var/log/exim4", "/var/spool/exim4", "/var/mail", "/run/exim4"):
        place.folder(folder, "Debian-exim")
    elsewhere(others, ports["sink"], ports["refusing"])
    place.programs.also.append(place.path(LOG))
    running = place.start("exim", "/usr/sbin/exim4", "-bdf")
    place.listens(ports["smtp"], running)
    return ports["smtp"]


@pytest.fixture(scope="module")
def done(jail: Callable[..., Any], take: Callable[..., Any]) -> Done:
    what = Done({}, {}, {})
    place, others = jail("exim4-daemon-light", without=("exim4-config",)), jail("postfix", without=("cpio",))
    port = _server(place, others)
    _submit(port, what)
    _receive(port, what)
    _guess(port)
    log = place.path(LOG)
    # each message but the deferred one is completed, the notification of the bounce too
    place.programs.wait("the queue", lambda: log.read_text().count(" Completed") == len(what.queued), 60)
    place.programs.wait("the deferral", lambda: " == " in log.read_text(), 60)
    place.programs.stop()
    what.taken = take(log, "exim", "--tz", ZONE)
    return what


def _submit(port: int, what: Done) -> None:
    """Alice in the office writes to Bob, to a partner, to two hosts that do not take it."""
    session = smtp(port, OFFICE, helo="office.example")
    session.starttls(context=unchecked())
    session.ehlo()
    session.login(ALICE, PASSWORD)
    _say(session, what, "internal", ALICE, BOB, size=5_000)
    _say(session, what, "both", ALICE, "carol@partner.example", "dan@partner.example", size=50_000)
    _say(session, what, "refused", ALICE, "gone@refuse.example")
    _say(session, what, "deferred", ALICE, "later@closed.example")
    session.quit()


def _receive(port: int, what: Done) -> None:
    """A partner writes to an alias; a stranger wants to relay, asks for a mailbox that is not there, sends a virus."""
    session = smtp(port, PARTNER, helo="mx.partner.example")
    _say(session, what, "inbound", "carol@partner.example", "info@gw.example", size=1_000)
    session.quit()
    stranger = smtp(port, ATTACKER, helo="[192.0.2.66]")
    assert stranger.mail("spam@spam.example")[0] == 250
    assert stranger.rcpt("victim@elsewhere.example")[0] == 550
    assert stranger.rcpt("nobody@gw.example")[0] == 550
    assert stranger.rcpt(BOB)[0] == 250
    assert stranger.data(letter("spam@spam.example", BOB, subject="a virus").as_bytes(policy=_WIRE))[0] == 550
    stranger.quit()


def _guess(port: int) -> None:
    session = smtp(port, ATTACKER)
    guess(session, ALICE, "mallory@gw.example")
    session.quit()


def test_each_message_is_told_from_the_client_to_its_completion(done: Done) -> None:
    stories = {
        "internal": ["deliver", "receive", "remove"],
        "both": ["receive", "remove", "send", "send"],
        "refused": ["bounce", "receive", "remove"],
        "deferred": ["defer", "other", "receive"],
        "inbound": ["deliver", "deliver", "receive", "remove"],
    }
    for subject, story in stories.items():
        rows = done.taken.rows("mail_events", queue_id=done.queued[subject])
        assert sorted(row["event"] for row in rows) == story, subject


def test_arrivals_name_account_address_and_size(done: Done) -> None:
    for subject in done.queued:
        row = done.row(subject, "receive")
        inbound = subject == "inbound"
        assert row.get("sasl_username") == (None if inbound else ALICE)
        assert (row["src_ip"], row["helo"]) == (
            (PARTNER, "mx.partner.example") if inbound else (OFFICE, "office.example")
        )
        assert row["mail_from"] == ("carol@partner.example" if inbound else ALICE)
        assert row["n_rcpt"] == (2 if subject == "both" else 1)
        assert row.get("tls_version") == (None if inbound else "TLSv1.3")
        assert row["message_id"] == f"<{subject}@client.example>"
        # Exim counts the header lines it adds, and line ends as one octet.
        added = row["size_bytes"] - (done.sizes[subject] - done.lines[subject])
        assert 0 < added < 500, subject
    assert done.row("both", "receive")["recipients"] == ["carol@partner.example", "dan@partner.example"]


def test_where_messages_went(done: Done) -> None:
    mailbox = done.row("internal", "deliver")
    assert (mailbox["rcpt"], mailbox["size_bytes"]) == (BOB, done.row("internal", "receive")["size_bytes"])
    assert [(r["rcpt"], r["dst_ip"], r["dsn"]) for r in done.rows("both", "send")] == [
        (f"{name}@partner.example", "127.0.0.1", "2.0.0") for name in ("carol", "dan")
    ]
    assert len({r["size_bytes"] for r in done.rows("both", "send")}) == 1
    assert "info@gw.example" in repr(done.rows("inbound", "deliver"))
    late = done.row("deferred", "defer")
    assert (late["rcpt"], late["outcome"], late["status_text"]) == (
        "later@closed.example", "failure", "Connection refused",
    )  # fmt: skip


def test_the_bounce_leads_to_its_notification(done: Done) -> None:
    bounced = done.row("refused", "bounce")
    assert (bounced["rcpt"], bounced["dst_ip"], bounced["dsn"]) == ("gone@refuse.example", "127.0.0.1", "5.3.0")
    notice = done.taken.row("mail_events", internal_id=done.queued["refused"])
    assert (notice["event"], notice["mail_from"], notice["rcpt"]) == ("receive", "", ALICE)


def test_what_clients_were_refused(done: Done) -> None:
    rows = done.taken.rows("mail_events", event="reject")
    assert [(r["src_ip"], r["helo"], r["mail_from"], r.get("rcpt")) for r in rows] == [
        (ATTACKER, "[192.0.2.66]", "spam@spam.example", "victim@elsewhere.example"),
        (ATTACKER, "[192.0.2.66]", "spam@spam.example", "nobody@gw.example"),
        (ATTACKER, "[192.0.2.66]", "spam@spam.example", None),
    ]
    assert [r["status_text"] for r in rows] == ["relay not permitted", "Unrouteable address", "no such things here"]
    came = [r["src_ip"] for r in done.taken.rows("mail_events", event="connect")]
    assert [ip for ip in came if ip != "127.0.0.1"] == [OFFICE, PARTNER, ATTACKER, ATTACKER]


def test_guessed_passwords_name_account_and_address(done: Done) -> None:
    rows = done.taken.rows("access_events", outcome="failure")
    said = [(r["principal_id"], r["src_ip"], r["auth_method"], r["protocol"]) for r in rows]
    assert said == [(user, ATTACKER, "PLAIN", "smtp") for user in (ALICE, "mallory@gw.example")]
