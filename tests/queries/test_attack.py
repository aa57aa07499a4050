"""Coverage by ATT&CK technique: counted where a technique now is, gaps told, and a layer that the Navigator reads."""

import json
import re
from dataclasses import replace

import pytest

from queries import attack
from queries.catalogue import Attack, Detection, find, load

TACTICS = {
    "initial-access", "persistence", "privilege-escalation", "stealth", "defense-impairment", "credential-access",
    "discovery", "lateral-movement", "collection", "command-and-control", "exfiltration",
}  # fmt: skip


def naming(detection: str, *attacks: Attack) -> Detection:
    return replace(find("T01"), id=detection, attack=attacks)


def test_the_table_of_techniques_holds_together() -> None:
    for technique, (name, tactics) in attack.TECHNIQUES.items():
        assert re.fullmatch(r"T\d{4}(\.\d{3})?", technique)
        assert name
        assert tactics == tuple(sorted(tactics))
        assert set(tactics) <= TACTICS
    assert set(attack.PLANNED) <= set(attack.TECHNIQUES)
    assert set(attack.REPLACED.values()) <= set(attack.TECHNIQUES)
    assert not set(attack.REPLACED) & set(attack.TECHNIQUES)


def test_detections_are_counted_by_technique() -> None:
    mail = Attack("T1114.002", "Remote Email Collection", ("collection",))
    (one,) = attack.coverage([naming("M02", mail), naming("M01", mail)])
    assert one == attack.Covered("T1114.002", "Remote Email Collection", ("collection",), ("M01", "M02"))
    assert attack.coverage([]) == ()
    assert attack.differences([naming("M02", mail)]) == ()


def test_a_replaced_technique_counts_where_it_now_is() -> None:
    old = naming("X09", Attack("T1562.008", "Disable or Modify Cloud Logs", ("defense-evasion",)))
    (one,) = attack.coverage([old])
    assert (one.technique, one.name, one.tactics) == (
        "T1685.002",
        "Disable or Modify Cloud Log",
        ("defense-impairment",),
    )
    assert (one.detections, one.named) == (("X09",), ("T1562.008",))
    (entry,) = [e for e in attack.layer([old])["techniques"] if e["score"]]
    assert entry["techniqueID"] == "T1685.002"
    assert entry["comment"] == "X09 (there as T1562.008)"
    (wrong,) = attack.differences([old])
    assert wrong["what"] == "is now T1685.002 Disable or Modify Cloud Log (defense-impairment)"


@pytest.mark.parametrize(
    ("named", "what"),
    [
        (Attack("T1036", "Masquerade", ("stealth",)), "is called Masquerading, not Masquerade"),
        (Attack("T1036", "Masquerading", ("defense-evasion",)), "is not defense-evasion, but stealth"),
        (Attack("T9999", "Magic", ("impact",)), "was not compared with ATT&CK"),
    ],
)
def test_front_matter_that_differs_is_told(named: Attack, what: str) -> None:
    (wrong,) = attack.differences([naming("T04", named)])
    assert wrong == {"detection": "T04", "technique": named.technique, "what": what}


def test_a_technique_that_is_not_in_the_table_keeps_its_own_words() -> None:
    (one,) = attack.coverage([naming("T04", Attack("T9999", "Magic", ("impact",)))])
    assert (one.name, one.tactics) == ("Magic", ("impact",))


def test_gaps_are_what_the_design_names_and_none_covers() -> None:
    assert {gap.technique for gap in attack.gaps([])} == set(attack.PLANNED)
    held = [naming("L05", Attack("T1098.001", "Additional Cloud Credentials", ("persistence",)))]
    missing = {gap.technique: gap for gap in attack.gaps(held)}
    assert "T1098.001" not in missing
    assert missing["T1098"].nearest == ("T1098.001",)
    assert missing["T1534"].nearest == ()
    assert missing["T1534"].planned == ("X05",)
    parent = [naming("L01", Attack("T1087", "Account Discovery", ("discovery",)))]
    assert {g.technique: g.nearest for g in attack.gaps(parent)}["T1087.002"] == ("T1087",)


def test_every_technique_of_the_catalogue_is_covered_or_a_gap() -> None:
    detections = load()
    covered = {item.technique for item in attack.coverage(detections)}
    assert covered | {gap.technique for gap in attack.gaps(detections)} >= set(attack.PLANNED)
    assert {d for item in attack.coverage(detections) for d in item.detections} == {d.id for d in detections}


def test_the_layer_is_of_format_4_5() -> None:
    detections = load()
    layer = json.loads(json.dumps(attack.layer(detections)))
    assert layer["versions"] == {"attack": attack.RELEASE, "navigator": "5.0.0", "layer": "4.5"}
    assert layer["domain"] == "enterprise-attack"
    ids = [entry["techniqueID"] for entry in layer["techniques"]]
    assert ids == sorted(set(ids))
    scores = {entry["techniqueID"]: entry["score"] for entry in layer["techniques"]}
    assert scores == {item.technique: len(item.detections) for item in attack.coverage(detections)} | {
        gap.technique: 0 for gap in attack.gaps(detections)
    }
    assert layer["gradient"]["maxValue"] == max(scores.values())
    assert all(entry["comment"] and "tactic" not in entry for entry in layer["techniques"])


def test_the_catalogue_names_techniques_as_attack_does() -> None:
    assert attack.differences(load()) == ()
