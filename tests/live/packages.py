"""Debian's packages of real servers, unpacked into a cache folder together with the libraries that they need.

Debian's mail servers exclude each other, and an installed one would start by itself; a folder to change the root to has
neither fault, and the machine stays as it is. Needs root, apt-get, dpkg and, at the first run, a way to Debian's mirror.
The folder (gatehound-live in ${XDG_CACHE_HOME:-~/.cache}) may be deleted at any time.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

_TOOLS = ("apt-get", "dpkg", "ldd", "chroot", "openssl")
_BASE = ("sh", "env", "rm", "cat")  # of the machine; Postfix and Exim start a shell where they are told to
_PATIENCE = 240  # seconds for a call of apt
_LIBRARY = re.compile(r"(/[^\s:()]+\.so[^\s:()]*)")


def unpacked(*packages: str, without: Collection[str] = ()) -> Path:
    """Folder that holds these packages and what they need and this machine lacks; skips the test if it cannot be had.

    Args:
        packages: names of Debian packages.
        without: packages that apt would add and that are not wanted.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None] + ["root"] * (os.geteuid() != 0)
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}; {packages[0]} is taken from Debian's packages and run as root")
    planned = _plan(packages, without)
    if not planned:  # no package lists
        _apt("update")
        planned = _plan(packages, without)
    if not planned:
        pytest.skip(f"apt knows no package {' '.join(packages)}")
    digest = hashlib.sha256(repr(sorted(planned.items())).encode()).hexdigest()[:12]
    place = cache() / f"{packages[0]}-{digest}"
    if not place.exists():
        _unpack(planned, place)
    return place


def cache() -> Path:
    """Where unpacked packages lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatehound-live"


def _apt(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", "-q", *words],
        env=env, cwd=cwd, capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _plan(packages: Collection[str], without: Collection[str]) -> Mapping[str, str]:
    """Name to version of what an installation would add; empty if apt cannot tell."""
    done = _apt("-s", "-o", "Debug::NoLocking=true", "install", "--reinstall", "--no-install-recommends", *packages)
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("Inst "))
    # Inst postfix (3.7.11-0+deb12u1 Debian:12/stable [amd64]), Inst libc6 [2.36-9] (2.36-10 ...)
    versions = {words[1]: next(w for w in words[2:] if w.startswith("("))[1:] for words in lines}
    return {name: version for name, version in versions.items() if name not in without}


def _unpack(planned: Mapping[str, str], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="fetch-") as folder:
        fetched, root = Path(folder), Path(folder) / "root"
        names = [f"{name}={version}" for name, version in sorted(planned.items())]
        done = _apt("download", *names, cwd=fetched)
        if done.returncode:  # lists older than the mirror
            _apt("update")
            done = _apt("download", *sorted(planned), cwd=fetched)
        if done.returncode:
            pytest.skip(f"apt-get download {' '.join(names)}: {done.stderr.strip()[-300:]}")
        for package in sorted(fetched.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True, timeout=_PATIENCE)
        _add_libraries(root)
        for file in root.rglob("*"):  # nothing that lies here may give away privileges
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                file.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
        root.chmod(0o755)
        root.rename(place)


def _add_libraries(root: Path) -> None:
    """Copies programs of the machine, and the libraries that anything in the folder needs, to their places in it."""
    for name in _BASE:
        found = Path(shutil.which(name) or f"/bin/{name}").resolve()
        (root / "bin").mkdir(exist_ok=True)
        shutil.copy2(found, root / "bin" / name)
    programs = [str(file) for file in root.rglob("*") if file.is_file() and not file.is_symlink() and _is_program(file)]
    own = sorted({str(file.parent) for file in root.rglob("*.so*")})
    done = subprocess.run(
        ["ldd", *programs],
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(own)}, capture_output=True, text=True, timeout=_PATIENCE, check=False,
    )  # fmt: skip
    names = set(_LIBRARY.findall(done.stdout))
    # Loaded when a thread ends, and named by nobody.
    names |= {str(Path(name).with_name("libgcc_s.so.1")) for name in names if Path(name).name == "libc.so.6"}
    for name in sorted(names):
        if not name.startswith(str(root)) and not (target := root / name.lstrip("/")).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target)


def _is_program(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"
