"""Which rows a rule's log source means: event tables, the formats that fill them, and the names of their fields."""

from collections.abc import Mapping
from dataclasses import dataclass

from data_contracts.errors import RefusedError
from queries.sigma import columns
from queries.sigma.columns import Column
from queries.text import plain

ACCESS, CHANGE, MAIL = "access_events", "change_events", "mail_events"


@dataclass(frozen=True, slots=True)
class View:
    """The rows of one event table that come from a log source.

    Attributes:
        table: event table.
        sources: values of its column `source`; empty for all.
        columns: field (as `columns.folded` writes it) to column.
        formats: the formats whose files hold such rows; empty for any.
        where: further condition, empty for none.
    """

    table: str
    sources: tuple[str, ...]
    columns: Mapping[str, Column]
    formats: tuple[str, ...] = ()
    where: str = ""


_UAL = ("m365_ual",)
_SIGNINS = ("entra_user_signin", "entra_sp_signin", "entra_mi_signin")
_ENTRA = ("entra_signin", "entra_audit")
_EXCHANGE_ONLY = f"{columns.WORKLOAD} = 'Exchange'"

M365 = (View(ACCESS, _UAL, columns.UAL_ACCESS, _UAL), View(CHANGE, _UAL, columns.UAL_CHANGE, _UAL))
M365_EXCHANGE = tuple(View(v.table, v.sources, v.columns, v.formats, _EXCHANGE_ONLY) for v in M365)
AUDIT = (View(CHANGE, ("entra_audit",), columns.ENTRA_AUDIT, _ENTRA),)
SIGN_IN = (View(ACCESS, _SIGNINS, columns.ENTRA_SIGNIN, _ENTRA),)

_M365 = {"m365", "office365", "o365", "microsoft365"}
_M365_SERVICES = {"": M365, "audit": M365, "exchange": M365_EXCHANGE}
_AZURE = {"auditlogs": AUDIT, "signinlogs": SIGN_IN}
_NOT_READ = {
    "threat_management": "alerts of Defender for Cloud Apps",
    "threat_detection": "alerts of Defender for Cloud Apps",
    "riskdetection": "risk detections of Entra ID Protection",
    "pim": "alerts of Privileged Identity Management",
    "activitylogs": "Azure activity logs",
}
# Product of a mail server or gateway: its formats that fill mail_events.
_MAIL: dict[str, tuple[str, ...]] = {
    "postfix": ("postfix",),
    "exim": ("exim",),
    "sendmail": ("sendmail",),
    "mimecast": ("mimecast_siem",),
    "proofpoint": ("proofpoint_pod", "proofpoint_tap"),
    "exchange": ("exchange_msgtrk", "exchange_smtp"),
}
_MAIL_CATEGORIES = {"email", "mail", "smtp"}
_ACCESS: dict[str, tuple[str, ...]] = {name: (name,) for name in ("dovecot", "courier", "cyrus")}
_OWN = "gatehound"


def views(product: str | None, category: str | None, service: str | None) -> tuple[View, ...]:
    """The views of a log source. Raises RefusedError where nothing in an archive answers to it."""
    product, category, service = ((text or "").strip().lower() for text in (product, category, service))
    if service in _NOT_READ and product in {*_M365, "azure", ""}:
        raise RefusedError(f"{_NOT_READ[service]} are not among the logs that are read")
    found = None
    if product in _M365 and not category:
        found = _M365_SERVICES.get(service)
        if service == "messagetrace":
            found = (View(MAIL, ("m365_messagetrace",), columns.MAIL, ("m365_messagetrace",)),)
    elif product == "azure" and not category:
        found = _AZURE.get(service)
    elif product in _MAIL and category in {"", *_MAIL_CATEGORIES} and service in {"", product, *_MAIL_CATEGORIES}:
        found = (View(MAIL, _MAIL[product], columns.MAIL, _MAIL[product]),)
    elif product in _ACCESS and not category and service in {"", product, "imap", "pop3"}:
        found = (View(ACCESS, _ACCESS[product], columns.ACCESS, _ACCESS[product]),)
    elif category in _MAIL_CATEGORIES and not product and not service:
        found = (View(MAIL, (), columns.MAIL),)
    elif product == _OWN and service in (ACCESS, CHANGE, MAIL) and not category:
        found = (View(service, (), columns.own(service)),)
    if found is None:
        parts = {"product": product, "category": category, "service": service}
        told = ", ".join(f"{name} {plain(value)}" for name, value in parts.items() if value)
        raise RefusedError(f"no log of that source is read ({told or 'none named'})")
    return found
