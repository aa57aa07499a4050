"""A root folder of its own for real servers: their packages, a few accounts, names of loopback addresses, one zone."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.live.packages import cache, unpacked

ZONE = "America/St_Johns"  # half an hour off, so that a zone left out shows
# Clients bind to these: who comes from where is then known.
OFFICE, HOME, ATTACKER, PARTNER = "127.0.0.2", "127.0.0.3", "127.0.0.66", "127.0.0.4"
_NAMES = {OFFICE: "office.example", HOME: "home.example", PARTNER: "mx.partner.example"}
_ACCOUNTS = {"root": 0, "vmail": 5000, "postfix": 5001, "dovecot": 5002, "dovenull": 5003, "Debian-exim": 5004,
             "openldap": 5005, "courier": 5006, "smmta": 5007, "smmsp": 5008, "alice": 5009, "bob": 5010,
             "mail": 8, "nobody": 65534}  # fmt: skip
_GROUPS = {**_ACCOUNTS, "postdrop": 5100, "sasl": 45, "nogroup": 65534}


class Jail:
    """A copy of unpacked packages that programs take for the root folder. Paths are given as the programs see them."""

    def __init__(self, programs: Any, *packages: str, without: Collection[str] = ()) -> None:
        source = unpacked(*packages, without=without)
        if not (zone := Path("/usr/share/zoneinfo") / ZONE).exists():
            pytest.skip(f"missing: tzdata ({ZONE})")
        self.programs = programs
        _forget_old()
        self.place = Path(tempfile.mkdtemp(dir=cache(), prefix="run-"))
        self._syslog: Syslog | None = None
        shutil.copytree(source, self.place, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
        self.place.chmod(0o755)
        for folder in ("dev", "etc", "run", "tmp", "var/log", "var/run", "var/spool"):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        (self.place / "tmp").chmod(0o1777)
        self._devices()
        shutil.copy2(zone, self.place / "etc/localtime")
        users = [f"{name}:x:{uid}:{uid}::/nonexistent:/bin/sh\n" for name, uid in _ACCOUNTS.items()]
        self.write("/etc/passwd", "".join(users))
        self.write("/etc/group", "".join(f"{name}:x:{gid}:\n" for name, gid in _GROUPS.items()))
        self.write("/etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in _NAMES.items()))
        self.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n")

    def _devices(self) -> None:
        try:
            for name, minor in (("null", 3), ("zero", 5), ("urandom", 9)):
                device = self.place / "dev" / name
                os.mknod(device, 0o020666, os.makedev(1, minor))
                device.chmod(0o666)
            (self.place / "dev/null").write_bytes(b"")
        except PermissionError:
            shutil.rmtree(self.place, ignore_errors=True)
            pytest.skip(f"no device files can be made in {self.place}: CAP_MKNOD and a mount without nodev are needed")

    def path(self, inside: str) -> Path:
        """Where a path of the programs lies for this process."""
        return self.place / inside.lstrip("/")

    def write(self, inside: str, text: str, *, owner: str = "root", mode: int = 0o644) -> None:
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a link into the cache
        file.write_text(text)
        os.chown(file, _ACCOUNTS[owner], _ACCOUNTS[owner])
        file.chmod(mode)

    def folder(self, inside: str, owner: str, mode: int = 0o755) -> None:
        self.path(inside).mkdir(parents=True, exist_ok=True)
        os.chown(self.path(inside), _ACCOUNTS[owner], _ACCOUNTS[owner])
        self.path(inside).chmod(mode)

    def certificate(self, inside: str) -> None:
        """Writes a key and a certificate of its own into a file."""
        key, made = self.path("/tmp/key.pem"), self.path("/tmp/cert.pem")
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3"]
        words = ["openssl", "req", *kind, "-subj", "/CN=gw.example", "-keyout", str(key), "-out", str(made)]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        self.write(inside, key.read_text() + made.read_text())

    def command(self, *words: str, user: str = "root") -> list[str]:
        """The command line that runs a program in here."""
        return [
            "chroot",
            f"--userspec={user}:{user if user != 'nobody' else 'nogroup'}",
            "--groups=",
            str(self.place),
            *words,
        ]

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/tmp"}

    def start(self, name: str, *words: str, user: str = "root") -> Any:
        return self.programs.start(name, self.command(*words, user=user), self.env, self.place)

    def run(
        self, *words: str, user: str = "root", text: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words, user=user),
            env=self.env, input=text, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def listens(self, port: int, process: Any, source: str = "127.0.0.1") -> None:
        """Waits until a server answers at a port."""

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", port), 5, source_address=(source, 0)):
                return True

        self.programs.wait(f"port {port}", answers, 30, process)

    def syslog(self) -> "Syslog":
        """Listens to what the programs say to syslog."""
        if self._syslog is None:
            self._syslog = Syslog(self)
            self.programs.also.append(self._syslog.log)
        return self._syslog

    def close(self) -> None:
        """Ends what still runs in here, and removes the folder."""
        self.programs.stop()
        if self._syslog is not None:
            self._syslog.close()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "root").readlink() == self.place:
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
        shutil.rmtree(self.place, ignore_errors=True)


def elsewhere(jail: Jail, sink: int, refusing: int) -> None:
    """Starts two hosts of other people in a jail of Postfix: one takes every message, one refuses every recipient."""
    words = ["/usr/sbin/smtp-sink", "-h", "mx.partner.example"]
    for name, more, port in (("sink", [], sink), ("refusing", ["-f", "RCPT"], refusing)):
        jail.start(name, *words, *more, f"127.0.0.1:{port}", "10", user="nobody")


def _forget_old() -> None:
    """Removes what runs that were killed have left."""
    for left in [*cache().glob("run-*"), *cache().glob("fetch-*")]:
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)


class Syslog:
    """What the programs of a jail say to syslog, as a syslog daemon writes it: without the priority, with the host."""

    def __init__(self, jail: Jail, host: str = "gw") -> None:
        self.log = jail.path("/var/log/syslog")
        self._host = host
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0.2)
        self._socket.bind(str(jail.path("/dev/log")))
        jail.path("/dev/log").chmod(0o666)
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def _write(self) -> None:
        with self.log.open("wb", buffering=0) as log:
            while True:
                try:
                    # <166>Nov 22 01:50:18 slapd[812]: conn=1000 ...
                    said = self._socket.recv(65536)
                except TimeoutError:
                    if self._over.is_set():
                        return
                    continue
                text = said.rstrip(b"\n\0").partition(b">")[2]
                log.write(text[:16] + self._host.encode() + b" " + text[16:].replace(b"\n", b"#012") + b"\n")

    def close(self) -> None:
        """Writes what has been said, then ends."""
        self._over.set()
        self._writer.join(10)
        self._socket.close()
