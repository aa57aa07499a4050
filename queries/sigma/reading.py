"""Sigma files: YAML that strangers wrote, split into its documents under limits.

A file is looked at as a stream of parse events before anything is built from it: size, depth, number of nodes, and no
aliases, by which a few lines grow into gigabytes. What passes is loaded by the safe loader.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from data_contracts.errors import RefusedError

MOST_BYTES = 512 * 1024
MOST_DOCUMENTS = 200
MOST_NODES = 20_000
DEEPEST = 12
LONGEST_CONDITION = 1000  # characters
LONGEST_REGEX = 1000
_MOST_PARENTHESES = 50
_MOST_STARS = 3  # in the name pattern of "1 of selection*"
_MOST_TESTS = 5_000  # values times the conditions that may name them

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a Sigma file: its own text, and what that says."""

    text: str
    values: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def rule_id(self) -> str:
        """The rule's own id in lower case; empty where it has none."""
        value = self.values.get("id")
        return str(value).strip().lower() if isinstance(value, str) else ""

    @property
    def names(self) -> tuple[str, ...]:
        """By what a correlation may refer to it."""
        name = self.values.get("name")
        return tuple(text for text in (self.rule_id, name if isinstance(name, str) else "") if text)


def documents(content: bytes) -> list[Document]:
    """The documents of a Sigma file. Raises RefusedError with the reason when it is not sound."""
    if len(content) > MOST_BYTES:
        raise RefusedError(f"the file is larger than {MOST_BYTES // 1024} KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError("the file is not UTF-8") from error
    try:
        return list(_documents(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise RefusedError(f"the file is not YAML{where}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise RefusedError("the file has a value that cannot be read") from error


def _documents(text: str) -> Iterator[Document]:
    for begin, end in _spans(text):
        part = text[begin:end].strip("\n")
        values = yaml.load(part, Loader=_Loader)  # noqa: S506 - the safe loader
        if values is None:
            continue
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise RefusedError("a document is not a mapping of names to values")
        _check_keys(part)
        yield Document(part + "\n", values)


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each document begins and ends, in characters. The limits are checked on the way."""
    spans, depth, begin = [], 0, 0
    for nodes, event in enumerate(yaml.parse(text, Loader=_Loader), 1):
        if isinstance(event, yaml.AliasEvent):
            raise RefusedError("YAML aliases are not taken: write the values out")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            begin = _index(event.end_mark)
        elif isinstance(event, yaml.DocumentEndEvent):
            spans.append((begin, _index(event.start_mark)))
        if depth > DEEPEST:
            raise RefusedError(f"the file nests deeper than {DEEPEST} levels")
        if nodes > MOST_NODES:
            raise RefusedError(f"the file has more than {MOST_NODES:,} nodes")
        if len(spans) > MOST_DOCUMENTS:
            raise RefusedError(f"the file has more than {MOST_DOCUMENTS} documents")
    return spans


def _index(mark: Any) -> int:
    return int(mark.index)


def _check_keys(text: str) -> None:
    """Of a name that stands twice the loader would silently take the last."""
    waiting = [yaml.compose(text, Loader=_Loader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(node.value):
                raise RefusedError("a name stands twice in one mapping")
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def check_detection(values: dict[str, Any]) -> None:
    """Raises RefusedError where conditions could take out of proportion long to expand."""
    detection = values.get("detection")
    if not isinstance(detection, dict):
        return
    condition = detection.get("condition")
    conditions = condition if isinstance(condition, list) else [condition]
    texts = [text for text in conditions if isinstance(text, str)]
    if len(texts) < len(conditions):
        raise RefusedError("the condition is not a text")
    for text in texts:
        if len(text) > LONGEST_CONDITION:
            raise RefusedError(f"the condition is longer than {LONGEST_CONDITION} characters")
        if text.count("(") > _MOST_PARENTHESES:
            raise RefusedError(f"the condition has more than {_MOST_PARENTHESES} parentheses")
        if any(word.count("*") > _MOST_STARS for word in text.split()):
            raise RefusedError(f"the condition names selections by a pattern with more than {_MOST_STARS} *")
    held = sum(_count(value) for name, value in detection.items() if name != "condition")
    uses = sum(text.count(" of ") + 1 for text in texts)
    if held * uses > _MOST_TESTS:
        raise RefusedError(f"the condition spreads to more than {_MOST_TESTS:,} comparisons")


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_count, value.values())) + 1
    return sum(map(_count, value)) + 1 if isinstance(value, list) else 1
