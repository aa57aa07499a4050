"""Telling people about new cases: who is told of what, once, and how the message travels.

The address of a webhook is a secret: whoever has it can write there. It comes from the environment alone, never from a
parameter, and stands in no message, no error and no log.
"""

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from archive.store import Archive
from data_contracts.errors import GatehoundError, UsageError
from queries.catalogue import SEVERITIES
from queries.text import count, iso, plain

if TYPE_CHECKING:
    from queries.engine import HuntResult

WEBHOOK = "GATEHOUND_WEBHOOK_URL"
BLOCK = "GATEHOUND_NOTIFICATION_BLOCK"
MOST_CASES = 20  # in one message
TIMEOUT = 15.0  # seconds
_BLOCK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}/[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}")
_SETTLED = ("benign", "duplicate", "closed")


class NotSentError(GatehoundError):
    """A message did not get through; it may the next time."""


def checked_level(level: str) -> str:
    """The level. Raises UsageError where it is no severity."""
    if level not in SEVERITIES:
        raise UsageError("the level of notification is no severity", f"one of {', '.join(SEVERITIES)}")
    return level


def checked_block(name: str | None) -> str | None:
    """The block's name, from the parameter or the environment. Raises UsageError, without it, where it is none."""
    found = name or os.environ.get(BLOCK) or None
    if found is not None and not _BLOCK_NAME.fullmatch(found):
        raise UsageError(
            "the notification block is not named as type/name", f"slack-webhook/soc; an address belongs into {WEBHOOK}"
        )
    return found


def has_way(block: str | None) -> bool:
    """Whether anything is configured through which people can be told."""
    return block is not None or bool(os.environ.get(WEBHOOK))


def due(
    archive: Archive, result: "HuntResult", level: str, judged: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Cases at or above a level of which people are neither told nor about to be told, as a message has them.

    A case is known when one of its findings at that level is. Findings that were judged benign, duplicate or closed do
    not count.
    """
    least = SEVERITIES.index(checked_level(level))
    told, waiting = _mail(archive)
    known = told | {finding for case in waiting.values() for finding in case["findings"]}
    cases = []
    for case in result.cases:
        serious = {f.finding_id for f in case.findings if SEVERITIES.index(f.severity) >= least}
        if not serious & known and _open(serious, judged):
            cases.append(
                {
                    "case_id": case.case_id, "severity": case.severity, "score": case.score,
                    "families": list(case.families), "first_seen": iso(case.first_seen),
                    "last_seen": iso(case.last_seen), "tenants": len(case.entities["tenant_ids"]),
                    "findings": sorted(serious), "summary": plain(case.summary),
                }
            )  # fmt: skip
    return cases


def _open(findings: Iterable[str], judged: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(judged.get(finding, {}).get("state") not in _SETTLED for finding in findings)


def post_out(archive: Archive, run_id: str, level: str, cases: Sequence[Mapping[str, Any]]) -> None:
    """Keeps in the custody log of which cases people are to be told, so that a message that fails is not lost."""
    if cases:
        archive.custody("notify due", {"run_id": run_id, "level": level, "cases": list(cases)})


def waiting(archive: Archive, judged: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cases of which people are still to be told, in the order in which they came up."""
    return [case for case in _mail(archive)[1].values() if _open(case["findings"], judged)]


def _mail(archive: Archive) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Findings of which people were told, and by id the cases that wait, as the custody log has them."""
    told: set[str] = set()
    waiting: dict[str, dict[str, Any]] = {}
    for entry in archive.custody_log.entries():
        details = entry.get("details")
        if entry.get("action") == "notify due" and isinstance(details, dict):
            waiting |= {case["case_id"]: case for case in details["cases"]}
        elif entry.get("action") == "notify" and isinstance(details, dict):
            told.update(details["findings"])
            waiting = {name: case for name, case in waiting.items() if told.isdisjoint(case["findings"])}
    return told, waiting


def remember(archive: Archive, run_id: str, cases: Sequence[Mapping[str, Any]], way: str) -> None:
    """Keeps in the custody log of which cases people were told."""
    details = {"run_id": run_id, "way": way, "cases": [case["case_id"] for case in cases]}
    archive.custody("notify", details | {"findings": [f for case in cases for f in case["findings"]]})


def message(run_id: str, level: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is sent: `text` for people, which holds nothing that a log said, and the cases as data."""
    lines = [f"gatehound: {count(len(cases), 'new case')} at or above {level}, run {run_id}"]
    lines += [_line(case) for case in cases[:MOST_CASES]]
    if len(cases) > MOST_CASES:
        lines.append(f"and {len(cases) - MOST_CASES} more")
    shown = [{k: v for k, v in case.items() if k != "findings"} for case in cases[:MOST_CASES]]
    return {"text": "\n".join(lines), "run_id": run_id, "level": level, "count": len(cases), "cases": shown}


def _line(case: Mapping[str, Any]) -> str:
    span = f"{case['first_seen'][:16]}Z to {case['last_seen'][:16]}Z"
    size = f"{count(case['tenants'], 'tenant')}, {count(len(case['findings']), 'finding')}"
    return f"{case['case_id']}: {case['severity']}, score {case['score']:.0f}, {span}, {size}"


class _NoRedirect(HTTPRedirectHandler):
    """A webhook that points elsewhere is not followed: the message goes where it was meant to, or nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(body: Mapping[str, Any], url: str | None = None) -> None:
    """Sends a message to the webhook.

    Args:
        body: becomes JSON.
        url: address; by default that of the environment.

    Raises:
        UsageError: the address is no https address (http is taken for loopback alone).
        NotSentError: it was not taken. No error holds the address.
    """
    address = url or os.environ.get(WEBHOOK) or ""
    _check(address)
    fault = _post(json.dumps(body).encode(), address)
    if fault is not None:  # raised out here: within, the error would carry one that may name the address
        raise NotSentError(f"the notification was not sent: {fault}", f"see whether {WEBHOOK} is still right")


def _check(address: str) -> None:
    fault = True
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
        fault = not host or "@" in parts.netloc or not (parts.scheme == "https" or _is_loopback(parts.scheme, host))
    except ValueError:
        pass
    if fault or not address.isascii() or not address.isprintable() or " " in address:
        raise UsageError(f"{WEBHOOK} is no https address", "https://host/path, without user and password")


def _is_loopback(scheme: str, host: str) -> bool:
    if scheme != "http":
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _post(body: bytes, address: str) -> str | None:
    """Why it was not taken, without the address; None when it was."""
    request = Request(address, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked
    try:
        with build_opener(_NoRedirect()).open(request, timeout=TIMEOUT) as answer:
            answer.read(1024)
    except HTTPError as error:
        error.close()
        return f"the server answered {error.code}"
    except URLError as error:
        return f"the server was not reached ({type(error.reason).__name__})"
    except (OSError, HTTPException, ValueError) as error:
        return type(error).__name__
    return None
