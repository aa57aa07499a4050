"""Texts: places of a template, names of ids, and how a case is told."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from queries import catalogue, engine
from queries.findings import ENTITIES
from queries.testing import database, read_cases
from queries.text import fill, grouped, named, networks, one_in, size, span
from queries.wording import summary

THUMBPRINT = "9e4efe319090e416667c36140d19ca08e4bcbb74"
GUID = "829b326f-f5c8-a819-7019-960cd6431761"
FOLDER = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{n:count tenant}", {"n": 1}, "1 tenant"),
        ("{n:count mailbox/mailboxes}", {"n": 1200}, "1,200 mailboxes"),
        ("a[ on {n:some item}].", {"n": 0}, "a."),
        ("a[ on {n:some item}].", {"n": 2}, "a on 2 items."),
        ("a[ at {t:tenants}].", {"t": [None]}, "a."),
        ("a {n:count item}", {}, "a unknown"),
        ("{a}[ {b}]", {"a": "[{b}]", "b": "{a}"}, "[{b}] {a}"),
        ("{i:Name}", {"i": GUID, "principal_ids": [GUID]}, "The service principal 829b326f…"),
        ("{i:Name}", {"i": GUID}, f"The service principal {GUID}"),
        ("{i:name}", {"i": GUID, "app_ids": [GUID]}, "the application 829b326f…"),
        ("{i:name}", {"i": "pw:a@b.example"}, "the password of a@b.example"),
        ("{i:name}", {"i": THUMBPRINT, "entity_kind": "credential", "credential_ids": [THUMBPRINT]},
         "the certificate 9e4efe31…"),
        ("{n:ops}", {"n": 3, "protocols": ["oauth"], "actions": ["signin"]}, "3 OAuth sign-ins"),
        ("{n:ops}", {"n": 3, "protocols": ["oauth", "ews"]}, "3 operations over EWS and OAuth"),
    ],
)  # fmt: skip
def test_places_of_a_template(template: str, values: dict[str, Any], text: str) -> None:
    assert fill(template, values) == text


def test_words() -> None:
    assert grouped(["pw:a", "pw:b", THUMBPRINT], credential=True) == "the certificate 9e4efe31… and 2 passwords"
    assert named("x\x1b[31m", "account") == "account x\ufffd[31m"
    assert networks(["192.0.2.0/24"], declared=False, source="AS1") == "the undeclared network 192.0.2.0/24 (AS1)"
    assert size(2_882_912) == "2.9 MB"
    assert one_in(0.025) == "1 day in 40"
    first = datetime(2021, 2, 7, 2, 29, 54, tzinfo=UTC)
    assert span(first, first + timedelta(minutes=16)) == "on 2021-02-07 between 02:29 and 02:45 UTC"


def test_every_detection_has_a_sentence_for_a_case() -> None:
    own = {"T01", "T03", "L01", "M01", "X01"}  # told by queries.wording from several findings at once
    assert {detection.id for detection in catalogue.catalogue() if not (detection.step and detection.why)} == own


def test_a_case_tells_in_order_of_time_what_happened_and_why_it_is_unusual() -> None:
    found = []
    for name, of in (("t06_dormant_credential", "T06"), ("m03_read_volume", "M03")):
        case = next(case for case in read_cases(FOLDER / f"{name}.toml") if case.expect)
        window = {
            "window_from": datetime.combine(case.window_from, time(), UTC),
            "window_to": datetime.combine(case.window_to, time(), UTC) + timedelta(days=1),
        }
        detection = catalogue.find(of)
        held = engine.run_detection(database(case.given), detection, detection.values(case.params) | window)
        assert not isinstance(held, str)
        found += held
    found.sort(key=lambda finding: finding.first_seen)
    told = summary(found, {key: tuple(sorted({v for f in found for v in f.entities[key]})) for key in ENTITIES})
    places = [told.find(finding.step) for finding in found]
    assert places == sorted(places)
    assert places[0] > 0
    strongest = max(found, key=lambda finding: finding.score)
    assert told.endswith(strongest.why)
    assert "Also found" not in told
