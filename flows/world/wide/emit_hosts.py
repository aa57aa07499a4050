"""Lines of hosts whose clocks are not quite right: Postfix and Dovecot, and OpenLDAP's statistics log.

Shapes: slapd.conf(5), loglevel stats; Postfix and Dovecot as in `emit_mail`.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flows.world.emit_mail import MailHost


class Host(MailHost):
    """A mail host with a clock `skew` seconds ahead; `label` marks what is written while it is set."""

    def __init__(self, rng: random.Random, name: str, *, tz: str, style: str, mapped: bool, skew: float) -> None:
        super().__init__(rng, name, tz=tz, style=style, mapped=mapped)
        self.skew = skew
        self.label: str | None = None

    @contextmanager
    def voice(self, rng: random.Random, label: str | None) -> Iterator[None]:
        """Draws from another stream for a while, and marks the lines: others' lines stay as they are."""
        kept = self.rng, self._pid, self.label
        self.rng, self._pid, self.label = rng, rng.randrange(3000, 32_000), label
        yield
        self.rng, self._pid, self.label = kept

    def line(self, ts: float, program: str, text: str, label: str | None = None) -> None:
        """One line of any program, at the host's own time."""
        super().line(ts + self.skew, program, text, label or self.label)

    def refused(self, ts: float, *, user: str, ip: str, service: str) -> None:
        """A failed login: SMTP (submission) or POP3."""
        if service == "smtp":
            reason = "SASL PLAIN authentication failed: authentication failure"
            text = f"warning: unknown[{ip}]: {reason}, sasl_username={user}"
            self.line(ts, f"postfix/submission/smtpd[{self.pid()}]", text)
            return
        text = (
            f"{service}-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<{user}>, method=PLAIN, rip={ip}"
        )
        self.line(ts, "dovecot", f"{text}, lip={self.address}, TLS, session=<{self.session()}>")


@dataclass(frozen=True, slots=True)
class Visit:
    """A connection to a directory server; error 49: wrong password. Searches: base, filter, entries found."""

    ts: float
    ip: str
    dn: str
    searches: tuple[tuple[str, str, int], ...]
    error: int
    label: str | None


class LdapHost(Host):
    """A directory server; its lines are written at the end, in order, as connections are numbered in order."""

    def __init__(self, rng: random.Random, name: str, *, tz: str, style: str, skew: float) -> None:
        super().__init__(rng, name, tz=tz, style=style, mapped=False, skew=skew)
        self.visits: list[Visit] = []
        self.restarts: list[float] = []
        self._slapd = rng.randrange(600, 900)
        self._conn = 1000

    def write(self) -> None:
        """Writes all visits. Connection numbers begin anew when the daemon is started again."""
        restarts = sorted(self.restarts)
        for visit in sorted(self.visits, key=lambda v: v.ts):
            while restarts and restarts[0] <= visit.ts:
                self._slapd, self._conn = self._slapd + 1711, 1000
                self.line(restarts.pop(0), f"slapd[{self._slapd}]", "slapd starting")
            self._write(visit)

    def _write(self, visit: Visit) -> None:
        rng, tag = random.Random(f"{self.name}/{visit.ts}"), f"slapd[{self._slapd}]"
        at, conn, fd = visit.ts, self._conn, 11 + self._conn % 40
        self._conn += 1
        client = f"[{visit.ip}]" if ":" in visit.ip else visit.ip

        def say(text: str) -> None:
            nonlocal at
            self.line(at, tag, f"conn={conn} {text}", visit.label)
            at += rng.uniform(0.0005, 0.02)

        say(f"fd={fd} ACCEPT from IP={client}:{rng.randrange(1024, 65535)} (IP=0.0.0.0:636)")
        say(f'op=0 BIND dn="{visit.dn}" method=128')
        say(f"op=0 RESULT tag=97 err={visit.error} text=")
        for op, (base, wanted, found) in enumerate(() if visit.error else visit.searches, 1):
            say(f'op={op} SRCH base="{base}" scope=2 deref=0 filter="{wanted}"')
            at += 0.0002 * found
            say(f"op={op} SEARCH RESULT tag=101 err=0 nentries={found} text=")
        say(f"fd={fd} closed")
