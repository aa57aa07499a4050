"""A case in words: one paragraph for its summary, and a short heading.

Both are made from what the findings hold, and name each thing once: what happened in order of time, how far it went,
why it is unusual, and, where every sign is weak and declared, what it probably is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from queries.findings import Finding
from queries.text import (
    count,
    grouped,
    kind_of,
    listed,
    named,
    networks,
    one_in,
    operations,
    plain,
    protocols,
    size,
    span,
)

WORDS = 115  # in a summary, about
TENANTS_NAMED = 3
_WEAK = ("info", "low")
_SOURCE = ("T01", "T03", "L01")  # whose facts say whether the source is declared


def summary(findings: Sequence[Finding], entities: Mapping[str, tuple[str, ...]]) -> str:
    """A case in one paragraph.

    Args:
        findings: of the case, in order of time.
        entities: all that they name, by key.
    """
    best: dict[str, Finding] = {}
    for finding in findings:
        if finding.detection not in best or finding.score > best[finding.detection].score:
            best[finding.detection] = finding
    if len(best) == 1 and all(finding.step for finding in findings):
        return _alone(findings)
    lead, why, close = _lead(findings, entities, best), _why(findings, best), _probably(findings, entities)
    room = WORDS - sum(len(text.split()) for text in (lead, why, close))
    told, left = [], 0
    for place, _, step in sorted(_steps(findings), key=lambda item: (-item[1], item[0])):  # the weightiest first
        if len(step.split()) <= room:
            told.append((place, step))
            room -= len(step.split())
        else:
            left += 1
    steps = [step for _, step in sorted(told)]
    rest = f"Besides, {count(left, 'sign')} of another kind, told below." if left else ""
    return " ".join(text for text in (lead, *steps, rest, why, close) if text)


def _alone(findings: Sequence[Finding]) -> str:
    """A case of one detection: what its strongest finding says, and how many more there are."""
    strongest = min(findings, key=lambda f: (-f.score, f.first_seen, f.finding_id))
    text = strongest.explanation
    if len(text.split()) > WORDS:
        text = f"{strongest.step} {strongest.why}".strip()
    more = len(findings) - 1
    return (
        f"{text} {count(more, 'more finding')} of the same kind {'belongs' if more == 1 else 'belong'} here."
        if more
        else text
    )


def heading(case: Mapping[str, Any]) -> str:
    """A case as ``hunt -t json`` has it, its findings with entities and severity besides, in one short line."""
    found, entities = case["findings"], case["entities"]
    weights: dict[str, float] = {}
    for finding in found:
        weights[finding["detection"]] = max(weights.get(finding["detection"], 0.0), finding["score"])
    nets, tenants, boxes = entities["source_networks"], entities["tenant_ids"], entities["mailboxes"]
    where = _at(tenants)
    if case["severity"] in _WEAK and nets and weights.keys() & {"T01", "T03", "X01"}:
        return f"{_net(nets, 'Declared')} new{where}: probably a change of egress"
    readers = [f for f in found if f["detection"] == "X01" and f["entities"]["source_networks"]]
    read = sorted({box for f in readers for box in f["entities"]["mailboxes"]})
    second = f"econd reader of {_boxes(read, 'journal mailbox')}"
    opened = sorted({box for f in found if f["detection"] == "M01" for box in f["entities"]["mailboxes"]})
    if read and "T03" not in weights and weights["X01"] >= max(weights.values()):
        return f"S{second}"
    who = _upper(_subject(entities))
    extra = f"; {count(len(opened), 'mailbox', 'mailboxes')} opened" if opened else f"; s{second}" if read else ""
    strongest = min(found, key=lambda f: (-f["score"], f["first_seen"], f["finding_id"]))
    told = f"{plain(strongest['title'])}{where}"
    if weights.keys() & {"T01", "T03"}:
        told = f"{who} used from a new network{where}{extra}"
    elif opened:
        told = f"{who} opened {count(len(opened), 'mailbox', 'mailboxes')} of others{where}"
    elif "L01" in weights and nets:
        told = f"{_net(nets, 'New')} used over several protocols{where}"
    elif "X01" in weights and boxes:
        told = f"{_upper(_boxes(boxes, 'journal mailbox'))}: messages missing or copied"
    return told


def _boxes(boxes: Sequence[str], noun: str) -> str:
    return plain(boxes[0]) if len(boxes) == 1 else count(len(boxes), noun, f"{noun}es")


def _net(nets: Sequence[str], word: str) -> str:
    return f"{word} network {plain(nets[0])}" if len(nets) == 1 else f"{len(nets)} {word.lower()} networks"


def _at(tenants: Sequence[str]) -> str:
    return f" at tenant {plain(tenants[0])}" if len(tenants) == 1 else f" at {len(tenants)} tenants" if tenants else ""


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _subject(entities: Mapping[str, Sequence[str]]) -> str:
    """Who acted, without an article: one by its name, several by their number."""
    for key in ("credential_ids", "principal_ids", "app_ids"):
        values = entities[key]
        if not values:
            continue
        is_credential, apps = key == "credential_ids", values if key == "app_ids" else ()
        if len(values) == 1:
            return named(values[0], kind_of(values[0], apps, credential=is_credential))
        kinds = {kind_of(value, apps, credential=is_credential) for value in values}
        return count(len(values), kinds.pop() if len(kinds) == 1 else "credential" if is_credential else "principal")
    return "an unnamed caller"


def _lead(findings: Sequence[Finding], entities: Mapping[str, tuple[str, ...]], best: Mapping[str, Finding]) -> str:
    """When, who, from where, at whom, and how much in all."""
    sourced = [finding for finding in findings if finding.entities["source_networks"]] or findings
    first, last = sourced[0].first_seen, max(finding.last_seen for finding in sourced)
    ids = entities["credential_ids"] or entities["principal_ids"] or entities["app_ids"]
    is_credential = bool(entities["credential_ids"])
    apps = () if is_credential or entities["principal_ids"] else ids
    who = grouped(ids, apps, credential=is_credential) if ids else "an unnamed caller"
    nets = entities["source_networks"]
    systems = sorted({str(source) for f in findings if (source := f.facts.get("source") or "").startswith("AS")})
    told = networks(nets, declared=_declared(findings), source=systems[0] if len(systems) == 1 else "") if nets else ""
    tenants = entities["tenant_ids"]
    where = f" at tenant {plain(tenants[0])}" if len(tenants) == 1 else ""
    if len(tenants) > 1:
        all_tenants = max((int(f.facts.get("n_all_tenants") or 0) for f in findings), default=0)
        of = f" of {all_tenants} active" if all_tenants >= len(tenants) else ""
        where = f" at {len(tenants)}{of} tenants ({listed(tenants, TENANTS_NAMED)})"
    sentence = f"{_upper(span(first, last))}, {who} {'was' if len(ids) <= 1 else 'were'} used"
    return f"{sentence}{' from ' + told if told else ''}{where}{_amount(best)}."


def _declared(findings: Sequence[Finding]) -> bool | None:
    """Whether all sources are declared; none where no finding says so."""
    stated = [bool(f.facts["is_declared"]) for f in findings if f.detection in _SOURCE and "is_declared" in f.facts]
    stated += [f.facts["is_declared_net"] for f in findings if f.facts.get("is_declared_net") is not None]
    return all(stated) if stated and (all(stated) or not any(stated)) else None


def _amount(best: Mapping[str, Finding]) -> str:
    """How much was done from the source, from the finding that covers most of it."""
    for detection in ("T03", "L01", "T01"):
        facts = best[detection].facts if detection in best else {}
        if facts.get("n_ops"):
            items = f" on {count(facts['n_items'], 'item')}" if facts.get("n_items") else ""
            return f": {operations(facts['n_ops'], facts.get('protocols') or (), facts.get('actions'))}{items}"
    return ""


def _steps(findings: Sequence[Finding]) -> Iterable[tuple[tuple[Any, ...], float, str]]:
    """What happened besides, one sentence each, with its place in time and its weight."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kind = "reader" if finding.entities["source_networks"] else str(finding.facts.get("flag") or "")
        groups.setdefault((finding.detection, kind if finding.detection == "X01" else ""), []).append(finding)
    for (detection, _), held in groups.items():
        strongest = min(held, key=lambda f: (-f.score, f.first_seen, f.finding_id))
        step = strongest.step
        if detection in _TELL:
            step = "" if detection == "L01" and ("T03", "") in groups else _TELL[detection](held)
        elif not step and detection not in ("T01", "T03"):
            step = f"Also found: {plain(strongest.title)}."
        elif step and len(held) > 1:
            step = f"{step.removesuffix('.')}, and {len(held) - 1} more like it."
        if step:
            yield (held[0].first_seen, held[0].finding_id), strongest.score, step


def _opened(held: Sequence[Finding]) -> str:
    boxes = {box for finding in held for box in finding.entities["mailboxes"]}
    if not boxes:
        return ""
    tenants = sorted({tenant for finding in held for tenant in finding.entities["tenant_ids"]})
    when = span(held[0].first_seen, max(finding.last_seen for finding in held))
    n_items = sum(int(finding.facts.get("n_items") or 0) for finding in held)
    items = f" ({count(n_items, 'item')})" if n_items else ""
    return f"{_upper(when)}, {count(len(boxes), 'mailbox', 'mailboxes')} of others{items} were opened{_at(tenants)}."


def _walked(held: Sequence[Finding]) -> str:
    tenants = sorted({tenant for finding in held for tenant in finding.entities["tenant_ids"]})
    used = {name for finding in held for name in finding.facts.get("path") or ()}
    return f"{_upper(_at(tenants).strip())}, it went over {protocols(used)}." if used and tenants else ""


def _journal(held: Sequence[Finding]) -> str:
    boxes = sorted({box for finding in held for box in finding.entities["mailboxes"]})
    if not boxes:
        return ""
    what = plain(boxes[0]) if len(boxes) == 1 else count(len(boxes), "journal mailbox", "journal mailboxes")
    taken = sum(int(f.facts.get("n_retrieved") or 0) for f in held)
    weight = sum(int(f.facts.get("n_bytes") or 0) for f in held)
    amount = f"{count(taken, 'message')}{f' ({size(weight)})' if weight else ''}"
    if held[0].entities["source_networks"]:
        if all(f.severity in _WEAK for f in held):
            return f"The source took {amount} from {what}."
        days = max(int(f.facts.get("n_bad_days") or 0) for f in held)
        return f"A second reader took {amount} from {what}" + (f" on {count(days, 'day')}." if days else ".")
    when = span(held[0].first_seen, max(finding.last_seen for finding in held))
    delivered = sum(int(f.facts.get("n_delivered") or 0) for f in held)
    match held[0].facts.get("flag"):
        case "messages_vanish":
            lost = f"{max(0, delivered - taken):,}"
            return f"{_upper(when)}, {lost} of {count(delivered, 'delivered message')} vanished from {what}."
        case "second_copy":
            return f"{_upper(when)}, {what} gave out {amount} though it received {delivered:,}."
        case _:
            return f"{_upper(when)}, {what} was read, but no longer emptied."


_TELL: Mapping[str, Callable[[Sequence[Finding]], str]] = {"M01": _opened, "L01": _walked, "X01": _journal}


def _why(findings: Sequence[Finding], best: Mapping[str, Finding]) -> str:
    """Why it is unusual: the habit that it breaks."""
    facts = best["T01"].facts if "T01" in best else {}
    known = ""
    if "T03" in best and "n_tenants_before" in best["T03"].facts:
        known = "no tenant had" if not best["T03"].facts["n_tenants_before"] else "only one tenant had"
    if facts.get("n_active_days"):
        used = [finding for finding in findings if finding.detection == "T01"]
        ids = {str(finding.facts["entity_id"]) for finding in used}
        days = count(min(int(finding.facts["n_active_days"]) for finding in used), "active day")
        kind = kind_of(
            ids.copy().pop(), facts.get("app_ids") or (), credential=facts.get("entity_kind") == "credential"
        )
        text = f"In {days} before, the {kind} had never been used from there"
        if len(ids) > 1:
            text = f"In at least {days} before, {_judged(used)} had never been used from there"
        elif facts.get("p_new"):
            text += f" (a new source shows on about {one_in(facts['p_new'])})"
        is_weak = all(finding.severity in _WEAK for finding in findings)
        return f"{text}{f', and {known} seen the source' if known and not is_weak else ''}."
    if known:
        return f"Before, {known} seen the source."
    for detection in ("M01", "X01"):
        if detection in best and best[detection].facts.get("normal"):
            return plain(best[detection].facts["normal"])
    others = sorted(best.values(), key=lambda f: (-f.score, f.first_seen, f.finding_id))
    return next((finding.why for finding in others if finding.why), "")


def _judged(findings: Iterable[Finding]) -> str:
    """Whose history was looked at: one by its name, several by their number."""
    ids: dict[bool, set[str]] = {True: set(), False: set()}
    apps = set()
    for finding in findings:
        ids[finding.facts.get("entity_kind") == "credential"].add(str(finding.facts["entity_id"]))
        apps |= set(finding.entities["app_ids"]) - set(finding.entities["principal_ids"])
    told = [grouped(held, apps, credential=is_credential) for is_credential, held in ids.items() if held]
    return " and ".join(told)


def _probably(findings: Sequence[Finding], entities: Mapping[str, tuple[str, ...]]) -> str:
    """What a case is most likely, where all its signs are weak and come from declared networks."""
    if not entities["source_networks"] or any(f.severity not in _WEAK for f in findings) or not _declared(findings):
        return ""
    n = len(entities["tenant_ids"])
    signs = ["declared network"]
    if not any(f.facts.get("is_new_client") or f.facts.get("has_new_client") for f in findings):
        signs.append("no new client")
    signs += [f"{n} tenants at once"] if n > 1 else []
    return f"Probably a change of egress: {', '.join(signs)}. Confirm it with its owner."
