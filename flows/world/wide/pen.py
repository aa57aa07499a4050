"""Writes what somebody does at one tenant into the logs that would tell of it, under one label."""

import random
from collections.abc import Sequence

from flows.world import emit_exchange, emit_signin, emit_ual
from flows.world.model import Tenant, User
from flows.world.wide.cast import App
from flows.world.wide.emit_directory import Change, audited
from flows.world.wide.emit_hosts import Host, LdapHost, Visit
from flows.world.wide.places import Where
from flows.world.wide.reads import Read
from flows.world.wide.stage import Job, Label, Stage


class Pen:
    """One actor at one tenant; what falls outside the tenant's time in the world is not written."""

    def __init__(self, stage: Stage, tenant: Tenant, rng: random.Random, label: Label = None) -> None:
        self.stage, self.tenant, self.rng, self.label = stage, tenant, rng, label
        self.logs = stage.logs[tenant.tenant_id]

    def _now(self, ts: float, where: Where, **counts: int) -> bool:
        if not self.stage.begin(self.tenant) <= ts < self.stage.cal.end - 600:
            return False
        self.stage.note(self.label, where[0], where[1], **counts)
        return True

    def app_signin(self, ts: float, app: App, where: Where, code: int = 0) -> None:
        """An application's sign-in; code 0 is success."""
        if self._now(ts, where):
            line = emit_signin.by_application(
                self.rng, self.tenant, ts, app=(app.app_id, app.name), sp_id=app.sp_id, key_id=app.key_id,
                thumbprint=app.thumbprint, ip=where[0], net=where[1], code=code,
            )  # fmt: skip
            self.logs.signins.append((ts, line, self.label))

    def user_signin(self, ts: float, user: User, where: Where, *, interactive: bool = True, code: int = 0) -> None:
        """A person's sign-in."""
        if self._now(ts, where):
            line = emit_signin.by_user(
                self.rng, self.tenant, ts, user=user, ip=where[0], net=where[1], interactive=interactive, code=code
            )
            self.logs.signins.append((ts, line, self.label))

    def read(
        self, ts: float, mailbox: str, where: Where, items: Sequence[int], *, app: App | None = None,
        user: User | None = None,
        client: str = "", app_id: str = "", api_id: str = "", folder: str = "Inbox", logon: int | None = None,
        sync: bool = False,
    ) -> None:  # fmt: skip
        """Mail of Exchange Online read by an application or by a person (owner, or delegate with logon 2)."""
        if not self._now(ts, where, items=len(items)):
            return
        level = logon if logon is not None else (0 if user else 1)
        self.logs.reads.append(Read(
            ts, mailbox, where[0], client or (app.client if app else ""), user, app_id or (app.app_id if app else ""),
            app.sp_id if app else "", api_id or (app.api_id if app else ""), level, folder, tuple(items), sync,
            self.label,
        ))  # fmt: skip

    def newest(self, mailbox: str, ts: float, count: int) -> range:
        """The newest messages of a mailbox."""
        top = self.stage.newest(self.tenant, mailbox, ts)
        return range(max(0, top - count), top)

    def some(self, mailbox: str, ts: float, count: int) -> list[int]:
        """Messages of any age."""
        top = self.stage.newest(self.tenant, mailbox, ts)
        return self.rng.sample(range(top), min(count, top))

    def change(
        self, ts: float, actor: User, where: Where, operation: str, target: tuple[str, str, str], changes: Change,
        app_id: str = ""
    ) -> None:  # fmt: skip
        """A change of the directory: in Entra's audit, and at every third tenant in the unified audit as well."""
        if not self._now(ts, where):
            return
        line = audited(
            self.rng, self.tenant, ts, operation=operation, actor=("user", actor.object_id, actor.address),
            ip=where[0], target=target,
            changes=changes, agent=actor.agent, app_id=app_id,
        )  # fmt: skip
        self.logs.directory.append((ts, line, self.label))
        if self.tenant.container == "csv":
            name = target[2] if "@" in target[2] else f"{target[0]}_{target[1]}"
            body = emit_ual.directory(
                self.rng, self.tenant, ts, user=actor, operation=f"{operation}.", target=name, changes=changes
            )
            self.logs.audit.append((ts, body, self.label))

    def cmdlet(self, ts: float, actor: User, where: Where, operation: str, target: str, **parameters: str) -> None:
        """An Exchange cmdlet in the unified audit."""
        if self._now(ts, where):
            body = emit_ual.cmdlet(
                self.rng, self.tenant, ts, user=actor, ip=where[0], operation=operation, target=target,
                parameters=parameters
            )  # fmt: skip
            self.logs.audit.append((ts, body, self.label))

    def mail(
        self, ts: float, where: Where, *, name: str, sender: str, rcpt: str, size: int, sasl: str = "", relay: str = "",
        defer_until: float = 0.0,
    ) -> float:  # fmt: skip
        """A message at the tenant's mail host; returns when it was delivered."""
        host = self.host()
        if not self._now(ts, where, messages=1, bytes=size):
            return ts
        with host.voice(self.rng, self.label):
            return host.message(
                ts, client=f"{name}[{where[0]}]", sender=sender, rcpt=rcpt, size=size, sasl=sasl, relay=relay,
                message_id=f"{self.rng.getrandbits(96):024x}@{sender.rsplit('@', 1)[-1] or self.tenant.domain}",
                defer_until=defer_until,
            )  # fmt: skip

    def pop3(
        self, ts: float, where: Where, *, user: str, retr: tuple[int, int], deleted: int, held: tuple[int, int],
        closed: bool = False
    ) -> None:  # fmt: skip
        """A POP3 session: messages and bytes read, deleted, and held at login."""
        host = self.host()
        if self._now(ts, where, sessions=1, messages=retr[0], bytes=retr[1]):
            with host.voice(self.rng, self.label):
                host.pop3(ts, user=user, ip=where[0], retr=retr, deleted=deleted, maildrop=held, closed=closed)

    def refused(self, ts: float, where: Where, *, user: str, service: str) -> None:
        """A failed login at the mail host."""
        host = self.host()
        if self._now(ts, where):
            with host.voice(self.rng, self.label):
                host.refused(ts, user=user, ip=where[0], service=service)

    def ldap(
        self, ts: float, where: Where, *, dn: str, searches: Sequence[tuple[str, str, int]] = (), error: int = 0
    ) -> None:
        """A connection to the directory server."""
        if self._now(ts, where, entries=sum(found for _, _, found in searches)):
            self.directory().visits.append(Visit(ts, where[0], dn, tuple(searches), error, self.label))

    def ews(
        self, ts: float, where: Where, *, user: str, agent: str, action: str, mailbox: str, ids: int,
        auth: str = "Basic", status: int = 200
    ) -> None:  # fmt: skip
        """A request at the tenant's own Exchange server."""
        if not self._now(ts, where, items=ids if action == "GetItem" else 0):
            return
        request = emit_exchange.Request(
            ts=ts, user=user, account=f"{self.tenant.tenant_id.upper()}\\{user.split('@', 1)[0]}", auth=auth,
            ip=where[0], agent=agent,
            action=action, mailbox=mailbox, ids=ids, bytes_in=900 + 120 * ids, organisation=self.tenant.domain,
            bytes_out=1_500 + int(self.rng.lognormvariate(9, 1)) * ids if status == 200 else 0,
            host=f"ex01.{self.tenant.domain}", status=status,
        )  # fmt: skip
        self.logs.requests.append((request, self.label))

    def job(
        self, start: float, end: float, service: str, credential: str, kind: str, principal: str, ip: str, *,
        items: int = 0,
        ok: bool = True, name: str,
    ) -> None:  # fmt: skip
        """The vendor's own record of a run."""
        if self.stage.begin(self.tenant) <= start < self.stage.cal.end - 600:
            self.stage.jobs.append(
                Job(start, end, self.tenant, service, credential, kind, principal, ip, items, ok, name, self.label)
            )

    def host(self) -> Host:
        """The tenant's mail host; KeyError without one."""
        if self.logs.mail is None:
            raise KeyError(self.tenant.tenant_id)
        return self.logs.mail

    def directory(self) -> LdapHost:
        """The tenant's directory server; KeyError without one."""
        if self.logs.ldap is None:
            raise KeyError(self.tenant.tenant_id)
        return self.logs.ldap
