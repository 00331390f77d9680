"""API keys: who may call what, and how often. Only their SHA-256 is stored.

A key file holds one JSON object a line, written by `bertha key`. Without a file,
inference and metrics are open to everybody who reaches the port and management is closed.
"""

import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validate_settings
from serving.http.messages import HTTPError, Scope

KEY_PREFIX = "bertha_"

log = logging.getLogger(__name__)


class KeyFileError(BerthaError):
    """A key file that cannot be read or changed; the message says why, and the way out."""


class ApiKey(Settings):
    """One line of a key file."""

    name: str = Field(description="who has it; named in refusals")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the key itself")
    scopes: tuple[Scope, ...] = Field(("inference",), description="what it may call")
    requests_per_second: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="of all replicas together"
    )

    def is_for(self, scope: Scope) -> bool:
        """Return whether it may call what `scope` covers; who manages may read metrics too."""
        return scope in self.scopes or (scope == "metrics" and "management" in self.scopes)


class _TokenBucket:
    """A rate limiter that holds one second of requests and refills steadily."""

    def __init__(self, rate: float, now: float) -> None:
        self._level, self._filled = max(1.0, rate), now

    def take_token(self, rate: float, now: float) -> float:
        """Return 0 if a request may pass now, else the seconds until one may.

        rate: tokens a second since the last call.
        """
        self._level = min(max(1.0, rate), self._level + (now - self._filled) * rate)
        self._filled = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / rate


class ApiKeys:
    """The keys of an endpoint; None leaves inference and metrics open and management closed.

    num_replicas: of the endpoint, each of which allows a key its share of the rate.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey] | None,
        num_replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = None if keys is None else {key.sha256: key for key in keys}
        self._buckets: dict[str, _TokenBucket] = {}
        self.num_replicas, self._clock = num_replicas, clock

    def authorize(self, headers: Mapping[str, str], scope: Scope | Literal["open"]) -> str:
        """Return the name of the caller's key, "" if none is needed.

        Raises HTTPError: unauthorized, forbidden, or overloaded if the key exceeds its rate.
        """
        if scope == "open" or (self._keys is None and scope != "management"):
            return ""
        if self._keys is None:
            raise HTTPError(
                "forbidden", "management is closed here; serve with --keys FILE to open it"
            )
        # The time that a lookup takes tells of the digest alone, from which no key follows.
        key = self._keys.get(hashlib.sha256(_presented_key(headers).encode()).hexdigest())
        if key is None:
            raise HTTPError("unauthorized", "give a valid key: Authorization: Bearer KEY")
        if not key.is_for(scope):
            raise HTTPError("forbidden", f"key {key.name!r} is not for {scope}")
        self._enforce_rate(key)
        return key.name

    def _enforce_rate(self, key: ApiKey) -> None:
        if key.requests_per_second is None:
            return
        rate, now = key.requests_per_second / max(1, self.num_replicas), self._clock()
        bucket = self._buckets.setdefault(key.sha256, _TokenBucket(rate, now))
        wait = bucket.take_token(rate, now)
        if wait:
            raise HTTPError(
                "overloaded",
                f"key {key.name!r} may ask {key.requests_per_second:g} times a second",
                retry_after_seconds=wait,
            )


def load_keys(path: Path) -> list[ApiKey]:
    """Read a key file, of this user or root, which nobody else may write to.

    Raises KeyFileError that names the line, and holds nothing of it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # Of the file that is read, behind a link too: Kubernetes mounts secrets as links.
            _check_permissions(path, os.fstat(file.fileno()))
            lines = file.read().splitlines()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; make it with bertha key") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is not text in UTF-8; make it anew") from None
    return [_parse_key(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def add_key(
    path: Path, name: str, scopes: tuple[Scope, ...], requests_per_second: float | None = None
) -> str:
    """Add a key to a file and return its secret, which is stored nowhere. Raises KeyFileError."""
    is_new = not path.exists()
    if not is_new and any(key.name == name for key in load_keys(path)):
        raise KeyFileError(f"{path}: there is a key {name!r} already; choose another name")
    secret = KEY_PREFIX + secrets.token_urlsafe(24)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    settings = {"name": name, "sha256": digest, "scopes": scopes}
    try:
        key = validate_settings(
            ApiKey, settings | {"requests_per_second": requests_per_second}, f"key {name!r}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that did not exist is not made behind a link, which another may have put there.
        made = os.O_CREAT | os.O_EXCL if is_new else 0
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | made, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(key.model_dump_json() + "\n")
    except SettingsError as error:
        raise KeyFileError(str(error)) from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; name another with --file") from None
    return secret


def _check_permissions(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path}: is no file; name the one that bertha key made")
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"{path}: belongs to user {status.st_uid}, who could add keys; "
            "copy it to a file of your own"
        )
    if status.st_mode & 0o022:
        raise KeyFileError(
            f"{path}: others may write to it, and add keys; take out those that are not yours, "
            f"then chmod 600 {path}"
        )
    if status.st_mode & 0o004:
        log.warning("%s: others may read who has keys; chmod 600 %s", path, path)


def _parse_key(line: str, path: Path, number: int) -> ApiKey:
    # A message of a validator quotes the value, which may be a key where its digest should stand.
    try:
        return ApiKey.model_validate_json(line, strict=True)
    except ValidationError as error:
        names = {str(part) for part in error.errors(include_url=False)[0]["loc"]}
        what = "".join(names & ApiKey.model_fields.keys()) or "it"
        raise KeyFileError(
            f"{path}, line {number}: {what} is missing or not valid; take the line out, and make "
            "another key with bertha key"
        ) from None


def _presented_key(headers: Mapping[str, str]) -> str:
    kind, _, credential = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return credential.strip()
    return headers.get("x-api-key") or headers.get("api-key", "")  # the latter is Azure's
