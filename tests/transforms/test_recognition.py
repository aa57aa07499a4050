"""Which format takes a file: by its content, never by its name, and no format takes another's log."""

from pathlib import Path

import pytest

from transforms import registry
from transforms.framing import HEAD_BYTES, head_of

OWN = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"
SYSLOG = {"postfix", "dovecot", "courier", "cyrus", "sendmail", "openldap"}
FOLDERS = {
    "azuread_audit": "entra_audit",
    "azuread_signin": "entra_signin",
    "exchange_pop3": "exchange_pop_imap",
    "mimecast": "mimecast_siem",
    "proofpoint": "proofpoint_pod",
}


def chosen(data: bytes) -> str | None:
    """The name of the format that takes such a file; of all syslog formats "syslog"; None for none."""
    choice = registry.choose(head_of(data[:HEAD_BYTES], "file"))
    return choice.name if isinstance(choice, registry.Choice) else None


def expected(stem: str) -> str:
    names = [f.name for f in registry.formats() if stem.startswith(f.name)]
    name = max(names, key=len)
    return registry.SYSLOG if name in SYSLOG else name


@pytest.mark.parametrize("sample", sorted(OWN.iterdir()), ids=lambda p: p.name)
def test_own_samples_go_to_their_format_whole_and_without_their_beginning(sample: Path) -> None:
    data = sample.read_bytes()
    wanted = expected(sample.stem)
    assert chosen(data) == wanted
    lines = data.splitlines(keepends=True)
    for cut in (1, 5, len(lines) // 2):
        assert chosen(b"".join(lines[cut:])) in {wanted, None}, cut


@pytest.mark.parametrize("sample", sorted(OWN.iterdir()), ids=lambda p: p.name)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_the_encoding_of_a_file_does_not_matter(sample: Path, encoding: str) -> None:
    text = sample.read_bytes().decode("utf-8", errors="replace")
    assert chosen(text.encode(encoding)) == expected(sample.stem)


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples_go_to_their_format() -> None:
    taken = {}
    for file in sorted(REAL.rglob("*")):
        if file.is_file() and file.parent != REAL:
            name = FOLDERS.get(file.parent.name, file.parent.name)
            wanted = registry.SYSLOG if name in SYSLOG else name
            if (found := chosen(file.read_bytes())) != wanted:
                taken[file.name] = found
    assert taken == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 5000,
        bytes(range(256)) * 40,
        b"<html><body>not a log</body></html>\n" * 30,
        b"name,value\n1,2\n3,4\n",
        b'{"name": "value"}\n{"name": "other"}\n',
        b"# Readme\n\nThis folder holds logs.\n",
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    ],
)
def test_what_is_no_log_goes_to_none(data: bytes) -> None:
    assert chosen(data) is None
