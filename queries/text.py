"""Values from logs in text and SQL: whoever wrote the log must not be able to write the sentence or the statement."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

LONGEST = 200  # characters of one value in a sentence
MOST = 5  # values of a list in a sentence

_PLACE = re.compile(r"\{(\w+)(?::(\w+)((?: [^{}]+)?))?\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_PLAIN = re.compile(r"[ -~]*")
_UNSAFE_CATEGORIES = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def plain(value: Any) -> str:  # noqa: PLR0911 - one line per kind of value
    """A value as it may stand in a sentence: one line, no control or direction characters, of bounded length."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        clean = "".join("\ufffd" if _is_unsafe(character) else character for character in value[: LONGEST + 1])
        return clean if len(clean) <= LONGEST else f"{clean[:LONGEST]}…"
    if isinstance(value, Iterable):
        values = [item for item in value if item is not None]
        shown = ", ".join(plain(item) for item in values[:MOST])
        return f"{shown} and {len(values) - MOST} more" if len(values) > MOST else shown or "none"
    return plain(str(value))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """The template with its places filled once; what stands in a value is never read as a template.

    A place is {name}, or {name:form} or {name:form word} with a form of `FORMS`; it reads "unknown" where the value is
    missing. What stands in [brackets] is left out where a value in it is missing.
    """
    parts = _OPTIONAL.split(template)
    return "".join(_filled(part, values, whole=place % 2 == 1) for place, part in enumerate(parts))


def _filled(template: str, values: Mapping[str, Any], *, whole: bool) -> str:
    lacks = False

    def one(place: re.Match[str]) -> str:
        nonlocal lacks
        value = values.get(place[1])
        form = FORMS[place[2]] if place[2] else None
        empty = value is None or value in ("", [])
        text = None if empty else form(value, place[3].strip(), values) if form else plain(value)
        lacks = lacks or text is None
        return plain(None if empty else value) if text is None else text

    text = _PLACE.sub(one, template)
    return "" if whole and lacks else text


def count(n: int, one: str, many: str | None = None) -> str:
    """A number and its noun: "1 tenant", "3 tenants"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(values: Sequence[Any], most: int = MOST) -> str:
    """Values as a sentence lists them: "a, b and c", "a, b and 4 more"."""
    shown = [plain(value) for value in values[:most]]
    rest = [f"{len(values) - most:,} more"] if len(values) > most else []
    return _joined(shown + rest)


def size(n: float) -> str:
    """Bytes in words, in decimal units."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "KB")):
        if n >= 10**power:
            return f"{n / 10**power:.1f} {unit}"
    return count(int(n), "byte")


def span(first: datetime, last: datetime) -> str:
    """When something happened, to the minute: "on 2021-02-07 between 02:29 and 02:45 UTC"."""
    a, b = (f"{value.astimezone(UTC):%Y-%m-%d %H:%M}" for value in (first, last))
    if a == b:
        return f"on {a} UTC"
    return f"on {a[:10]} between {a[11:]} and {b[11:]} UTC" if a[:10] == b[:10] else f"between {a} and {b} UTC"


def kind_of(value: str, apps: Iterable[str] = (), *, service: bool = True, credential: bool = False) -> str:
    """What an id names, in a word: password, certificate, key, credential, application, service principal, account."""
    if value.startswith("pw:"):
        return "password"
    if value in apps:
        return "application"
    if credential:
        return "certificate" if _THUMBPRINT.fullmatch(value) else "key" if _GUID.fullmatch(value) else "credential"
    return "service principal" if service and _GUID.fullmatch(value) else "account"


def short(value: str) -> str:
    """A GUID or thumbprint by its first eight characters; anything else as it is."""
    return f"{value[:8]}…" if _THUMBPRINT.fullmatch(value) or _GUID.fullmatch(value) else plain(value)


def named(value: str, kind: str, *, is_told: bool = True) -> str:
    """An id with its kind: "certificate 9e4efe31…"; in full where it is told nowhere else."""
    if kind == "password":
        return f"password of {plain(value.removeprefix('pw:'))}"
    return f"{kind} {short(value) if is_told else plain(value)}"


def grouped(values: Iterable[str], apps: Iterable[str] = (), *, service: bool = True, credential: bool = False) -> str:
    """Ids by kind: one by its name, several by their number ("the certificate 9e4efe31… and 5 passwords")."""
    kinds: dict[str, list[str]] = {}
    for value in sorted(set(values)):
        kinds.setdefault(kind_of(value, apps, service=service, credential=credential), []).append(value)
    return _joined(
        [
            f"the {named(held[0], kind)}" if len(held) == 1 else count(len(held), kind)
            for kind, held in sorted(kinds.items())
        ]
    )


def networks(nets: Sequence[str], *, declared: bool | None, source: str = "") -> str:
    """Networks, whether they are declared, and their autonomous system where it is known."""
    word = "" if declared is None else "declared " if declared else "undeclared "
    system = f" ({plain(source)})" if source.startswith("AS") else ""
    if len(nets) == 1:
        return f"the {word}network {plain(nets[0])}{system}"
    return f"{len(nets)} {word}networks{system and ' of ' + plain(source)} ({listed(nets)})"


def protocols(names: Iterable[str]) -> str:
    """Protocols as people write them."""
    return listed([_PROTOCOLS.get(name, name) for name in names])


def operations(n: int, used: Sequence[str], actions: Sequence[str] | None = None) -> str:
    """How much was done, and over what: "23 OAuth sign-ins", "1,303 operations over EWS and OAuth"."""
    noun = "sign-in" if actions and set(actions) <= {"signin", "auth"} else "operation"
    used = sorted(used)
    if len(used) == 1:
        return count(n, f"{protocols(used)} {noun}")
    return count(n, noun) + (f" over {protocols(used)}" if used else "")


def one_in(share: float) -> str:
    """A share of days in words: "1 day in 40"."""
    return f"1 day in {max(1, round(1 / share)):,}" if share > 0 else "no day"


_GUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_THUMBPRINT = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
_PROTOCOLS = {"oauth": "OAuth", "graph": "Graph", "exchange": "Exchange", "directory": "directory"} | {
    name: name.upper() for name in ("ews", "pop3", "imap", "smtp", "ldap", "mapi", "eas", "owa", "http")
}
_TOLD = ("credential_ids", "principal_ids", "app_ids")  # facts that are told in full as entities of the finding


def _joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0] if parts else "none"


def _name(value: Any, _: str, values: Mapping[str, Any]) -> str:
    text, apps = str(value), values.get("app_ids") or ()
    kind = kind_of(
        text,
        apps,
        service=values.get("is_service") is not False,
        credential=values.get("entity_kind") == "credential",
    )
    return "the " + named(text, kind, is_told=any(text in (values.get(key) or ()) for key in _TOLD))


def _names(value: Any, _: str, values: Mapping[str, Any]) -> str:
    held = values.get("credential_ids") or ()
    parts = [[v for v in value if v in held], [v for v in value if v not in held]]
    told = [
        grouped(part, values.get("app_ids") or (), service=values.get("is_service") is not False, credential=place == 0)
        for place, part in enumerate(parts)
        if part
    ]
    return _joined(told)


def _nets(value: Any, _: str, values: Mapping[str, Any]) -> str:
    declared = values["is_declared_net"] if "is_declared_net" in values else bool(values.get("is_declared"))
    return networks(value, declared=declared, source=str(values.get("source") or ""))


def _count(value: Any, word: str, _: Mapping[str, Any]) -> str:
    one, _slash, many = word.partition("/")
    return count(int(value), one, many or None)


def _tenants(value: Any, _: str, __: Mapping[str, Any]) -> str | None:
    known = [tenant for tenant in value if tenant is not None]
    if not known:
        return None
    return f"tenant {plain(known[0])}" if len(known) == 1 else f"{len(known)} tenants ({listed(known)})"


def _span(_: Any, __: str, values: Mapping[str, Any]) -> str:
    return span(values["first_seen"], values["last_seen"])


def _days(_: Any, __: str, values: Mapping[str, Any]) -> str:
    a, b = (f"{values[name].astimezone(UTC):%Y-%m-%d}" for name in ("first_seen", "last_seen"))
    return f"on {a}" if a == b else f"from {a} to {b}"


def _ops(value: Any, _: str, values: Mapping[str, Any]) -> str:
    return operations(int(value), values.get("protocols") or (), values.get("actions"))


Form = Callable[[Any, str, Mapping[str, Any]], "str | None"]

FORMS: Mapping[str, Form] = {
    "count": _count,
    "some": lambda value, word, values: _count(value, word, values) if value else None,
    "list": lambda value, *_: listed(value),
    "size": lambda value, *_: size(value) if value else None,
    "span": _span,
    "days": _days,
    "Days": lambda *place: _upper(_days(*place)),
    "name": _name,
    "Name": lambda *place: _upper(_name(*place)),
    "names": _names,
    "nets": _nets,
    "Nets": lambda *place: _upper(_nets(*place)),
    "tenants": _tenants,
    "protocols": lambda value, *_: protocols(value),
    "ops": _ops,
    "one_in": lambda value, *_: one_in(value),
}
"""How a place may be filled: from the value, the words after the form's name, and all values; none for "missing"."""


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def iso(value: datetime) -> str:
    """UTC, ISO 8601 with Z; microseconds only where there are any."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def literal(value: Any) -> str:  # noqa: PLR0911 - one line per kind of value
    """A value as a DuckDB literal on one line.

    Quotes are doubled; characters that a terminal or an editor would act on (line ends, escapes, direction marks)
    become chr(n), so that what is pasted is what is seen.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return f"timestamptz '{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'"
    if isinstance(value, date):
        return f"date '{value.isoformat()}'"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text):
        return _quoted(text)
    parts, run = [], ""
    for character in text:
        if _is_unsafe(character):
            parts += [_quoted(run)] if run else []
            parts.append(f"chr({ord(character)})")
            run = ""
        else:
            run += character
    parts += [_quoted(run)] if run else []
    return parts[0] if len(parts) == 1 else f"({' || '.join(parts)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE_CATEGORIES
