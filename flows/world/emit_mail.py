"""Lines of a Unix mail host: Postfix and Dovecot in one mail.log, among other programs.

Shapes: Postfix's documented log lines; Dovecot 2.3 with its default ``pop3_logout_format``.
"""

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager

from flows.world.model import Record, civil, clock, iso, jitter, utc_offset

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LMTP_HEADERS = 287  # bytes of Return-Path, Delivered-To and Received that delivery adds


class MailHost:
    """One host's mail.log; every method appends the lines of one transaction."""

    def __init__(self, rng: random.Random, name: str, *, tz: str, style: str, mapped: bool) -> None:
        self.rng = rng
        self.name = name
        self.short = name.split(".", 1)[0]
        self.tz = tz
        self.style = style  # bsd (local, no year, no zone) or iso (local with offset)
        self.mapped = mapped  # IPv4 shown as ::ffff:
        self.address = "10.20.0.25"
        self.records: list[Record] = []
        self._qmgr = rng.randrange(600, 3000)
        self._pid = rng.randrange(4000, 9000)

    def _stamp(self, ts: float) -> str:
        offset = utc_offset(self.tz, ts)
        if self.style == "bsd":
            day, second = divmod(int(ts + offset), 86_400)
            _, month, number = civil(day)
            return f"{MONTHS[month - 1]} {number:2d} {clock(second)} {self.short}"
        sign, minutes = ("-" if offset < 0 else "+"), abs(int(offset)) // 60
        return f"{iso(ts + offset)}.{int(ts % 1 * 1e6):06d}{sign}{minutes // 60:02d}:{minutes % 60:02d} {self.short}"

    def line(self, ts: float, program: str, text: str, label: str | None = None) -> None:
        """One line of any program."""
        self.records.append((ts, f"{self._stamp(ts)} {program}: {text}", label))

    @contextmanager
    def aside(self, rng: random.Random) -> Iterator[None]:
        """Draws from another stream for a while, so that what is left out elsewhere changes nothing here."""
        kept = self.rng, self._pid
        self.rng = rng
        yield
        self.rng, self._pid = kept

    def pid(self) -> int:
        """The next process id."""
        self._pid = self._pid + self.rng.randrange(1, 9)
        if self._pid > 32_000:
            self._pid = self.rng.randrange(3000, 9000)
        return self._pid

    def queue_id(self, ts: float) -> str:
        """A short queue id: microseconds and an inode, hence used again later."""
        return f"{int(ts % 1 * 1e6):05X}{self.rng.randrange(0xA0000, 0xA0400):05X}"

    def session(self) -> str:
        """A Dovecot session id."""
        return base64.b64encode(self.rng.getrandbits(96).to_bytes(12, "big")).decode()

    def message(
        self, ts: float, *, client: str, sender: str, rcpt: str, message_id: str, size: int, sasl: str = "",
        relay: str = "", defer_until: float = 0.0,
    ) -> float:  # fmt: skip
        """A message from arrival to removal; returns when it was delivered (UTC seconds)."""
        rng, qid = self.rng, self.queue_id(ts)
        daemon = "postfix/submission/smtpd" if sasl else "postfix/smtpd"
        smtpd, other = f"{daemon}[{self.pid()}]", self.pid()
        auth = f", sasl_method=PLAIN, sasl_username={sasl}" if sasl else ""
        at = ts + jitter(rng, 0.01, 0.2)
        if rng.random() < 0.15:
            self.line(ts - 0.15, smtpd, f"connect from {client}")
            cipher = "TLSv1.2 with cipher ECDHE-RSA-AES256-GCM-SHA384 (256/256 bits)"
            self.line(ts - 0.08, smtpd, f"Anonymous TLS connection established from {client}: {cipher}")
            self.line(
                at + 0.4, smtpd, f"disconnect from {client} ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7"
            )
        self.line(ts, smtpd, f"{qid}: client={client}{auth}")
        self.line(at, f"postfix/cleanup[{other}]", f"{qid}: message-id=<{message_id}>")
        queue = f"{qid}: from=<{sender}>, size={size}, nrcpt=1 (queue active)"
        self.line(at + 0.03, f"postfix/qmgr[{self._qmgr}]", queue)
        where = relay or f"{self.name}[private/dovecot-lmtp]"
        agent = f"postfix/smtp[{other + 1}]" if relay else f"postfix/lmtp[{other + 1}]"
        if defer_until > at:
            text = f"connect to {self.name}[private/dovecot-lmtp]: Connection refused"
            tail = f"relay=none, delay=0.2, delays=0.1/0.02/0.08/0, dsn=4.4.1, status=deferred ({text})"
            self.line(at + 0.2, agent, f"{qid}: to=<{rcpt}>, {tail}")
            at = defer_until + jitter(rng, 1, 240)
            self.line(at, f"postfix/qmgr[{self._qmgr}]", queue)
        done = at + jitter(rng, 0.05, 0.9)
        delay = round(done - ts, 2)
        reply = (
            f"250 2.0.0 Ok: queued as {self.queue_id(done)}" if relay else f"250 2.0.0 <{rcpt}> {self.session()} Saved"
        )
        tail = f"delay={delay:g}, delays={delay / 2:.2g}/0.01/0.02/{delay / 2:.2g}, dsn=2.0.0, status=sent ({reply})"
        self.line(done, agent, f"{qid}: to=<{rcpt}>, relay={where}, {tail}")
        self.line(done + 0.01, f"postfix/qmgr[{self._qmgr}]", f"{qid}: removed")
        return done

    def login(self, ts: float, *, service: str, user: str, ip: str, label: str | None = None) -> str:
        """A Dovecot login line; returns ``<pid><session>`` for the closing line."""
        rip = f"::ffff:{ip}" if self.mapped and "." in ip else ip
        pid, session = self.pid(), self.session()
        text = f"{service}-login: Login: user=<{user}>, method=PLAIN, rip={rip}, lip={self.address}, mpid={pid}, TLS"
        self.line(ts, "dovecot", f"{text}, session=<{session}>", label)
        return f"<{pid}><{session}>"

    def pop3(
        self, ts: float, *, user: str, ip: str, retr: tuple[int, int], deleted: int, maildrop: tuple[int, int],
        closed: bool = False, label: str | None = None,
    ) -> None:  # fmt: skip
        """A POP3 session: login and summary. Pairs are (messages, bytes)."""
        tail = self.login(ts, service="pop3", user=user, ip=ip, label=label)
        reason = "Connection closed" if closed else "Disconnected: Logged out"
        counts = f"top=0/0, retr={retr[0]}/{retr[1]}, del={deleted}/{maildrop[0]}, size={maildrop[1]}"
        end = ts + 0.3 + 0.08 * retr[0] + jitter(self.rng, 0.05, 1.5)
        self.line(end, "dovecot", f"pop3({user}){tail}: {reason} {counts}", label)

    def imap(self, ts: float, *, user: str, ip: str) -> None:
        """An IMAP session of a person."""
        tail = self.login(ts, service="imap", user=user, ip=ip)
        size = f"in={self.rng.randrange(200, 4000)} out={self.rng.randrange(900, 900_000)}"
        end = ts + jitter(self.rng, 5, 1500)
        self.line(end, "dovecot", f"imap({user}){tail}: Disconnected: Logged out {size}")

    def stranger(self, ts: float, ip: str) -> None:
        """A scanner: a refused relay, a failed password, or a failed POP3 login."""
        name, pick = f"unknown[{ip}]", self.rng.random()
        if pick < 0.4:
            text = f"warning: {name}: SASL LOGIN authentication failed: UGFzc3dvcmQ6"
            self.line(ts, f"postfix/smtpd[{self.pid()}]", text)
        elif pick < 0.7:
            to = f"to=<test{self.rng.randrange(900)}@relaytest.example> proto=ESMTP helo=<WIN-{self.queue_id(ts)}>"
            text = f"NOQUEUE: reject: RCPT from {name}: 454 4.7.1 <relaytest.example>: Relay access denied"
            self.line(ts, f"postfix/smtpd[{self.pid()}]", f"{text}; from=<a@b.example> {to}")
        else:
            user = self.rng.choice(("info", "admin", "scan", "test"))
            text = (
                f"pop3-login: Disconnected (auth failed, 1 attempts in 4 secs): user=<{user}>, method=PLAIN, rip={ip}"
            )
            self.line(ts, "dovecot", f"{text}, lip={self.address}, TLS, session=<{self.session()}>")

    def housekeeping(self, ts: float) -> None:
        """A line of a program that has nothing to do with mail."""
        pick = self.rng.random()
        if pick < 0.6:
            self.line(ts, f"CRON[{self.pid()}]", "(root) CMD (   cd / && run-parts --report /etc/cron.hourly)")
        elif pick < 0.85:
            self.line(ts, "systemd[1]", "Starting Daily apt download activities...")
        else:
            key = self.session()
            port = self.rng.randrange(1024, 65535)
            text = f"Accepted publickey for ops from 10.20.0.7 port {port} ssh2: RSA SHA256:{key}"
            self.line(ts, f"sshd[{self.pid()}]", text)
