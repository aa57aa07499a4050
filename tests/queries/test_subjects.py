"""What a detection cannot do without, by branch, and whom it could judge."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from data_contracts.errors import RefusedError
from queries import catalogue
from queries.engine import hunt
from queries.subjects import Unjudged
from queries.testing import database

FIRST, LAST = date(2021, 1, 1), date(2021, 1, 30)
NOW = datetime(2021, 2, 1, tzinfo=UTC)
NOTHING: dict[str, list[dict[str, Any]]] = {}
BRANCHED = """/*---
id = "T90"
title = "t"
hypothesis = "h"
family = "tenant_connection"
severity = "low"
tables = ["context_days", "edge_days"]
needs = []
identity = ["tenant_id"]
explanation = "{tenant_id}"
false_positives = ["f"]
blind_spots = ["b"]
runbook = ["r"]
attack = [{ technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] }]
parameters = [{ name = "least", default = 3, help = "h" }]

[[branches]]
name = "contexts"
needs = ["context_days"]

[[branches]]
name = "edges"
needs = ["edge_days"]

[[subjects]]
part = "contexts"
sql = "select count(*) >= $least from held"
reason = "fewer than $least rows"

[evidence]
table = "access_events"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id" }
---*/
with held as (
    select tenant_id, first_ts as first_seen, last_ts as last_seen from context_days where date >= cast($window_from as date)
)

select *, 1.0 as confidence, $least as impact from held where false
"""


def test_a_branch_that_cannot_run_or_judges_nobody_is_told_while_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "t90_branched.sql").write_text(BRANCHED)
    ts = datetime(2021, 1, 5, tzinfo=UTC)
    row = {"date": ts.date(), "first_ts": ts, "last_ts": ts, "protocol": "ews", "outcome": "success", "n_rows": 1}
    given = {"context_days": [row]}
    told = {}
    for name, rows in (("none", NOTHING), ("one", given)):
        result = hunt(database(rows), window_from=FIRST, window_to=LAST, now=NOW, folder=tmp_path)
        told[name] = ([item.reason for item in result.detections_skipped], result.without_subjects)
    assert told["none"][0] == [
        "contexts: context_days has no rows in the window; edges: edge_days has no rows in the window"
    ]
    assert told["none"][1] == ()
    assert told["one"] == (
        [],
        (
            Unjudged("T90", "edges", "edge_days has no rows in the window"),
            Unjudged("T90", "contexts", "fewer than 3 rows"),
        ),
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("from held", "from held where a = $other", "subjects: uses a parameter that is not declared"),
        ('part = "contexts"', 'part = "more"', "there is no branch more"),
        ('needs = ["edge_days"]', 'needs = ["sessions"]', "sessions is not among tables"),
        ("select count(*) >= $least from held", "delete from edge_days", "must be exactly one SELECT"),
        ('name = "edges"', "name = 3", r"branches\[2\]: must have exactly name, needs"),
    ],
)
def test_questions_are_checked_when_a_detection_is_loaded(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "t90_branched.sql"
    path.write_text(BRANCHED.replace(old, new, 1))
    with pytest.raises(RefusedError, match=told):
        catalogue.read(path)
