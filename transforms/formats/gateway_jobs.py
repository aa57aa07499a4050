"""Job records of the gateway's operator: which job used which customer service, when, from where, with what.

Not a product's log but an agreement: CSV or JSON that any operator can write from its own job database, described in
docs/gateway-jobs.md. Columns go by the usual names, in any case and order. Against these records the accesses that
customers log are reconciled.
"""

import json
import re
from functools import cache

import polars as pl

from transforms import mapped_rows
from transforms.mapped_rows import Column, Mapping, Time, folded
from transforms.model import Context, Format, Framing, Head, Match

_NAMES = {
    "job_id": ("job_id", "job", "run_id", "job_run_id", "task_id", "execution_id"),
    "start": ("start", "start_time", "started", "started_at", "start_utc", "begin", "ts", "timestamp"),
    "service": ("service", "target_service", "customer_service", "connector", "protocol"),
    "ts_end": ("end", "end_time", "ended", "ended_at", "end_utc", "finished", "finished_at", "stop", "completed_at"),
    "tenant_id": ("tenant_id", "tenant", "customer_id", "customer", "account_code", "acc"),
    "tenant_domain": ("tenant_domain", "domain"),
    "op_raw": ("job_type", "type", "task_type", "operation", "action"),
    "principal_id": ("principal_id", "principal", "username", "user", "login", "service_account", "app_id"),
    "credential_id": ("credential_id", "credential", "key_id", "thumbprint", "certificate_thumbprint", "certificate"),
    "credential_type": ("credential_type", "auth_type", "auth_method"),
    "src_ip_raw": ("source_address", "source_ip", "src_ip", "egress_ip", "egress_address", "client_ip", "ip"),
    "mailbox_id": ("mailbox", "mailbox_id", "target_mailbox", "journal_mailbox"),
    "item_count": ("items", "item_count", "messages", "message_count", "objects", "entries"),
    "bytes_transferred": ("bytes", "bytes_transferred", "byte_count", "transferred_bytes", "size_bytes"),
    "outcome": ("outcome", "status", "result", "state"),
    "reason": ("reason", "error", "error_message", "detail"),
    "host": ("host", "hostname", "node", "worker", "server"),
}
_SERVICES: dict[str, tuple[str, ...]] = {
    "ldap": ("ldap", "ldaps", "ad", "active directory", "directory"),
    "aad": ("aad", "azure ad", "azuread", "azure", "entra", "entra id", "entraid", "oauth"),
    "ews": ("ews", "exchange", "exchange web services"),
    "graph": ("graph", "msgraph", "ms graph", "microsoft graph"),
    "pop3": ("pop3", "pop3s", "pop"),
    "imap": ("imap", "imaps", "imap4"),
    "smtp": ("smtp", "smtps", "submission"),
}
_OUTCOMES: dict[str, tuple[str, ...]] = {
    "success": ("success", "successful", "succeeded", "ok", "completed", "complete", "done", "finished", "true"),
    "failure": ("failure", "failed", "fail", "error", "denied", "rejected", "timeout", "aborted", "false"),
}
_CREDENTIALS: dict[str, tuple[str, ...]] = {
    "cert": ("cert", "certificate", "x509", "client certificate"),
    "secret": ("secret", "client secret", "client_secret"),
    "password": ("password", "basic", "plain", "login"),
    "federated": ("federated", "federation"),
    "token": ("token", "oauth", "bearer", "refresh token"),
    "key": ("key", "api key", "api_key"),
    "none": ("none", "anonymous"),
}
_MUST = ("job_id", "start", "service")
_WRAPPED = re.compile(r'\{\s*"(?:value|data|items|results|records)"\s*:\s*\[\s*(?=\{)')
_LEAST_KNOWN = 5  # columns that must be known, these three among them
_SAID: dict[str, tuple[dict[str, tuple[str, ...]], str | None]] = {
    "service": (_SERVICES, "other"),
    "outcome": (_OUTCOMES, "unknown"),
    "credential_type": (_CREDENTIALS, None),
}


def sniff(head: Head) -> Match | None:
    """Claim CSV whose header names, or JSON whose first object has, a job, its begin and its service."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        names = _first_keys(start)
        one_a_line = start[0] == "{" and _is_object(start.splitlines()[0]) and _WRAPPED.match(start) is None
        framing: Framing = "lines" if one_a_line else "json"
        return _match(names, framing, "jsonl" if one_a_line else "json")
    first = next((line for line in head.lines if line.strip()), "").removeprefix("\ufeff")
    for delimiter in (",", ";", "\t"):
        if first.count(delimiter) >= _LEAST_KNOWN - 1:
            names = [name.strip(' "') for name in first.split(delimiter)]
            return _match(names, "csv" if delimiter == "," else "lines", delimiter)
    return None


def _match(names: list[str], framing: Framing, variant: str) -> Match | None:
    given = {folded(name) for name in names}
    known = [column for column, spelled in _NAMES.items() if given & {folded(name) for name in spelled}]
    strict = given & {folded(name) for name in _NAMES["job_id"] if name != "job"} or "job" in given
    if not strict or not set(_MUST) <= set(known) or len(known) < _LEAST_KNOWN:
        return None
    return Match(0.7, f"job records with {len(known)} known columns", framing, variant)


def _first_keys(text: str) -> list[str]:
    """Keys of the first object in a JSON text, also of one that is cut."""
    begin = text.find("{")
    if begin < 0:
        return []
    wrapped = _WRAPPED.match(text[begin : begin + 1000])
    try:
        found, _ = json.JSONDecoder().raw_decode(text, begin + (wrapped.end() if wrapped else 0))
    except (ValueError, RecursionError):
        return []
    return list(found) if isinstance(found, dict) else []


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: gateway_jobs, ignored or quarantined."""
    rows = mapped_rows.parse(records, ctx, _mapping(ctx.variant or ","), "gateway_jobs").collect()
    event = pl.col("disposition") == "gateway_jobs"
    account, kind = pl.col("principal_id"), pl.col("credential_type")
    plain = pl.col("credential_id").str.strip_prefix("pw:")
    spaced = plain.str.contains(r"^(?:[0-9a-f]{2}[: ])+[0-9a-f]{2}$")
    named = pl.when(spaced).then(plain.str.replace_all("[: ]", "")).otherwise(plain)
    password = (kind == "password").fill_null(value=False)
    rows = rows.with_columns(
        credential_id=pl.when(password).then(pl.lit("pw:") + pl.coalesce(account, plain)).otherwise(named)
    )
    # The same record in two exports is one: all that it says is its id.
    said = [c for c in (*_NAMES, "ts_raw") if c in rows.columns and c not in ("start", "reason")]
    whole = pl.concat_str([pl.col(c).cast(pl.String).fill_null("") for c in said], separator="\x1f")
    return rows.with_columns(source_id=pl.when(event).then(whole)).lazy()


@cache
def _mapping(variant: str) -> Mapping:
    columns = []
    for name, fields in _NAMES.items():
        if name == "start":
            continue
        said, default = _SAID.get(name, ({}, None))
        values = tuple((text, value) for value, texts in said.items() for text in texts)
        columns.append((name, Column(fields, values=values, default=default)))
    is_json = variant in ("json", "jsonl")
    return Mapping(
        name="gateway_jobs",
        table="gateway_jobs",
        framing="json" if variant == "json" else "csv" if variant == "," else "lines",
        columns=tuple(columns),
        time=Time(_NAMES["start"], "any", None, either=True),
        delimiter=None if is_json else variant,
        header=not is_json,
        fold=True,
    )


FORMAT = Format(
    name="gateway_jobs",
    title="Job records of the gateway operator (CSV, JSON)",
    spec="docs/gateway-jobs.md",
    tables=("gateway_jobs",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "the records are the operator's own word: who can change them can hide a job or invent one",
        "CSV without its header is not recognised",
        "a job that used several services or credentials is one record for each",
    ),
)
