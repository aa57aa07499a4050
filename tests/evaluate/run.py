"""make evaluate: made-up worlds with planted campaigns, and worlds with nothing planted, ingested and hunted as a user would, and
what came out held against what was planted, beside four simple baselines.

Each world runs in a process of its own and leaves one JSON line below --work; a run that was stopped goes on where it was, and
lines of another state of the code are not used. Everything is computed from these lines. Nothing is asserted.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE = ("flows/world", "flows/pipeline", "queries", "transforms", "archive", "data_contracts")
OWN = ("worlds.py", "baselines.py", "judge.py")
LIMIT = 3600  # seconds for one world


def state(*own: str) -> str:
    """Digest of the code on which an answer depends."""
    digest = hashlib.sha256()
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sql", ".yaml")]
    for path in sorted([*files, *(Path(__file__).parent / name for name in own or OWN)]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """The commit of the checkout, with a mark where its code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE, "tests/evaluate")
    return head + (" with changes" if changed else "")


def child(module: str, arguments: Any, limit: float = LIMIT) -> Any:
    """What a module run as a process of its own prints as JSON. Raises RuntimeError with the end of its errors."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    }
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=limit, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def held(
    work: Path, name: str, module: str, arguments: dict[str, Any], code: str, limit: float = LIMIT
) -> dict[str, Any]:
    """The kept answer of a process, made where it is not there."""
    key = hashlib.sha256(json.dumps([code, arguments], sort_keys=True).encode()).hexdigest()[:12]
    path = work / f"{name}-{key}.json"
    if not path.exists():
        began = time.monotonic()
        answer = child(module, arguments, limit)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(answer) + "\n")
        part.replace(path)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def world_of(given: argparse.Namespace, kind: str = "incident") -> dict[str, Any]:
    """Size and plot of the worlds."""
    plot = None if given.campaigns == "demo" else given.campaigns
    tenants = given.null_tenants if kind == "null" else given.tenants
    return {"tenants": tenants, "days": given.days, "campaigns": plot}


def lines(given: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """The kept answers of all worlds, by seed."""
    code = state()
    wanted = [
        {"seed": seed, "kind": kind, "with_replay": kind == "incident" and seed <= given.daily} | world_of(given, kind)
        for kind, seeds in (("incident", given.seeds), ("null", given.null_seeds))
        for seed in range(1, seeds + 1)
    ]

    def one(arguments: dict[str, Any]) -> dict[str, Any]:
        return held(work, f"{arguments['kind']}-{arguments['seed']:03d}", "tests.evaluate.worlds", arguments, code)

    with ThreadPoolExecutor(given.jobs) as pool:
        return list(pool.map(one, wanted))


def extras(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Robustness and scale, where they are asked for; the scale is that of the demo's world, the largest that is written at once."""
    found = {}
    if given.robustness:
        arguments, code = {"seed": 1} | world_of(given), state(*OWN, "robustness.py")
        found["robustness"] = held(work, "robustness", "tests.evaluate.robustness", arguments, code, 4 * LIMIT)
    if given.scale:
        arguments, code = (
            {"times": given.times} | world_of(given) | {"campaigns": None},
            state(*OWN, "scale.py", "measure.py"),
        )
        found["scale"] = held(work, "scale", "tests.evaluate.scale", arguments, code, 4 * LIMIT)
    return found


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="worlds with seeds 1 to this (default: 20)")
    parser.add_argument("--tenants", type=int, default=14)
    parser.add_argument("--days", type=int, default=45)
    parser.add_argument(
        "--null-seeds", type=int, help="worlds with nothing planted, seeds 1 to this (default: as many as --seeds)"
    )
    parser.add_argument("--null-tenants", type=int, help="tenants of those (default: as many as --tenants)")
    parser.add_argument(
        "--campaigns",
        default="ABCDEFG",
        help="letters of the campaigns to plant (default: all), or demo: the demo's plot",
    )
    parser.add_argument("--jobs", type=int, default=2, help="worlds at once (default: 2)")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the answers of each world (default: a temporary one)"
    )
    parser.add_argument(
        "--daily", type=int, default=10, metavar="SEEDS",
        help="hunt the worlds of so many seeds daily, which tells the days to detection (default: 10; the slowest part)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of the smallest useful world: a test of the machinery"
    )
    parser.add_argument(
        "--robustness", action="store_true", help="also: the same logs in another order, doubled, with a wrong clock"
    )
    parser.add_argument("--scale", action="store_true", help="also: time, memory and bytes read, at two sizes")
    parser.add_argument("--times", type=int, default=20, help="with --scale: size of the larger archive (default: 20)")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument(
        "--document", type=Path, help="write the document there, and its picture to pictures/evaluation.svg beside it"
    )
    given = parser.parse_args(arguments)
    if given.quick:
        given.seeds, given.tenants, given.days = 2, min(given.tenants, 10), min(given.days, 30)
    given.null_seeds = given.seeds if given.null_seeds is None or given.quick else given.null_seeds
    given.null_tenants = given.tenants if given.null_tenants is None or given.quick else given.null_tenants
    if importlib.util.find_spec("sklearn") is None:
        parser.error("a baseline needs scikit-learn: pip install scikit-learn")
    return given


def command(given: argparse.Namespace) -> str:
    """The command that gives the same figures, without folders of this machine."""
    names = ("seeds", "tenants", "null-seeds", "null-tenants", "days", "campaigns", "daily")
    values = [f"--{name} {getattr(given, name.replace('-', '_'))}" for name in names]
    return " ".join(
        [
            "python -m tests.evaluate.run",
            *values,
            *(f"--{name}" for name in ("robustness", "scale") if getattr(given, name)),
        ]
    )


def main() -> None:
    """Runs the evaluation and prints the document."""
    from tests.evaluate.document import document
    from tests.evaluate.figures import figures
    from tests.evaluate.picture import picture

    given = parsed()
    with tempfile.TemporaryDirectory(prefix="evaluate-work-") as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        answers = figures(lines(given, work)) | extras(given, work)
    answers |= {
        "command": command(given), "commit": commit(), "code": state(), "cores": os.cpu_count(), "quick": given.quick,
    }  # fmt: skip
    text = document(answers)
    if given.out:
        given.out.write_text(json.dumps(answers, indent=1) + "\n")
    if given.document:
        (given.document.parent / "pictures").mkdir(parents=True, exist_ok=True)
        given.document.write_text(text)
        (given.document.parent / "pictures" / "evaluation.svg").write_text(picture(answers))
    print(text)


if __name__ == "__main__":
    main()
