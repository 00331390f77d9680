"""Checks of what nodes run and who may reach them: commands, token, SSH, mounted files, secrets."""

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.ray_token import TOKEN_FILE
from cluster.validation.problem import ConfigProblem, as_mapping

TOKEN_MODE = "RAY_AUTH_MODE=token"
PINNED = ("ray", "torch", "transformers", "datasets")
SETUP = ("setup_commands", "head_setup_commands", "worker_setup_commands")
HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
NO_COMMANDS = "missing; Ray's defaults require no token; copy them from a shipped file"
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|(?:AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|RAY_AUTH_TOKEN|HF_TOKEN)\s*=\s*[^\s$]"
)


def check_commands(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield problems in how Ray is started and with which versions."""
    head, worker = _joined_commands(settings, HEAD), _joined_commands(settings, WORKER)
    yield from _check_head(head)
    yield from _check_worker(worker)
    for field in SETUP:
        yield from _check_versions(field, _joined_commands(settings, field) or "")
    if head is None or worker is None:
        return
    for field, text in ((HEAD, head), (WORKER, worker)):
        if TOKEN_MODE not in text:
            message = f"no {TOKEN_MODE}: anyone who reaches a port of Ray can run code; export it"
            yield ConfigProblem(field, f"{message} before `ray start`")
    mounts = as_mapping(settings.get("file_mounts"))
    if TOKEN_MODE in head and not any(TOKEN_FILE in str(path) for path in mounts):
        message = f'no "~/{TOKEN_FILE}", and nodes without the token reject each other; add'
        yield ConfigProblem("file_mounts", f'{message} "~/{TOKEN_FILE}": "~/{TOKEN_FILE}"')


def check_access(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield problems with SSH, with files to be copied, and secrets written into the file."""
    auth = as_mapping(settings.get("auth"))
    if not auth.get("ssh_user"):
        yield ConfigProblem("auth.ssh_user", "missing; the user that Ray logs in as, as ubuntu")
    key = auth.get("ssh_private_key")
    if isinstance(key, str) and not Path(key).expanduser().is_file():
        yield ConfigProblem("auth.ssh_private_key", "no such file on this machine", key)
    for remote, local in as_mapping(settings.get("file_mounts")).items():
        if TOKEN_FILE not in str(local) and not Path(str(local)).expanduser().exists():
            yield ConfigProblem(f"file_mounts.{remote}", "no such file on this machine", local)
    for field, text in _all_strings(settings):
        if SECRET.search(text):
            message = "contains a secret, which every node and copy of the file would have; remove"
            yield ConfigProblem(
                field, f"{message} and revoke it, and give nodes a role or a mounted file"
            )


def _check_head(command: str | None) -> Iterator[ConfigProblem]:
    if command is None:
        yield ConfigProblem(HEAD, NO_COMMANDS)
        return
    if not re.search(r"\bray start\b.*--head", command):
        yield ConfigProblem(HEAD, "no `ray start --head`, so Ray would not run")
    elif "--autoscaling-config" not in command:
        message = "no --autoscaling-config, so no worker would ever start; add"
        yield ConfigProblem(HEAD, f"{message} --autoscaling-config=~/ray_bootstrap_config.yaml")
    is_open = re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", command)
    if is_open and TOKEN_MODE not in command:
        message = "opens the dashboard to the network without a token: anyone may run jobs; set"
        message += " --dashboard-host=127.0.0.1 and reach it with `ray dashboard FILE`"
        yield ConfigProblem(HEAD, message)


def _check_worker(command: str | None) -> Iterator[ConfigProblem]:
    if command is None:
        yield ConfigProblem(WORKER, NO_COMMANDS)
    elif not re.search(r"\bray start\b.*--address", command):
        yield ConfigProblem(
            WORKER, "no `ray start --address=$RAY_HEAD_IP:6379`, so no worker would join"
        )
    elif "RAY_HEAD_IP" not in command:
        yield ConfigProblem(WORKER, "names another head; write --address=$RAY_HEAD_IP:6379")


def _check_versions(field: str, commands: str) -> Iterator[ConfigProblem]:
    """Check pinned versions against this machine's: jobs and checkpoints need equal ones."""
    for name in PINNED:
        here = _installed_version(name)
        for version in re.findall(rf"(?<![\w-]){name}(?:\[[\w,]+\])?==([\w.]+)", commands):
            if here is not None and version != here:
                message = f"{name} {here} is on this machine; all nodes must have the same"
                yield ConfigProblem(field, message, f"{name}=={version}")


@functools.cache
def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _joined_commands(settings: Mapping[str, Any], field: str) -> str | None:
    commands = settings.get(field)
    return " ".join(str(each) for each in commands) if isinstance(commands, list) else None


def _all_strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield the field and text of every string in the file."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _all_strings(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _all_strings(inner, field)
    elif isinstance(value, str):
        yield field, value
