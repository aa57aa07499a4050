"""What the Prefect flows share."""

import os
import re
from typing import Any

from data_contracts.errors import GatehoundError, UsageError


def located(archive: str | None) -> str:
    """The archive that a flow works on.

    Raises:
        UsageError: neither the parameter nor GATEHOUND_ARCHIVE names one.
    """
    found = archive or os.environ.get("GATEHOUND_ARCHIVE")
    if not found:
        raise UsageError("no archive is named", "give the parameter archive, or set GATEHOUND_ARCHIVE")
    return found


def key(kind: str, archive: str) -> str:
    """Key of an artifact: lower-case letters, digits and dashes; one series per archive."""
    name = re.sub(r"[^a-z0-9]+", "-", archive.lower()).strip("-")[-60:].strip("-")
    return f"gatehound-{kind}-{name}" if name else f"gatehound-{kind}"


def worth_repeating(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task is tried again: not when the caller or the evidence is at fault, which stays as it is."""
    cause = getattr(state.data, "exception", state.data)  # a stored result wraps what was raised
    return not isinstance(cause, GatehoundError)
