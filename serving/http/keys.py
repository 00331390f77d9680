"""API keys: who may ask, what, and how often. Only their SHA-256 is kept.

A file of keys, one JSON object a line, made by `python -m serving key`. Without one, inference is
open to whoever reaches the port and management is closed.
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
from cluster.settings import Settings, SettingsError, validated
from serving.http.messages import Refusal

Scope = Literal["inference", "management"]
PREFIX = "bertha_"


class KeyFileError(BerthaError):
    """A file of keys that cannot be read or changed; the text says why and the way out."""


class Key(Settings):
    """One line of the file."""

    name: str = Field(description="who has it; named in refusals")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the key itself")
    scopes: tuple[Scope, ...] = Field(("inference",), description="what it may call")
    requests_per_second: float | None = Field(None, gt=0, description="of all replicas together")


class _Bucket:
    """A second's worth of requests that refills steadily."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._level, self._filled = rate, max(1.0, rate), now

    def take(self, now: float) -> float:
        """Seconds to wait for the next request; 0 where this one may pass."""
        most = max(1.0, self._rate)
        self._level = min(most, self._level + (now - self._filled) * self._rate)
        self._filled = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._rate


class Keys:
    """The keys of an endpoint. `admit` is asked before a body is read."""

    def __init__(
        self,
        keys: Iterable[Key] | None,
        num_replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = None if keys is None else {key.sha256: key for key in keys}
        self._buckets: dict[str, _Bucket] = {}
        self._num_replicas, self._clock = num_replicas, clock

    @classmethod
    def open(cls) -> "Keys":
        """No keys: inference is open, management closed."""
        return cls(None)

    def admit(self, headers: Mapping[str, str], scope: str) -> str:
        """The name of whoever asks, "" where nobody needs one.

        Raises Refusal: unauthorized, forbidden, or overloaded where the key asks too often.
        """
        if scope == "open" or (self._keys is None and scope == "inference"):
            return ""
        if self._keys is None:
            raise Refusal(
                "forbidden", "management is closed here; serve with --keys FILE to open it"
            )
        key = self._keys.get(hashlib.sha256(_given(headers).encode()).hexdigest())
        if key is None:
            raise Refusal("unauthorized", "give a valid key: Authorization: Bearer KEY")
        if scope not in key.scopes:
            raise Refusal("forbidden", f"key {key.name!r} is not for {scope}")
        self._limit(key)
        return key.name

    def _limit(self, key: Key) -> None:
        if key.requests_per_second is None:
            return
        rate, now = key.requests_per_second / self._num_replicas, self._clock()
        bucket = self._buckets.setdefault(key.sha256, _Bucket(rate, now))
        wait = bucket.take(now)
        if wait:
            raise Refusal(
                "overloaded",
                f"key {key.name!r} may ask {key.requests_per_second:g} times a second",
                retry_after_seconds=max(1, round(wait)),
            )


def load(path: Path) -> list[Key]:
    """The keys in a file. Raises KeyFileError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}; make it with python -m serving key"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(validated(Key, json.loads(line), f"{path}, line {number}"))
            except (ValueError, SettingsError) as error:
                raise KeyFileError(f"{path}, line {number}: {error}") from None
    return found


def add(
    path: Path, name: str, scopes: tuple[Scope, ...], requests_per_second: float | None = None
) -> str:
    """Add a key to a file and return it: it is kept nowhere. Raises KeyFileError."""
    held = load(path) if path.exists() else []
    if any(key.name == name for key in held):
        raise KeyFileError(f"{path}: there is a key {name!r} already; choose another name")
    secret = PREFIX + secrets.token_urlsafe(24)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = Key(name=name, sha256=digest, scopes=scopes, requests_per_second=requests_per_second)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(key.model_dump_json() + "\n")
    return secret


def _given(headers: Mapping[str, str]) -> str:
    kind, _, credential = headers.get("authorization", "").partition(" ")
    return credential.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
