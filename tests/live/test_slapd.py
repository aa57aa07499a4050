"""A real slapd: who bound, searched and wrote, from where, and how many entries came back, from both of its logs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.live.clients import Relay
from tests.live.servers import ATTACKER, HOME, OFFICE, ZONE, Jail

pytestmark = pytest.mark.live

BASE = "dc=gw,dc=example"
ADMIN, ALICE = f"cn=admin,{BASE}", f"uid=alice,{BASE}"
PEOPLE = ["alice", *(f"person{n}" for n in range(39))]
CONFIGURATION = f"""
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
loglevel stats
sizelimit 15
TLSCertificateFile /etc/ldap/both.pem
TLSCertificateKeyFile /etc/ldap/both.pem
database mdb
suffix "{BASE}"
rootdn "{ADMIN}"
rootpw admin-secret
directory /var/lib/ldap
limits dn.exact="{ALICE}" size=unlimited
"""


@dataclass
class Directory:
    """A running slapd and what its clients were answered."""

    jail: Jail
    port: int
    entries: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def ask(self, name: str, source: str, *words: str, text: str = "") -> None:
        """Runs a client of ldap-utils from this address."""
        with Relay(self.port, source) as relay:
            command = [f"/usr/bin/{words[0]}", "-x", "-H", f"ldap://127.0.0.1:{relay.port}", *words[1:]]
            done = self.jail.run("/bin/env", "LDAPTLS_REQCERT=never", *command, text=text, check=False)
        self.codes[name], self.entries[name] = done.returncode, done.stdout.count("dn: ")


def _entries() -> str:
    people = (
        f"dn: uid={name},{BASE}\nobjectClass: inetOrgPerson\ncn: {name}\nsn: {name}\nmail: {name}@gw.example\n"
        f"userPassword: {name}-secret\n\n"
        for name in PEOPLE
    )
    return f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: gw\ndc: gw\n\n" + "".join(people)


@pytest.fixture(scope="module")
def logs(jail: Callable[..., Any]) -> tuple[Directory, dict[str, Any]]:
    place = jail("slapd", "ldap-utils")
    for folder in ("/var/lib/ldap", "/run"):
        place.folder(folder, "openldap")
    place.write("/etc/ldap/slapd.conf", CONFIGURATION)
    place.certificate("/etc/ldap/both.pem")
    place.run("/usr/sbin/slapadd", "-f", "/etc/ldap/slapd.conf", text=_entries(), user="openldap")
    (plugins := next(place.path("/usr/lib").glob("*-linux-gnu")) / "sasl2").mkdir(exist_ok=True)
    plugins.chmod(0o755)  # without it every program complains
    (port,) = place.programs.free_ports(1)
    syslog = place.syslog()
    words = ("-d", "stats", "-f", "/etc/ldap/slapd.conf", "-h", f"ldap://127.0.0.1:{port}/")
    running = place.start("slapd", "/usr/sbin/slapd", *words, user="openldap")
    place.listens(port, running)
    directory = Directory(place, port)
    _clients(directory)
    running.terminate()
    running.wait(20)
    syslog.close()
    return directory, {"own": place.programs.logs / "slapd.log", "syslog": syslog.log}


def _clients(directory: Directory) -> None:
    alice = ("-D", ALICE, "-w", "alice-secret")
    people = "(objectClass=inetOrgPerson)"
    directory.ask("all", OFFICE, "ldapsearch", *alice, "-LLL", "-b", BASE, people, "mail", "cn")
    directory.ask("one", HOME, "ldapsearch", "-ZZ", *alice, "-LLL", "-b", BASE, "(mail=person7@gw.example)")
    directory.ask("limited", ATTACKER, "ldapsearch", "-LLL", "-b", BASE, people)
    directory.ask("none", ATTACKER, "ldapsearch", "-LLL", "-b", "dc=other,dc=example")
    directory.ask("guess", ATTACKER, "ldapwhoami", "-D", ALICE, "-w", "hunter2")
    directory.ask("whoami", HOME, "ldapwhoami", *alice)
    change = f"dn: {ALICE}\nchangetype: modify\nreplace: description\ndescription: changed\n"
    directory.ask("refused", HOME, "ldapmodify", *alice, text=change)
    directory.ask("change", OFFICE, "ldapmodify", "-D", ADMIN, "-w", "admin-secret", text=change)


@pytest.fixture(scope="module", params=["own", "syslog"])
def taken(request: pytest.FixtureRequest, logs: tuple[Directory, dict[str, Any]], take: Callable[..., Any]) -> Any:
    # Times of its own log are UTC; in syslog they are local.
    return take(logs[1][request.param], "openldap", "--tz", ZONE)


def _said(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row.get(name) for name in names) for row in rows if row["src_ip"] != "127.0.0.1"]


def test_connections_come_from_where_the_clients_were(taken: Any) -> None:
    rows = taken.rows("access_events", action="connect")
    assert [ip for (ip,) in _said(rows, "src_ip")] == [
        OFFICE, HOME, ATTACKER, ATTACKER, ATTACKER, HOME, HOME, OFFICE,
    ]  # fmt: skip
    assert all(row["src_port"] > 0 for row in rows)


def test_binds_name_who_and_whether_it_was_them(taken: Any) -> None:
    rows = taken.rows("access_events", action="bind")
    assert _said(rows, "principal_id", "src_ip", "outcome") == [
        (ALICE, OFFICE, "success"),
        (ALICE, HOME, "success"),
        (None, ATTACKER, "success"),
        (None, ATTACKER, "success"),
        (ALICE, ATTACKER, "failure"),
        (ALICE, HOME, "success"),
        (ALICE, HOME, "success"),
        (ADMIN, OFFICE, "success"),
    ]
    assert [row["principal_type"] for row in rows[2:5]] == ["anonymous", "anonymous", "user"]
    assert taken.row("access_events", outcome="failure", action="bind")["reason"].startswith("49 ")


def test_searches_count_the_entries_that_clients_got(taken: Any, logs: tuple[Directory, dict[str, Any]]) -> None:
    got = logs[0].entries
    assert (got["all"], got["one"], got["limited"], got["none"]) == (len(PEOPLE), 1, 15, 0)
    rows = taken.rows("access_events", action="search")
    assert _said(rows, "principal_id", "src_ip", "ldap_base", "entries_returned", "outcome") == [
        (ALICE, OFFICE, BASE, got["all"], "success"),
        (ALICE, HOME, BASE, got["one"], "success"),
        (None, ATTACKER, BASE, got["limited"], "success"),
        (None, ATTACKER, "dc=other,dc=example", 0, "failure"),
    ]
    assert [row.get("reason", "")[:2] for row in rows] == ["", "", "4 ", "32"]
    assert "person7" not in repr(rows)  # values of filters are not kept
    assert [row.get("tls_version", "")[:3] for row in rows] == ["", "TLS", "", ""]


def test_writes_name_the_entry_and_who_was_refused(taken: Any, logs: tuple[Directory, dict[str, Any]]) -> None:
    assert (logs[0].codes["refused"], logs[0].codes["change"], logs[0].codes["guess"]) == (50, 0, 49)
    rows = taken.rows("access_events", action="update")
    assert _said(rows, "principal_id", "src_ip", "ldap_base", "outcome") == [
        (ALICE, HOME, ALICE, "failure"),
        (ADMIN, OFFICE, ALICE, "success"),
    ]
