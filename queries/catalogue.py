"""Detections: found in their folder, checked when they are loaded, in sorted order.

A detection is one file: SQL with TOML front matter in a leading ``/*--- ... ---*/`` comment, the whole file being one
SELECT over the tables and the macros (`data_contracts.macros`); or, where statistics are needed, a Python module whose
docstring carries the same front matter between two lines ``---`` and that has
``detect(con, params) -> polars.DataFrame``.
"""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts.errors import RefusedError, UsageError
from queries.checking import check_questions, check_sql

if TYPE_CHECKING:
    import duckdb
    import polars as pl

FOLDER = Path(__file__).parent / "detections"
FAMILIES = ("tenant_connection", "mailbox_access", "exfiltration", "lateral_movement", "exposure")
SEVERITIES = ("info", "low", "medium", "high", "critical")
RESULT_COLUMNS = ("first_seen", "last_seen", "confidence", "impact")  # every result has these

_SMALL = {"change_events", "gateway_jobs"}  # event tables with few rows, which a detection may read whole
_SQL_HEAD = re.compile(r"\A\s*/\*---\n(.*?)\n---\*/", re.DOTALL)
_DOC_HEAD = re.compile(r"^---\n(.*?)\n---$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"[a-z]\d{2}")

Detect = Callable[["duckdb.DuckDBPyConnection", Mapping[str, Any]], "pl.DataFrame"]


@dataclass(frozen=True, slots=True)
class Attack:
    """An ATT&CK technique with the tactics it serves here (ATT&CK's short names)."""

    technique: str
    name: str
    tactics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that a hunt may set; its type is that of the default."""

    name: str
    default: int | float | str | bool
    help: str


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """How the evidence rows of a finding are selected.

    Attributes:
        table: event table.
        match: SQL expression over the event table to the result column that holds its value, or its list of values.
        where: further SQL condition, empty for none.
        time: result columns with the first and last time, inclusive.
        follow_sessions: rows without an address belong to the evidence when a row of their session does.
    """

    table: str
    match: Mapping[str, str]
    where: str
    time: tuple[str, str]
    follow_sessions: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """A question to the archive whose answer must be true, and the reason to give when it is not."""

    sql: str
    reason: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A part of a detection that runs by itself, and the tables that must have rows in the window for it."""

    name: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subjects:
    """A question whose answer is true when there is somebody to judge, and the reason to give when it is not.

    It may use window_from, window_to, the parameters and, in a detection that is SQL, the detection's own common table
    expressions. `part` names what the question is about, none for the whole detection. In the reason, $name stands for
    the value of a parameter.
    """

    sql: str
    reason: str
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """One detection as its file states it.

    `explanation`, `step` and `why` are templates that a finding's facts fill (`queries.text.fill`): all about it, and
    one sentence each for a case's paragraph: what happened, and which habit it breaks.

    Attributes:
        parts: statements over one event table each, where it takes several; it has no statement of its own then.
        text: its source, where that is not the file at `path` (a rule that was imported into an archive).
    """

    id: str
    stem: str
    path: Path
    title: str
    hypothesis: str
    family: str
    severity: str
    attack: tuple[Attack, ...]
    tables: tuple[str, ...]
    needs: tuple[str, ...]
    requires: tuple[Requirement, ...]
    parameters: tuple[Parameter, ...]
    false_positives: tuple[str, ...]
    blind_spots: tuple[str, ...]
    runbook: tuple[str, ...]
    explanation: str
    identity: tuple[str, ...]
    evidence: EvidenceRule
    branches: tuple[Branch, ...] = ()
    subjects: tuple[Subjects, ...] = ()
    sql: str | None = None
    detect: Detect | None = None
    step: str = ""
    why: str = ""
    parts: tuple["Detection", ...] = ()
    text: str | None = None

    @property
    def ctes(self) -> str:
        """The SQL before its last SELECT, which begins a line: the common table expressions. Empty for Python."""
        return "" if self.sql is None else self.sql[: self.sql.rindex("\nselect ") + 1]

    @property
    def source(self) -> str:
        """Its source as a person reads it."""
        return self.path.read_text("utf-8") if self.text is None else self.text

    @property
    def techniques(self) -> tuple[str, ...]:
        """ATT&CK technique ids, in the order of the front matter."""
        return tuple(attack.technique for attack in self.attack)

    @property
    def tactics(self) -> tuple[str, ...]:
        """All tactics, sorted."""
        return tuple(sorted({tactic for attack in self.attack for tactic in attack.tactics}))

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the parameters: the defaults, overridden by `given`. Raises UsageError on a wrong name or type."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in given.items():
            if name not in known:
                raise UsageError(f"{self.id} has no parameter {name}", f"its parameters: {', '.join(known) or 'none'}")
            wanted = type(known[name].default)
            if not isinstance(value, (int, float) if wanted is float else wanted):
                raise UsageError(f"{self.id}: {name} is {value!r}, not {wanted.__name__}", known[name].help)
        return {name: given.get(name, parameter.default) for name, parameter in known.items()}


def load(folder: Path = FOLDER) -> tuple[Detection, ...]:
    """All detections of a folder, sorted by id.

    Raises:
        RefusedError: one error that lists every problem of every file as file:place.
    """
    found, problems = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".sql", ".py") or path.name.startswith("_"):
            continue
        try:
            found.append(read(path))
        except RefusedError as error:
            problems.append(error.fact)
    ids = [detection.id for detection in found]
    problems += [
        f"{folder}: two detections have the id {name}" for name in sorted({i for i in ids if ids.count(i) > 1})
    ]
    if problems:
        raise RefusedError("\n".join(problems), "correct the front matter, or take the file out of the folder")
    return tuple(sorted(found, key=lambda detection: detection.id))


@cache
def catalogue() -> tuple[Detection, ...]:
    """The detections of this installation, read once. Raises RefusedError."""
    return load()


def find(name: str) -> Detection:
    """One detection of this installation by its id, in either case. Raises UsageError when there is none."""
    for detection in catalogue():
        if detection.id == name.upper():
            return detection
    known = ", ".join(detection.id for detection in catalogue())
    raise UsageError(f"there is no detection {name}", f"there are: {known}")


def read(path: Path) -> Detection:
    """One detection from its file. Raises RefusedError."""
    text = path.read_text("utf-8")
    front, first_line = _front_matter(path, text)
    try:
        values = tomllib.loads(front)
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(_place(path, front, first_line, error)) from error
    return _detection(path, values, text if path.suffix == ".sql" else None)


def _front_matter(path: Path, text: str) -> tuple[str, int]:
    if path.suffix == ".py":
        try:
            text_of = ast.get_docstring(ast.parse(text), clean=False) or ""
        except SyntaxError as error:
            raise RefusedError(f"{path}:{error.lineno}: not Python: {error.msg}") from error
        head = _DOC_HEAD.search(text_of)
        before = text_of[: head.start(1)] if head else ""
    else:
        head = _SQL_HEAD.match(text)
        before = text[: head.start(1)] if head else ""
    if head is None:
        raise RefusedError(f"{path}:1: front matter is missing")
    return head[1], before.count("\n")


def _place(path: Path, front: str, first_line: int, error: tomllib.TOMLDecodeError) -> str:
    at = re.search(r"line (\d+)", str(error))
    line = first_line + int(at[1]) if at else first_line + front.count("\n") + 1
    return f"{path}:{line}: front matter is not TOML: {error}"


def _detection(path: Path, values: dict[str, Any], sql: str | None) -> Detection:
    check = _Checker(path, values)
    code = _CODE.match(path.stem)
    if check.text("id") != (code[0].upper() if code else None):
        check.problem("id", "is not the leading code of the file name in upper case")
    evidence = check.evidence()
    detection = Detection(
        id=check.text("id"),
        stem=path.stem,
        path=path,
        title=check.text("title"),
        hypothesis=check.text("hypothesis"),
        family=check.choice("family", FAMILIES),
        severity=check.choice("severity", SEVERITIES),
        attack=tuple(Attack(a["technique"], a["name"], tuple(a["tactics"])) for a in check.tables("attack", _ATTACK)),
        tables=check.texts("tables"),
        needs=check.texts("needs", least=0),
        requires=tuple(Requirement(r["sql"], r["reason"]) for r in check.tables("requires", _REQUIRES, least=0)),
        branches=tuple(Branch(b["name"], tuple(b["needs"])) for b in check.tables("branches", _BRANCH, least=0)),
        subjects=tuple(Subjects(**s) for s in check.tables("subjects", _REQUIRES, least=0, optional={"part": str})),
        parameters=tuple(Parameter(p["name"], p["default"], p["help"]) for p in check.tables("parameters", _PARAMETER)),
        false_positives=check.texts("false_positives"),
        blind_spots=check.texts("blind_spots"),
        runbook=check.texts("runbook"),
        explanation=check.text("explanation"),
        identity=check.texts("identity"),
        evidence=evidence,
        sql=sql,
        step=check.text("step") if "step" in values else "",
        why=check.text("why") if "why" in values else "",
    )
    check.finish(detection)
    if sql is not None:
        check_sql(detection, sql)
    check_questions(detection)
    return detection if sql is not None else _with_function(detection)


_ATTACK = {"technique": str, "name": str, "tactics": list}
_REQUIRES = {"sql": str, "reason": str}
_BRANCH = {"name": str, "needs": list}
_PARAMETER = {"name": str, "default": (int, float, str, bool), "help": str}
_KNOWN = {
    "id", "title", "hypothesis", "family", "severity", "attack", "tables", "needs", "requires", "parameters",
    "false_positives", "blind_spots", "runbook", "explanation", "identity", "evidence", "branches",
    "subjects", "step", "why",
}  # fmt: skip


class _Checker:
    """Reads values of front matter and collects what is wrong with them, to fail once."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values
        self.problems = [f"{path}:{key}: is not known here" for key in sorted(values.keys() - _KNOWN)]

    def problem(self, place: str, what: str) -> None:
        self.problems.append(f"{self.path}:{place}: {what}")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            self.problem(key, "is missing or not a text")
            return ""
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(key)
        if value and value not in choices:
            self.problem(key, f"is {value}, not one of {', '.join(choices)}")
        return value

    def texts(self, key: str, least: int = 1) -> tuple[str, ...]:
        value = self.values.get(key)
        texts = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        if not isinstance(value, list) or not texts or len(value) < least:
            self.problem(key, "is missing or not a list of texts")
            return ()
        return tuple(value)

    def tables(
        self, key: str, shape: Mapping[str, Any], least: int = 1, optional: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or len(value) < least:
            self.problem(key, "is missing")
            return []
        good = []
        for place, item in enumerate(value, 1):
            held = dict(item) if isinstance(item, dict) else {}
            kinds = {**shape, **{name: kind for name, kind in (optional or {}).items() if name in held}}
            if set(held) != set(kinds) or not all(isinstance(held[name], kind) for name, kind in kinds.items()):
                self.problem(f"{key}[{place}]", f"must have exactly {', '.join(kinds)}")
            else:
                good.append(item)
        return good

    def evidence(self) -> EvidenceRule:
        from data_contracts import names

        value = self.values.get("evidence")
        match = value.get("match") if isinstance(value, dict) else None
        time = value.get("time") if isinstance(value, dict) else None
        good_match = isinstance(match, dict) and match and all(isinstance(v, str) for v in match.values())
        if not isinstance(time, list) or len(time) != 2:
            time = None
        if not isinstance(value, dict) or not good_match or time is None or not isinstance(value.get("table"), str):
            self.problem("evidence", "needs table, match and time = [first, last]")
            return EvidenceRule("access_events", {}, "", ("first_seen", "last_seen"))
        if value["table"] not in names("event"):
            self.problem("evidence.table", "is not an event table")
        where, follow = value.get("where", ""), bool(value.get("follow_sessions", False))
        return EvidenceRule(value["table"], dict(match or {}), where, (time[0], time[1]), follow)

    def finish(self, detection: Detection) -> None:
        from data_contracts import names

        needs = {*detection.needs, *(table for branch in detection.branches for table in branch.needs)}
        if not needs and not detection.requires and not detection.branches:
            self.problem("needs", "is missing: name a table, or branches")
        for key, tables in (("tables", detection.tables), ("needs", tuple(sorted(needs)))):
            for table in tables:
                if table not in names():
                    self.problem(key, f"there is no table {table}")
                elif key == "tables" and table in set(names("event")) - _SMALL:
                    self.problem(key, f"{table} holds events: a detection reads derived and reference tables")
        for table in sorted(needs - set(detection.tables) - set(names("event"))):
            self.problem("needs", f"{table} is not among tables")
        if self.problems:
            raise RefusedError("\n".join(self.problems))


def _with_function(detection: Detection) -> Detection:
    spec = importlib.util.spec_from_file_location(f"queries.detections.{detection.stem}", detection.path)
    if spec is None or spec.loader is None:
        raise RefusedError(f"{detection.path}:1: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RefusedError(f"{detection.path}:1: cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, "detect", None)
    if not callable(function):
        raise RefusedError(f"{detection.path}:1: has no detect(con, params)")
    return replace(detection, detect=function)
