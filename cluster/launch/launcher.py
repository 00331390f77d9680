"""`bertha up|down FILE`: Ray's own launcher, and what it needs before and leaves after.

Before `ray up` the file is checked, the token made and AWS provisioned; afterwards missing spot
instances are replaced. After `ray down` what it leaves running or costing is ended. Each command is
printed before it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import spec
from cluster.errors import BerthaError
from cluster.launch import aws, nat, provision, spot_fallback
from cluster.launch.aws import AwsAccount
from cluster.ray_token import ensure_token_file, token_path
from cluster.settings import SettingsError, read_cluster_yaml
from cluster.validation import check

AUTOSCALER_V2 = "RAY_UP_enable_autoscaler_v2"
DEFAULT_PORT = 6379
SSH = (
    "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
    # As Ray's own launcher does: machines are reinstalled, and their host keys change.
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
)  # fmt: skip
CommandRunner = Callable[[Sequence[str], Mapping[str, str]], int]


class LaunchError(BerthaError):
    """A command that failed; the message names it and the way out."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `up` and `down`."""
    for name, summary, function in (
        ("up", "launch a cluster: `ray up`, with what it needs before", bring_up),
        ("down", "take it down: `ray down`, with what it leaves undone", tear_down),
    ):
        parser = commands.add_parser(name, help=summary)
        parser.add_argument("file", help="a cluster file, or the name of a shipped one")
        parser.add_argument("--yes", action="store_true", help="do not ask before it begins")
        parser.add_argument("--dry-run", action="store_true", help="only show the commands")
        parser.set_defaults(run=_run_subcommand, function=function)


def _run_subcommand(options: argparse.Namespace) -> int:
    run: CommandRunner = (lambda *_: 0) if options.dry_run else _run_command
    options.function(options.file, options.yes, run, options.dry_run)
    return 0


def bring_up(name: str, yes: bool, run: CommandRunner, dry_run: bool = False) -> Path:
    """Launch a cluster; return the file for Ray's other commands. run: executes a command.

    Raises BerthaError for a file, an account or a command that fails.
    """
    path = spec.find_cluster_file(name)
    settings, account = _load_launchable(path)
    check.check_cluster_file(path)
    target = path if account is None else provision.resolved_path(settings, Path.cwd())
    if account is not None and dry_run:
        print(f"first     bucket, roles, groups and network are made; ids go into {target.name}")
    elif account is not None:
        previous = read_cluster_yaml(target) if target.is_file() else None
        resources = provision.provision_resources(settings, account, print, previous)
        settings = provision.resolve_ids(settings, resources)
        provision.write_resolved(settings, target, path)
    if not dry_run:
        _ensure_token()
    _run_ray("up", target, yes, account is not None, run, "--no-config-cache")
    if account is not None and not dry_run:
        missing = spot_fallback.wait_for_spot(settings, account, print)
        if missing:
            _replace_missing_spot(target, path, missing, run)
    print(
        f"next      ray dashboard {target}      # in another terminal: forwards the head's port\n"
        "          export RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:8265\n"
        "          ray job submit --working-dir . -- python -m bertha train RECIPE "
        f"--cluster {target.name}\n"
        f"          bertha down {target.name}"
    )
    return target


def tear_down(name: str, yes: bool, run: CommandRunner, dry_run: bool = False) -> None:
    """Take a cluster down, so that nothing of it runs or costs."""
    path = spec.find_cluster_file(name)
    settings, account = _load_launchable(path)
    resolved = provision.resolved_path(settings, Path.cwd())
    target = resolved if account is not None and resolved.is_file() else path
    _run_ray("down", target, yes, account is not None, run)
    if account is None:
        # `ray down` stops the head only; Ray keeps running on machines one owns.
        for address, command in worker_stop_commands(settings):
            print(f"$ {shlex.join(command)}", flush=True)
            if run(command, dict(os.environ)):
                print(f"{address}: not reached; Ray may still run there", file=sys.stderr)
    elif not dry_run:
        _clean_up_aws(settings, account)
        if target != path:
            target.unlink()  # made by `up`, which then chooses images and a zone anew


def worker_stop_commands(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each owned worker's address, and the SSH command that ends this cluster's Ray there."""
    provider, auth = settings["provider"], settings.get("auth") or {}
    ssh = list(SSH)
    if auth.get("ssh_private_key"):
        ssh += ["-i", str(auth["ssh_private_key"]), "-o", "IdentitiesOnly=yes"]
    if auth.get("ssh_proxy_command"):
        ssh += ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"]
    start = " ".join(str(each) for each in settings.get("head_start_ray_commands") or [])
    port = re.search(r"--head\b.*--port[= ](\d+)", start)
    stop = stop_command(str(provider["head_ip"]), int(port[1]) if port else DEFAULT_PORT)
    for address in provider.get("worker_ips") or []:
        yield str(address), [*ssh, f"{auth.get('ssh_user')}@{address}", stop]


def stop_command(head: str, port: int) -> str:
    """Return a shell command that ends only what `head` started: SIGTERM, SIGKILL after 10 s.

    Processes of the head's cluster are known by its address on their command line.
    """
    try:
        address = socket.gethostbyname(head)  # by which Ray calls a head that is given by name
    except OSError:
        address = head
    names = "|".join(re.escape(name) for name in dict.fromkeys((head, address)))
    # The brackets keep the pattern from matching the shell whose command line contains it.
    pattern = f"[g]cs[-_]address=({names}):{port}( |$)"
    # A raylet's agents rename themselves, environment and all, and outlive it: they are found as
    # its children before it ends.
    return (
        f'p={shlex.quote(pattern)}; own=$(pgrep -d , -f -- "$p"); '
        'agents=$([ -z "$own" ] || pgrep -P "$own"); '
        'pkill -TERM -f -- "$p"; n=0; '
        'while pgrep -f -- "$p" > /dev/null && [ $n -lt 20 ]; do sleep 0.5; n=$((n+1)); done; '
        'pkill -KILL -f -- "$p"; [ -z "$agents" ] || kill -KILL $agents 2> /dev/null; true'
    )


def _replace_missing_spot(
    target: Path, source: Path, missing: Mapping[str, int], run: CommandRunner
) -> None:
    settings = read_cluster_yaml(target)
    moved = spot_fallback.move_to_on_demand(settings, missing)
    if moved == settings:
        print("          no node type has them on demand; the cluster waits for spot")
        return
    counts = ", ".join(f"{number} x {kind}" for kind, number in missing.items())
    print(f"          on demand instead: {counts}")
    provision.write_resolved(moved, target, source)
    _run_ray("up", target, True, True, run, "--no-config-cache", "--no-restart")


def _load_launchable(path: Path) -> tuple[dict[str, Any], AwsAccount | None]:
    """Return the settings, and the account if the machines are rented. Raises SettingsError."""
    settings = read_cluster_yaml(path)
    provider = settings.get("provider")
    supported = check.SUPPORTED_PROVIDERS
    if not isinstance(provider, Mapping) or provider.get("type") not in supported:
        raise SettingsError(
            f"{path}: provider.type: `up` and `down` support {', '.join(supported)}; use `ray up` "
            "for others"
        )
    if not settings.get("cluster_name"):
        raise SettingsError(f"{path}: cluster_name: missing; machines are found by it")
    if check.is_single_machine(settings):
        raise SettingsError(
            f"{path} is this machine alone, and nothing is to be launched: `bertha train` "
            "and the others start Ray here themselves"
        )
    if provider["type"] != "aws":
        return settings, None
    if not provider.get("region"):
        raise SettingsError(f"{path}: provider.region: missing; as us-east-1")
    return settings, AwsAccount(str(provider["region"]))


def _run_ray(
    verb: str, target: Path, yes: bool, rented: bool, run: CommandRunner, *flags: str
) -> None:
    """Print and run `ray up` or `ray down`. Raises LaunchError if it fails."""
    beside = Path(sys.executable).with_name("ray")  # of this environment, whatever PATH says
    ray = str(beside) if beside.is_file() else shutil.which("ray")
    if ray is None:
        raise LaunchError('there is no `ray` here; pip install "ray[default]"')
    arguments = [verb, str(target), *(["--yes"] if yes else []), *flags]
    # On machines one owns, autoscaler v2 of Ray 2.60 starts all workers but one and hangs.
    environment = {AUTOSCALER_V2: "1" if rented else "0"}
    shown = shlex.join(["ray", *arguments])
    print(f"$ {'' if rented else f'{AUTOSCALER_V2}=0 '}{shown}", flush=True)
    status = run([ray, *arguments], os.environ | environment)
    if status:
        raise LaunchError(
            f"`{shown}` ended with status {status}, and says above why; fix that and run this "
            "again: what exists already is used"
        )


def _run_command(command: Sequence[str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, env=dict(environment), check=False).returncode


def _ensure_token() -> None:
    """Make the token that nodes and this machine authenticate with, unless there is one."""
    if ensure_token_file():
        print(f"token     made in {token_path()}, for this machine's user and the nodes")


def _clean_up_aws(settings: Mapping[str, Any], account: AwsAccount) -> None:
    """Delete what costs beside instances. Raises LaunchError if instances still run."""
    name = str(settings["cluster_name"])
    if nat.delete_gateway(account, name):
        print("NAT gateway deleted")
    running = aws.running_instances(account, name)
    if running:
        names = ", ".join(f"{each.instance_id} ({each.instance_type})" for each in running)
        raise LaunchError(f"still running, and costing: {names}; run this again")
    # Last: a head that still runs needs its role to terminate its workers.
    provision.revoke_roles(settings, account)
    print(f"nothing of {name} runs; its network, roles and bucket stay: they cost nothing but what")
    print("the bucket holds")
