"""Which event table the records of an audited Microsoft 365 operation go to."""

from collections.abc import Iterable

from queries.sigma.sources import ACCESS, CHANGE
from transforms import ual_access, ual_operations

_KNOWN_ACCESS = frozenset(ual_access.SIGN_INS | set(ual_access.MAILBOX_ACTIONS) | set(ual_access.CONTENT_ACTIONS))


def tables_of(operations: Iterable[str]) -> tuple[set[str], set[str]]:
    """The tables that records of the operations are kept in, and those operations that are not known by name."""
    tables: set[str] = set()
    unknown: set[str] = set()
    for operation in operations:
        name = ual_operations.normal(operation)
        if name in _KNOWN_ACCESS or ual_operations.reads(name):
            tables.add(ACCESS)
        elif _is_change(name):
            tables.add(CHANGE)
        else:
            tables |= {ACCESS, CHANGE}
            unknown.add(operation)
    return tables, unknown


def _is_change(name: str) -> bool:
    directory = ual_operations.change(name, directory=True)
    return directory != ("other", "other") or ual_operations.change(name, directory=False) is not None
