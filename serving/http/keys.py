"""API keys: who may call what, and how often. Only their SHA-256 is stored.

A key file holds one JSON object a line, written by `python -m serving key`. Without a file,
inference is open to everybody who reaches the port and management is closed.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validate_settings
from serving.http.messages import HTTPError

Scope = Literal["inference", "management"]
KEY_PREFIX = "bertha_"


class KeyFileError(BerthaError):
    """A key file that cannot be read or changed; the message says why, and the way out."""


class ApiKey(Settings):
    """One line of a key file."""

    name: str = Field(description="who has it; named in refusals")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the key itself")
    scopes: tuple[Scope, ...] = Field(("inference",), description="what it may call")
    requests_per_second: float | None = Field(None, gt=0, description="of all replicas together")


class _TokenBucket:
    """A rate limiter that holds one second of requests and refills steadily."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._level, self._filled = rate, max(1.0, rate), now

    def take_token(self, now: float) -> float:
        """Return 0 if a request may pass now, else the seconds until one may."""
        most = max(1.0, self._rate)
        self._level = min(most, self._level + (now - self._filled) * self._rate)
        self._filled = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._rate


class ApiKeys:
    """The keys of an endpoint; None leaves inference open and management closed."""

    def __init__(
        self,
        keys: Iterable[ApiKey] | None,
        num_replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = None if keys is None else {key.sha256: key for key in keys}
        self._buckets: dict[str, _TokenBucket] = {}
        self._num_replicas, self._clock = num_replicas, clock

    def authorize(self, headers: Mapping[str, str], scope: str) -> str:
        """Return the name of the caller's key, "" if none is needed.

        Raises HTTPError: unauthorized, forbidden, or overloaded if the key exceeds its rate.
        """
        if scope == "open" or (self._keys is None and scope == "inference"):
            return ""
        if self._keys is None:
            raise HTTPError(
                "forbidden", "management is closed here; serve with --keys FILE to open it"
            )
        key = self._keys.get(hashlib.sha256(_presented_key(headers).encode()).hexdigest())
        if key is None:
            raise HTTPError("unauthorized", "give a valid key: Authorization: Bearer KEY")
        if scope not in key.scopes:
            raise HTTPError("forbidden", f"key {key.name!r} is not for {scope}")
        self._enforce_rate(key)
        return key.name

    def _enforce_rate(self, key: ApiKey) -> None:
        if key.requests_per_second is None:
            return
        rate, now = key.requests_per_second / self._num_replicas, self._clock()
        bucket = self._buckets.setdefault(key.sha256, _TokenBucket(rate, now))
        wait = bucket.take_token(now)
        if wait:
            raise HTTPError(
                "overloaded",
                f"key {key.name!r} may ask {key.requests_per_second:g} times a second",
                retry_after_seconds=max(1, round(wait)),
            )


def load_keys(path: Path) -> list[ApiKey]:
    """Read a key file. Raises KeyFileError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}; make it with python -m serving key"
        ) from None
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                keys.append(validate_settings(ApiKey, json.loads(line), f"{path}, line {number}"))
            except (ValueError, SettingsError) as error:
                raise KeyFileError(f"{path}, line {number}: {error}") from None
    return keys


def add_key(
    path: Path, name: str, scopes: tuple[Scope, ...], requests_per_second: float | None = None
) -> str:
    """Add a key to a file and return its secret, which is stored nowhere. Raises KeyFileError."""
    if path.exists() and any(key.name == name for key in load_keys(path)):
        raise KeyFileError(f"{path}: there is a key {name!r} already; choose another name")
    secret = KEY_PREFIX + secrets.token_urlsafe(24)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = ApiKey(name=name, sha256=digest, scopes=scopes, requests_per_second=requests_per_second)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(key.model_dump_json() + "\n")
    return secret


def _presented_key(headers: Mapping[str, str]) -> str:
    kind, _, credential = headers.get("authorization", "").partition(" ")
    return credential.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
