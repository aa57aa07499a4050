"""How Exchange Online's audit tells that mail was read.

Binds of one mailbox in one context within two minutes become one record; an item read again in that context within the
hour is left out; after a thousand in a day the mailbox's audit of reading stops for 24 hours (Microsoft's documentation
of MailItemsAccessed). Reads of whole folders (Sync) name no items and are never stopped.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from flows.world import emit_ual
from flows.world.emit_ual import Audit
from flows.world.model import DAY, Tenant, User

WINDOW, HOUR, LIMIT = 120.0, 3600.0, 1000
GRAPH = "00000003-0000-0000-c000-000000000000"


@dataclass(frozen=True, slots=True)
class Read:
    """Items of one folder read at one moment."""

    ts: float  # UTC seconds
    mailbox: str
    ip: str
    client: str
    by: User | None  # None: an application
    app_id: str
    sp_id: str
    api_id: str  # "" if the application itself is the caller
    logon: int  # 0 owner, 1 admin or application, 2 delegate
    folder: str
    items: tuple[int, ...]  # numbers of the mailbox's messages
    sync: bool
    label: str | None

    def context(self) -> tuple[object, ...]:
        """What must be equal for two reads to become one record."""
        name = self.by.address if self.by else self.sp_id
        return self.mailbox, name, self.ip, self.client, self.app_id, self.logon, self.folder, self.sync, self.label


@dataclass(slots=True)
class _Open:
    first: Read
    items: list[int] = field(default_factory=list)


def fold(rng: random.Random, tenant: Tenant, reads: list[Read]) -> list[Audit]:
    """The records that Exchange Online writes about these reads, by time."""
    out, waiting = list[Audit](), dict[tuple[object, ...], _Open]()
    seen = dict[tuple[object, ...], dict[int, float]]()
    told, silent = dict[str, deque[tuple[float, int]]](), dict[str, float]()

    def flush(key: tuple[object, ...]) -> None:
        one = waiting.pop(key)
        out.append((one.first.ts, _body(rng, tenant, one.first, one.items), one.first.label))

    for read in sorted(reads, key=lambda r: r.ts):
        key, known = read.context(), seen.setdefault(read.context(), {})
        fresh = [item for item in read.items or (0,) if read.ts - known.get(item, -HOUR) >= HOUR]
        known.update(dict.fromkeys(fresh, read.ts))
        if not fresh or (not read.sync and read.ts < silent.get(read.mailbox, 0.0)):
            continue
        if key in waiting and read.ts - waiting[key].first.ts >= WINDOW:
            flush(key)
        waiting.setdefault(key, _Open(read)).items += fresh
        if read.sync:
            continue
        counts = told.setdefault(read.mailbox, deque())
        counts.append((read.ts, len(fresh)))
        while counts[0][0] < read.ts - DAY:
            counts.popleft()
        if sum(count for _, count in counts) > LIMIT:
            flush(key)
            out[-1][1]["OperationProperties"][1]["Value"] = "True"
            silent[read.mailbox] = read.ts + DAY
            counts.clear()
    for key in list(waiting):
        flush(key)
    return sorted(out, key=lambda audit: audit[0])


def _body(rng: random.Random, tenant: Tenant, read: Read, items: list[int]) -> dict[str, Any]:
    body = emit_ual.mail_read(
        rng, tenant, read.ts, mailbox=read.mailbox, ip=read.ip, client=read.client, items=0, user=read.by,
        app_id=read.app_id, sp_id=read.sp_id, folder=read.folder,
    )  # fmt: skip
    body |= {"AppId": read.api_id or read.app_id, "LogonType": read.logon, "InternalLogonType": 0}
    folder = body["Folders"][0]
    if read.sync:
        body["OperationProperties"][0]["Value"] = "Sync"
        body |= {"OperationCount": 1, "Item": {"Id": folder["Id"], "ParentFolder": {"Path": folder["Path"]}}}
        folder["FolderItems"] = []
        return body
    folder["FolderItems"] = [{"InternetMessageId": message_id(tenant, read.mailbox, item)} for item in items]
    told = int(tenant.mailbox_guids[tenant.shared[0]][0], 16) < 4  # some exports write numbers as text
    body["OperationCount"] = str(len(items)) if told else len(items)
    return body


def message_id(tenant: Tenant, mailbox: str, item: int) -> str:
    """The Message-ID of a mailbox's message by its number."""
    salt = int(tenant.mailbox_guids[mailbox][:8], 16)
    return f"<{(item + 1) * 0x9E3779B97F4A7C15 % 2**64 ^ salt:016x}@{tenant.domain}>"
