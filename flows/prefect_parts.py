"""What the Prefect flows share."""

import inspect
import os
import re
from typing import Any

from data_contracts.errors import GatehoundError, UsageError
from flows.pipeline.notifying import NotSentError


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
    return isinstance(cause, NotSentError) or not isinstance(cause, GatehoundError)


def ways(level: str, block: str | None) -> str | None:
    """The notification block that is to be used, if any; checks it and the level before anything is done.

    Raises:
        UsageError: no such level, or that is no name of a block. The name is not repeated: it may be a secret.
    """
    from flows.pipeline.notifying import checked_block, checked_level

    checked_level(level)
    return checked_block(block)


def tell(archive: str, run_id: str, level: str, block: str | None) -> int:
    """Tells people of the cases that wait, by the block or else by the webhook, and keeps that they were told.

    Returns:
        Of how many cases people were told: none where none waits or no way is configured.

    Raises:
        NotSentError: the message did not get through; the cases wait for the next run.
    """
    from archive.store import Archive
    from flows.pipeline.notifying import has_way, message, post, remember, waiting
    from flows.pipeline.triage import judged

    opened = Archive.open(archive)
    cases = waiting(opened, judged(opened)) if has_way(block) else []
    if not cases:
        return 0
    body = message(run_id, level, cases)
    if block is None:
        post(body)
    else:
        by_block(block, body)
    remember(opened, run_id, cases, "webhook" if block is None else "block")
    return len(cases)


def by_block(name: str, body: dict[str, Any]) -> None:
    """Sends the text of a message through a Prefect notification block.

    Raises:
        UsageError: there is no such block, or it is none for notifications.
        NotSentError: it did not send. A block's own error may name the address that it writes to: only its kind is
            told.
    """
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block = Block.load(name)
    except ValueError:  # which says no more than that
        block = None
    if not isinstance(block, NotificationBlock):
        raise UsageError(f"{name}: there is no such notification block", "prefect block ls shows the blocks")
    fault = _sent_by(block, body)
    if fault is not None:
        raise NotSentError(f"the notification block {name} did not send: {fault}", "see the block in Prefect")


def _sent_by(block: Any, body: dict[str, Any]) -> str | None:
    import asyncio

    from queries.text import count

    try:
        with block.raise_on_failure():
            sent = block.notify(body=body["text"], subject=f"gatehound: {count(body['count'], 'new case')}")
            if inspect.iscoroutine(sent):
                asyncio.run(sent)
    except Exception as error:  # noqa: BLE001 - blocks raise what they like
        return type(error).__name__
    return None
