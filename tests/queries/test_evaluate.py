"""The evaluation's own arithmetic, on cases and truth made by hand."""

import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate import baselines, figures, judge, run, worlds
from tests.evaluate.document import document
from tests.evaluate.judge import Claim, Judged, Step

STOLEN = {
    "step": "A2-read-oak", "campaign": "A", "tenant_id": "oak", "credential_id": "cert-1", "principal_id": "sp-oak", "app_id": "app",
    "network": "192.0.2.0/24", "source_ips": ["192.0.2.7"], "mailboxes": ["a@oak.example", "b@oak.example"],
    "detections": ["T01", "M02"], "first_seen": "2021-02-06T02:09:36Z",
}  # fmt: skip
POLLED = STOLEN | {
    "step": "D1-journal-elm", "campaign": "D", "tenant_id": "elm", "credential_id": "pw:journal@elm.example",
    "principal_id": "journal@elm.example", "network": "198.51.100.0/24", "source_ips": ["198.51.100.9"],
    "mailboxes": ["journal@elm.example"], "detections": ["X01"], "first_seen": "2021-02-08T00:00:00Z",
}  # fmt: skip
EGRESS = {
    "id": "N1-egress",
    "network": "203.0.113.0/24",
    "tenant_ids": ["oak"],
    "near_miss_of": ["T01"],
    "first_seen": "2021-02-05T00:00:00Z",
}
TRUTH = [Step.of(entry) for entry in (STOLEN, POLLED, EGRESS)]
FIRST = date(2021, 2, 6)


def said(name: str = "F-1", day: int = 6, score: float = 50.0, detection: str = "T01", **named: Any) -> Claim:
    """A claim of ten rows that names nothing and holds nothing, but for what is given."""
    sets = {key: frozenset(named.pop(key, ())) for key in ("sources", "identities", "mailboxes")}
    return Claim(
        name,
        detection,
        date(2021, 2, day),
        score,
        named.pop("severity", "medium"),
        **sets,
        **({"rows": 10, "labels": {}} | named),
    )


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        (said(labels={"A2-read-oak": 5}), {"A"}),  # half of its rows
        (said(labels={"A2-read-oak": 4}), set()),  # less, and it names nobody
        (said(labels={"A2-read-oak": 1}, rows=20, sources=["192.0.2.0/24"]), {"A"}),
        (
            said(labels={"A2-read-oak": 1}, rows=21, sources=["192.0.2.0/24"]),
            set(),
        ),  # a network that others use as well
        (said(labels={"A2-read-oak": 1}, rows=20, sources=["192.0.2.7"]), {"A"}),  # an address within the network
        (said(labels={"A2-read-oak": 1}, sources=["192.0.3.0/24", "no network"]), set()),
        (said(sources=["192.0.2.0/24"], identities=["cert-1"], mailboxes=["a@oak.example"]), set()),  # no planted row
        (said(labels={"A2-read-oak": 1}, mailboxes=["a@oak.example"]), {"A"}),
        (said(labels={"A2-read-oak": 1}, mailboxes=["a@oak.example", "z@oak.example"]), set()),  # somebody else's too
        (said(labels={"A2-read-oak": 1}, rows=30, mailboxes=["a@oak.example"]), set()),  # too few
        (said(labels={"A2-read-oak": 1}, rows=20, identities=["sp-oak"]), {"A"}),
        (said(labels={"A2-read-oak": 1}, rows=21, identities=["sp-oak"]), set()),
        (said(labels={"A2-read-oak": 1}, identities=["sp-other"]), set()),  # somebody else in the same tenant
        (said(labels={"N1-egress": 10}, sources=["203.0.113.0/24"]), set()),
        (said(labels={"A2-read-oak": 5, "D1-journal-elm": 5}), {"A", "D"}),
    ],
)
def test_only_what_rests_on_planted_records_hits(claim: Claim, found: set[str]) -> None:
    assert judge.hits([said("F-0"), claim], TRUTH) == found


def test_a_harmless_event_is_named_by_its_records() -> None:
    assert judge.named([said(labels={"N1-egress": 6})], TRUTH) == {"N1-egress"}
    assert judge.named([said(labels={"N1-egress": 1}, sources=["203.0.113.0/24"])], TRUTH) == {"N1-egress"}
    assert judge.named([said(labels={"N1-egress": 4}, identities=["cert-1"])], TRUTH) == set()
    assert judge.named([said(sources=["203.0.113.0/24"])], TRUTH) == set()


def test_the_budget_cuts_each_day_by_score() -> None:
    claims = [
        said("F-low", 6, 10.0, labels={"A2-read-oak": 9}), said("F-high", 6, 90.0),
        said("F-next", 7, 5.0, labels={"D1-journal-elm": 9}),
    ]  # fmt: skip
    days = judge.by_day(claims, judge.singly, grows=False)
    one, two = (judge.budgeted(days, budget, TRUTH) for budget in (1, 2))
    assert [sorted(case.ids) for case in one.shown] == [["F-high"], ["F-next"]]
    assert one.found == {"D": date(2021, 2, 7)}
    assert two.found == {"A": FIRST, "D": date(2021, 2, 7)}


def test_a_case_that_grows_takes_a_place_and_counts_once() -> None:
    claims = [said("F-1", 6), said("F-2", 8, 60.0, labels={"A2-read-oak": 10}), said("F-9", 8, 55.0)]

    def linked(known: Any) -> list[tuple[float, list[Claim]]]:
        one, other = [c for c in known if c.id != "F-9"], [c for c in known if c.id == "F-9"]
        return [(sum(c.score for c in group), group) for group in (one, other) if group]

    outcome = judge.budgeted(judge.by_day(claims, linked, grows=True), 1, TRUTH)
    assert [sorted(case.ids) for case in outcome.shown] == [["F-1", "F-2"]]
    assert outcome.found == {"A": date(2021, 2, 8)}


def test_area_under_precision_and_recall() -> None:
    right, wrong, other = (
        Judged(FIRST, 1.0, (said(labels=labels),)) for labels in ({"A2-read-oak": 10}, {}, {"D1-journal-elm": 10})
    )
    assert judge.average_precision([right, other, wrong], TRUTH) == 1.0
    assert judge.average_precision([wrong, right, right, other], TRUTH) == pytest.approx(0.5 * 1 / 2 + 0.5 * 3 / 4)
    assert judge.average_precision([wrong], TRUTH) == 0.0
    assert judge.average_precision([wrong], TRUTH[2:]) is None


def test_expected_detections_are_met_by_their_own_findings() -> None:
    claims = [said(labels={"A2-read-oak": 10}, detection="T01"), said(labels={"A2-read-oak": 10}, detection="X01")]
    assert judge.expected(claims, TRUTH) == {"M02": (1, 0), "T01": (1, 1), "X01": (1, 0)}


def test_an_interval_is_the_same_each_time_and_of_the_seeds() -> None:
    pairs = [(1, 1), (0, 1), (1, 1), (1, 1)]
    value, low, high, top, bottom = figures.ratio(pairs)
    assert (value, top, bottom) == (0.75, 3, 4)
    assert 0 <= low < 0.75 < high <= 1
    random.seed(99)
    assert figures.ratio(pairs) == [value, low, high, top, bottom]
    assert figures.ratio([(2, 2)] * 5) == [1.0, 1.0, 1.0, 10, 10]
    assert figures.ratio([(0, 0)]) == [None, None, None, 0, 0]


def test_days_to_detection_count_the_missed_as_endless() -> None:
    found = [(FIRST, FIRST), (FIRST, date(2021, 2, 9)), (FIRST, None)]
    assert figures.waits(found) == {"median": 3, "p90": None, "planted": 3, "not found": 1}
    assert figures.waits([]) == {"median": None, "p90": None, "planted": 0, "not found": 0}


def entry(name: str, detection: str, score: float, labels: dict[str, int], **entities: list[str]) -> dict[str, Any]:
    """A kept finding."""
    empty: dict[str, list[str]] = {
        key: []
        for key in (
            "tenant_ids",
            "credential_ids",
            "principal_ids",
            "app_ids",
            "source_ips",
            "source_networks",
            "mailboxes",
        )
    }
    return {
        "id": name, "detection": detection, "family": "tenant_connection", "severity": "high", "score": score, "tactics": ["TA0001"],
        "first": "2021-02-06T02:09:36+00:00", "last": "2021-02-07T02:09:36+00:00", "entities": empty | entities, "facts": {},
        "rows": 10, "labels": labels,
    }  # fmt: skip


def kept(seed: int, kind: str) -> dict[str, Any]:
    """The kept answers of a world: two findings of one stranger in one case, and one about somebody else."""
    stranger = {"tenant_ids": ["oak"], "source_networks": ["192.0.2.0/24"], "source_ips": ["192.0.2.7", "192.0.2.8"]}
    findings = [
        entry("F-01", "T01", 70.0, {"A2-read-oak": 10}, **stranger), entry("F-02", "M02", 50.0, {"A2-read-oak": 2}, **stranger),
        entry("F-03", "T04", 20.0, {}, tenant_ids=["oak"], principal_ids=["someone@oak.example"]),
    ]  # fmt: skip
    alert = {
        "id": "2021-02-06 oak sp-oak",
        "day": "2021-02-06",
        "score": 3.0,
        "rows": 4,
        "labels": {"N1-egress": 4},
        "sources": [],
        "identities": [],
    }
    planted = kind == "incident"
    return {
        "seed": seed, "kind": kind, "tenants": 8, "days": 30, "window": ["2021-02-01", "2021-02-10"],
        "steps": [STOLEN, POLLED] if planted else [], "benign": [EGRESS], "findings": findings if planted else findings[2:],
        "around": {"n_tenants": 8, "declared": [], "shared": [], "arrivals": [["net", "192.0.2.0/24", ["2021-02-06"]]]},
        "baselines": {name: [alert] for name in baselines.METHODS}, "replay": {"10": {"A": "2021-02-06"}, "1": {}} if planted else None,
        "seconds": {"hunt": 1.5}, "skipped": {"T08": "gateway_jobs has no rows in the window"},
        "events": {"access_events": 100}, "labelled": {"records": 20, "events": 20}, "cases": 2,
    }  # fmt: skip


def test_figures_of_two_worlds() -> None:
    answers = figures.figures([kept(seed, kind) for seed in (1, 2) for kind in ("incident", "null")])
    ours = answers["methods"]["gatehound"]["budgets"]["10"]
    assert ours["recall"]["all"] == [0.5, 0.5, 0.5, 2, 4]
    assert ours["recall"]["A"][0] == 1.0
    assert ours["recall"]["D"][0] == 0.0
    assert ours["precision"][3:] == [2, 4]  # the case of two findings, and the one about somebody else
    assert ours["cases a day, nothing planted"][3:] == [2, 20]
    assert ours["harmless named"][0] == 0.0
    assert ours["days to detection"]["A"] == {"median": 1, "p90": 1, "planted": 2, "not found": 0}
    assert answers["methods"]["sigma"]["budgets"]["1"]["harmless named"][0] == 1.0
    assert answers["methods"]["sigma"]["budgets"]["1"]["recall"]["all"][0] == 0.0
    assert answers["methods"]["without T"]["ranking"]["cases"] == 2  # M02 alone
    assert answers["daily hunts"]["10"]["A"]["median"] == 0
    assert answers["daily hunts"]["1"]["A"]["not found"] == 2
    assert answers["families"]["M"]["A"][0] == 1.0  # it names the source network
    assert answers["families"]["X"]["A"][0] == 0.0
    assert answers["detections"]["T01"] == {
        "expected": 2, "met": 2, "findings": 2, "true": 2, "harmless": 0, "other": 0, "nothing planted": 0,
    }  # fmt: skip
    assert [item["campaign"] for item in answers["missed"]] == ["D", "D"]
    text = document(answers | {"command": "c", "commit": "abc", "cores": 2, "quick": False})
    assert "| gatehound | 50 % (50–50) |" in text
    assert "smallest worlds" not in text
    assert "| M02 | 2 | 2 | 2 | 2 | 0 | 0 | 0 |" in text


def test_a_kept_finding_comes_back_as_it_was() -> None:
    held = entry(
        "F-01",
        "T01",
        70.0,
        {"A2-read-oak": 10},
        tenant_ids=["oak"],
        source_ips=["192.0.2.7"],
        credential_ids=["cert-1"],
    )
    claim = worlds.claim(held)
    assert claim.day == date(2021, 2, 7)
    assert claim.sources == {"192.0.2.7"}
    assert claim.identities == {"cert-1"}
    assert (
        worlds.claim(held | {"entities": held["entities"] | {"source_ips": ["192.0.2.7", "192.0.2.8"]}}).sources
        == frozenset()
    )
    finding = worlds.finding_of(held)
    assert finding.last_seen.isoformat() == held["last"]
    assert finding.entities["tenant_ids"] == ("oak",)


def test_options() -> None:
    quick = run.parsed(["--quick", "--tenants", "20"])
    assert (quick.seeds, quick.tenants, quick.days) == (2, 10, 30)
    whole = run.parsed(["--robustness", "--out", "somewhere"])
    assert (whole.seeds, len(run.state())) == (20, 16)
    assert (
        run.command(whole)
        == "python -m tests.evaluate.run --seeds 20 --tenants 14 --null-seeds 20 --null-tenants 14 --days 45 "
        "--campaigns ABCDEFG --daily 10 --robustness"
    )


def test_a_world_that_is_kept_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def child(_module: str, arguments: dict[str, Any], _limit: float) -> dict[str, Any]:
        made.append(arguments)
        return kept(arguments["seed"], arguments["kind"])

    monkeypatch.setattr(run, "child", child)
    given = run.parsed(["--seeds", "2", "--daily", "1"])
    first, again = run.lines(given, tmp_path), run.lines(given, tmp_path)
    assert first == again
    assert [(line["seed"], line["kind"]) for line in first] == [
        (1, "incident"),
        (2, "incident"),
        (1, "null"),
        (2, "null"),
    ]
    assert sorted(item["with_replay"] for item in made) == [False, False, False, True]
    monkeypatch.setattr(run, "state", lambda *_: "another")
    run.lines(given, tmp_path)
    assert len(made) == 8  # other code, other answers
    assert run.extras(given, tmp_path) == {}
