"""The place an archive lies in: a local folder or an object store, reached through one small interface.

Local paths are made absolute. Options for object stores come from AWS_* in the environment, then from the [storage]
table of archive.toml, then from the caller; secrets are never written to archive.toml.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from data_contracts.errors import UsageError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRET = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)
_FROM_ENVIRONMENT = (
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_region",
    "aws_default_region",
    "aws_endpoint_url",
    "aws_allow_http",
    "aws_virtual_hosted_style_request",
    "aws_conditional_put",
)


def safe_name(text: str, limit: int = 80) -> str:
    """Text as part of a file name: only letters, digits, dot, dash and underscore, and never starting with a dot."""
    return _UNSAFE.sub("-", text).strip(".-_")[:limit] or "part"


def environment_options(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Object store options named by AWS_* variables, in lower case as delta-rs and Polars read them."""
    environment = os.environ if environment is None else environment
    found = {name: environment[name.upper()] for name in _FROM_ENVIRONMENT if environment.get(name.upper())}
    return with_defaults(found)


def with_defaults(options: Mapping[str, str]) -> dict[str, str]:
    """Options with what follows from them: a plain http endpoint has to be allowed by name."""
    full = dict(options)
    if full.get("aws_endpoint_url", "").startswith("http://"):
        full.setdefault("aws_allow_http", "true")
    return full


def keepable(options: Mapping[str, str]) -> dict[str, str]:
    """Those options that may stand in archive.toml: none that names a secret."""
    return {name: str(value) for name, value in sorted(options.items()) if not _SECRET.search(name)}


class Place:
    """A folder, local or in an object store.

    Args:
        uri: local path, file:// URI, or any URI that fsspec, Polars and delta-rs know (s3://bucket/prefix).
        options: object store options as delta-rs and Polars name them (aws_region, aws_endpoint_url, ...).
    """

    def __init__(self, uri: str | os.PathLike[str], options: Mapping[str, str] | None = None) -> None:
        text = os.fspath(uri)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        self.is_local = not _SCHEME.match(text)
        if not text or _CONTROL.search(text):
            raise UsageError(f"archive path {text!r} is empty or has control characters")
        self.root = str(Path(text).expanduser().absolute()) if self.is_local else text.rstrip("/")
        for sign in "=%":
            if sign in self.root:
                raise UsageError(
                    f"archive path {self.root} holds {sign!r}, which table readers take for "
                    + ("a partition" if sign == "=" else "an escape"),
                    "choose a path without it",
                )
        self.options = {} if self.is_local else {**environment_options(), **with_defaults(options or {})}

    def path(self, *parts: str) -> str:
        """Full path or URI of something below the place."""
        return "/".join((self.root.rstrip("/"), *parts))

    @property
    def storage_options(self) -> dict[str, str] | None:
        """Options for delta-rs and Polars; None for a local folder."""
        return None if self.is_local else dict(self.options)

    @cached_property
    def filesystem(self) -> Any:
        """The fsspec filesystem."""
        from fsspec.core import url_to_fs

        return url_to_fs(self.root, **({} if self.is_local else fsspec_options(self.root, self.options)))[0]

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self.filesystem.exists(self.path(*parts)))

    def read(self, *parts: str) -> bytes:
        """Content of a small file. Raises FileNotFoundError."""
        return bytes(self.filesystem.cat_file(self.path(*parts)))

    def write(self, content: bytes, *parts: str) -> None:
        """Writes a small file whole."""
        target = self.path(*parts)
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(content)
        else:
            self.filesystem.pipe_file(target, content)

    def remove(self, path: str) -> None:
        """Removes one file, if it is there."""
        try:
            self.filesystem.rm_file(path)
        except FileNotFoundError:
            return

    def sizes(self, *parts: str) -> dict[str, int]:
        """Every file below a folder: path relative to that folder, and size in bytes."""
        folder = self.path(*parts)
        if self.is_local:
            return _walk(Path(folder))
        self.filesystem.invalidate_cache()
        base = folder.split("://", 1)[1].strip("/") + "/"
        found = self.filesystem.find(folder, detail=True)
        return {str(name).strip("/").removeprefix(base): int(info["size"]) for name, info in found.items()}


def fsspec_options(uri: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The same options as s3fs names them; none for other schemes, which read their own environment."""
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    named = {
        "key": options.get("aws_access_key_id"),
        "secret": options.get("aws_secret_access_key"),
        "token": options.get("aws_session_token"),
        "endpoint_url": options.get("aws_endpoint_url"),
    }
    region = options.get("aws_region") or options.get("aws_default_region")
    chosen: dict[str, Any] = {name: value for name, value in named.items() if value}
    if region:
        chosen["client_kwargs"] = {"region_name": region}
    return chosen


def _walk(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size
        for parent, _, files in os.walk(folder)
        for path in (Path(parent, file) for file in files)
    }
