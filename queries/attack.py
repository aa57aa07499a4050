"""Coverage by ATT&CK technique: which detections name it, what the design names and none covers, and a Navigator layer.

The techniques are those of ATT&CK 19, Enterprise (https://attack.mitre.org/resources/updates/), which has no tactic
Defense Evasion any more, but Stealth and Defense Impairment, and which replaced Impair Defenses (T1562). Where front
matter has another name, tactic or a replaced id, the technique is counted where it now is, and the difference is told.

A technique that is covered is one that a detection looks for in its own way, in the logs that it reads: it says nothing
about other ways to use the technique.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from queries.catalogue import Attack, Detection

RELEASE = "19"
_ACCOUNTS = ("initial-access", "persistence", "privilege-escalation", "stealth")
_MANIPULATION = ("persistence", "privilege-escalation")

# Name and tactics (short names, sorted) of each technique that the detections or their design name.
TECHNIQUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "T1018": ("Remote System Discovery", ("discovery",)),
    "T1020": ("Automated Exfiltration", ("exfiltration",)),
    "T1021": ("Remote Services", ("lateral-movement",)),
    "T1021.007": ("Cloud Services", ("lateral-movement",)),
    "T1029": ("Scheduled Transfer", ("exfiltration",)),
    "T1030": ("Data Transfer Size Limits", ("exfiltration",)),
    "T1036": ("Masquerading", ("stealth",)),
    "T1048": ("Exfiltration Over Alternative Protocol", ("exfiltration",)),
    "T1048.003": ("Exfiltration Over Unencrypted Non-C2 Protocol", ("exfiltration",)),
    "T1069.002": ("Domain Groups", ("discovery",)),
    "T1070.008": ("Clear Mailbox Data", ("stealth",)),
    "T1071": ("Application Layer Protocol", ("command-and-control",)),
    "T1071.003": ("Mail Protocols", ("command-and-control",)),
    "T1078": ("Valid Accounts", _ACCOUNTS),
    "T1078.004": ("Cloud Accounts", _ACCOUNTS),
    "T1087": ("Account Discovery", ("discovery",)),
    "T1087.002": ("Domain Account", ("discovery",)),
    "T1087.003": ("Email Account", ("discovery",)),
    "T1090": ("Proxy", ("command-and-control",)),
    "T1090.002": ("External Proxy", ("command-and-control",)),
    "T1090.003": ("Multi-hop Proxy", ("command-and-control",)),
    "T1098": ("Account Manipulation", _MANIPULATION),
    "T1098.001": ("Additional Cloud Credentials", _MANIPULATION),
    "T1098.002": ("Additional Email Delegate Permissions", _MANIPULATION),
    "T1098.003": ("Additional Cloud Roles", _MANIPULATION),
    "T1110.003": ("Password Spraying", ("credential-access",)),
    "T1110.004": ("Credential Stuffing", ("credential-access",)),
    "T1114.002": ("Remote Email Collection", ("collection",)),
    "T1114.003": ("Email Forwarding Rule", ("collection",)),
    "T1119": ("Automated Collection", ("collection",)),
    "T1190": ("Exploit Public-Facing Application", ("initial-access",)),
    "T1199": ("Trusted Relationship", ("initial-access",)),
    "T1528": ("Steal Application Access Token", ("credential-access",)),
    "T1534": ("Internal Spearphishing", ("lateral-movement",)),
    "T1550": ("Use Alternate Authentication Material", ("lateral-movement",)),
    "T1550.001": ("Application Access Token", ("lateral-movement",)),
    "T1552.004": ("Private Keys", ("credential-access",)),
    "T1564.008": ("Email Hiding Rules", ("stealth",)),
    "T1606.001": ("Web Cookies", ("credential-access",)),
    "T1606.002": ("SAML Tokens", ("credential-access",)),
    "T1649": ("Steal or Forge Authentication Certificates", ("credential-access",)),
    "T1685": ("Disable or Modify Tools", ("defense-impairment",)),
    "T1685.002": ("Disable or Modify Cloud Log", ("defense-impairment",)),
}
REPLACED = {"T1562": "T1685", "T1562.001": "T1685", "T1562.008": "T1685.002"}

# What the design of the detections wants to see, by technique: the detections that it plans for it.
PLANNED: dict[str, tuple[str, ...]] = {
    "T1018": ("L03",),
    "T1020": ("X01", "X03"),
    "T1021": ("L02",),
    "T1021.007": ("L01",),
    "T1029": ("T09", "X04", "X07"),
    "T1030": ("M02", "X03", "X04"),
    "T1036": ("T04",),
    "T1048": ("X01",),
    "T1048.003": ("X02", "X05"),
    "T1069.002": ("L03",),
    "T1070.008": ("X09",),
    "T1071": ("X07",),
    "T1071.003": ("X02", "X05"),
    "T1078": ("E05", "L01", "L02", "L04", "T07", "T09", "X05"),
    "T1078.004": ("E03", "L07", "T01", "T02", "T03", "T04", "T06", "T08"),
    "T1087": ("L01",),
    "T1087.002": ("L03",),
    "T1087.003": ("L03", "M07"),
    "T1090": ("T04",),
    "T1090.002": ("X08",),
    "T1090.003": ("X08",),
    "T1098": ("E05",),
    "T1098.001": ("L05",),
    "T1098.002": ("L05", "M05", "X06"),
    "T1098.003": ("L05",),
    "T1110.003": ("L04",),
    "T1110.004": ("L04",),
    "T1114.002": ("E06", "L03", "M01", "M02", "M03", "M04", "M05", "M06", "M08", "T05", "X01", "X02", "X03"),
    "T1114.003": ("X06",),
    "T1119": ("M01", "M07"),
    "T1190": ("M05",),
    "T1199": ("L07", "T01", "T02", "T03", "T08"),
    "T1528": ("T05",),
    "T1534": ("X05",),
    "T1550": ("L02",),
    "T1550.001": ("L05", "L06", "T01", "T05"),
    "T1552.004": ("E01",),
    "T1564.008": ("X06",),
    "T1606.001": ("L06",),
    "T1606.002": ("L06",),
    "T1649": ("E01",),
    "T1685.002": ("X09",),
}


@dataclass(frozen=True, slots=True)
class Covered:
    """A technique and the detections that name it; `named` are the ids under which they do, where these differ."""

    technique: str
    name: str
    tactics: tuple[str, ...]
    detections: tuple[str, ...]
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """A technique of the design that no detection names. `nearest`: named sub-techniques, or the named parent."""

    technique: str
    name: str
    tactics: tuple[str, ...]
    planned: tuple[str, ...]
    nearest: tuple[str, ...]


def coverage(detections: Sequence[Detection]) -> tuple[Covered, ...]:
    """The techniques that detections name, by id."""
    found: dict[str, list[tuple[str, Attack]]] = defaultdict(list)
    for detection in detections:
        for attack in detection.attack:
            found[REPLACED.get(attack.technique, attack.technique)].append((detection.id, attack))
    return tuple(_covered(technique, found[technique]) for technique in sorted(found))


def _covered(technique: str, uses: Sequence[tuple[str, Attack]]) -> Covered:
    own = uses[0][1]
    name, tactics = TECHNIQUES.get(technique, (own.name, tuple(sorted({t for _, a in uses for t in a.tactics}))))
    named = {attack.technique for _, attack in uses} - {technique}
    return Covered(technique, name, tactics, tuple(sorted({d for d, _ in uses})), tuple(sorted(named)))


def gaps(detections: Sequence[Detection]) -> tuple[Gap, ...]:
    """The techniques that the design names and no detection does, by id."""
    held = {item.technique for item in coverage(detections)}
    found = []
    for technique in sorted(PLANNED.keys() - held):
        near = {other for other in held if other.startswith(f"{technique}.") or other == technique.partition(".")[0]}
        found.append(Gap(technique, *TECHNIQUES[technique], PLANNED[technique], tuple(sorted(near))))
    return tuple(found)


def differences(detections: Sequence[Detection]) -> tuple[dict[str, str], ...]:
    """Where front matter is not as ATT&CK has it: detection, technique, what."""
    return tuple(
        {"detection": detection.id, "technique": attack.technique, "what": what}
        for detection in detections
        for attack in detection.attack
        for what in _wrong(attack)
    )


def _wrong(attack: Attack) -> list[str]:
    if attack.technique in REPLACED:
        now = REPLACED[attack.technique]
        return [f"is now {now} {TECHNIQUES[now][0]} ({', '.join(TECHNIQUES[now][1])})"]
    if attack.technique not in TECHNIQUES:
        return ["was not compared with ATT&CK"]
    name, tactics = TECHNIQUES[attack.technique]
    wrong = [] if attack.name == name else [f"is called {name}, not {attack.name}"]
    odd = sorted(set(attack.tactics) - set(tactics))
    return wrong + ([f"is not {', '.join(odd)}, but {', '.join(tactics)}"] if odd else [])


def layer(detections: Sequence[Detection]) -> dict[str, Any]:
    """A layer for the ATT&CK Navigator (layer format 4.5): score = number of detections, comment = their ids.

    Techniques of the design that none covers have the score 0. No entry names a tactic, so that a technique is marked
    under each of its own.
    """
    covered = coverage(detections)
    entries = [_entry(item.technique, len(item.detections), _comment(item)) for item in covered]
    entries += [
        _entry(gap.technique, 0, f"No detection; planned: {', '.join(gap.planned)}{_near(gap)}")
        for gap in gaps(detections)
    ]
    return {
        "name": "gatehound detections",
        "versions": {"attack": RELEASE, "navigator": "5.0.0", "layer": "4.5"},
        "domain": "enterprise-attack",
        "description": f"{len(detections)} detections. Score: how many name the technique; 0: planned, and none does.",
        "sorting": 3,
        "layout": {"layout": "side", "showID": True, "showName": True},
        "hideDisabled": False,
        "techniques": sorted(entries, key=lambda entry: str(entry["techniqueID"])),
        "gradient": {
            "colors": ["#f4c7c3", "#cfe8cf", "#2e7d32"],
            "minValue": 0,
            "maxValue": max([len(item.detections) for item in covered] + [1]),
        },
        "legendItems": [{"label": "planned, no detection", "color": "#f4c7c3"}],
        "selectTechniquesAcrossTactics": True,
        "selectSubtechniquesWithParent": False,
    }


def _entry(technique: str, score: int, comment: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"techniqueID": technique, "score": score, "comment": comment, "enabled": True}
    return entry | {"showSubtechniques": "." in technique}


def _comment(item: Covered) -> str:
    replaced = f" (there as {', '.join(item.named)})" if item.named else ""
    return ", ".join(item.detections) + replaced


def _near(gap: Gap) -> str:
    return f"; in part by {', '.join(gap.nearest)}" if gap.nearest else ""
