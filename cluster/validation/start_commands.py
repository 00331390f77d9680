"""What a cluster file has its nodes run, and how it lets people in: commands, token, SSH, secrets.

Pure but for looking whether the files that are named are there. Knows no provider.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.validation.problem import Mistake, mapping

TOKEN_FILE = ".ray/auth_token"
TOKEN_MODE = "RAY_AUTH_MODE=token"
PINNED = ("ray", "torch", "transformers", "datasets")
SETUP = ("setup_commands", "head_setup_commands", "worker_setup_commands")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|(?:AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|RAY_AUTH_TOKEN|HF_TOKEN)\s*=\s*[^\s$]"
)


def of_commands(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Mistakes in how Ray is started and with which versions."""
    head, worker = (
        _text(settings, "head_start_ray_commands"),
        _text(settings, "worker_start_ray_commands"),
    )
    yield from _of_head(head)
    yield from _of_worker(worker)
    for field in SETUP:
        yield from _of_versions(field, _text(settings, field))
    if head is None or worker is None:
        return
    for field, text in (("head_start_ray_commands", head), ("worker_start_ray_commands", worker)):
        if TOKEN_MODE not in text:
            told = (
                f"no {TOKEN_MODE}: whoever reaches a port of Ray can run what he likes; export it"
            )
            yield Mistake(field, f"{told} before `ray start`")
    if TOKEN_MODE in head and not any(TOKEN_FILE in str(path) for path in _mounts(settings)):
        yield Mistake(
            "file_mounts",
            f'no "~/{TOKEN_FILE}", and nodes without the token refuse each other; add '
            f'"~/{TOKEN_FILE}": "~/{TOKEN_FILE}"',
        )


def of_access(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Mistakes in who gets in with what: SSH, files that are copied, secrets written down."""
    auth = mapping(settings.get("auth"))
    if not auth.get("ssh_user"):
        yield Mistake("auth.ssh_user", "missing; the user that Ray logs in as, as ubuntu")
    key = auth.get("ssh_private_key")
    if isinstance(key, str) and not Path(key).expanduser().is_file():
        yield Mistake("auth.ssh_private_key", "no such file on this machine", key)
    for remote, local in _mounts(settings).items():
        if TOKEN_FILE not in str(local) and not Path(str(local)).expanduser().exists():
            yield Mistake(f"file_mounts.{remote}", "no such file on this machine", local)
    for field, text in _texts(settings):
        if SECRET.search(text):
            yield Mistake(
                field,
                "holds a secret, which the file would carry to every node and into every "
                "copy; take it out, and out of use, and give nodes a role or a mounted file",
            )


def _of_head(head: str | None) -> Iterator[Mistake]:
    field = "head_start_ray_commands"
    if head is None:
        yield Mistake(field, "missing; Ray's own ask for no token; copy them from a shipped file")
        return
    if not re.search(r"\bray start\b.*--head", head):
        yield Mistake(field, "no `ray start --head`, so that no Ray would run")
    elif "--autoscaling-config" not in head:
        yield Mistake(
            field,
            "no --autoscaling-config, so that no worker would ever start; add "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        )
    if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", head) and TOKEN_MODE not in head:
        yield Mistake(
            field,
            "opens the dashboard to the network without a token: anyone may run jobs; set "
            "--dashboard-host=127.0.0.1 and reach it with `ray dashboard FILE`",
        )


def _of_worker(worker: str | None) -> Iterator[Mistake]:
    field = "worker_start_ray_commands"
    if worker is None:
        yield Mistake(field, "missing; Ray's own ask for no token; copy them from a shipped file")
    elif not re.search(r"\bray start\b.*--address", worker):
        yield Mistake(field, "no `ray start --address=$RAY_HEAD_IP:6379`, so that none would join")
    elif "RAY_HEAD_IP" not in worker:
        yield Mistake(field, "names a head of its own; write --address=$RAY_HEAD_IP:6379")


def _of_versions(field: str, text: str | None) -> Iterator[Mistake]:
    """Nodes whose versions are not this machine's: jobs and checkpoints do not pass between."""
    for name in PINNED:
        here = _installed(name)
        for found in re.findall(rf"(?<![\w-]){name}(?:\[[\w,]+\])?==([\w.]+)", text or ""):
            if here is not None and found != here:
                told = f"{name} {here} is on this machine; all nodes must have the same"
                yield Mistake(field, told, f"{name}=={found}")


@functools.cache
def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _text(settings: Mapping[str, Any], field: str) -> str | None:
    """The commands of a field in one line, or None where there are none."""
    commands = settings.get(field)
    return " ".join(str(each) for each in commands) if isinstance(commands, list) else None


def _mounts(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(settings.get("file_mounts"))


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of the file and the field that it stands in."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, place)
    elif isinstance(value, str):
        yield place, value
