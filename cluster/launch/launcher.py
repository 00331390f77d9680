"""`python -m cluster up|down FILE`: Ray's own launcher, and what it needs before or leaves undone.

Before `ray up`: the file is checked, the token made, for EC2 the ground laid (launch/ground.py).
Machines of one's own get autoscaler v1, as v2 of Ray 2.60 starts all workers but one and sticks.
After it, spot machines that do not come are replaced by ones on demand (launch/fallback.py). After
`ray down`, which leaves the workers' Ray running on machines of one's own, it is ended there
(launch/leftovers.py). Each command is shown before it runs.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import spec
from cluster.errors import BerthaError
from cluster.launch import aws, cleanup, nat, provision, spot_fallback
from cluster.launch.aws import Account
from cluster.settings import SettingsError, read_yaml
from cluster.validation import check
from cluster.validation.start_commands import TOKEN_FILE

AUTOSCALER_V2 = "RAY_UP_enable_autoscaler_v2"
Run = Callable[[Sequence[str], Mapping[str, str]], int]


class LaunchError(BerthaError):
    """A command that did not end well; the text says which, and the way out."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands `up` and `down`."""
    for name, told, run in (
        ("up", "raise a cluster: `ray up`, with what it needs before", run_up),
        ("down", "take it down: `ray down`, with what it leaves undone", run_down),
    ):
        parser = commands.add_parser(name, help=told)
        parser.add_argument("file", help="a cluster file, or the name of a shipped one")
        parser.add_argument("--yes", action="store_true", help="do not ask before it begins")
        parser.add_argument("--dry-run", action="store_true", help="only show the commands")
        parser.set_defaults(run=run)


def run_up(options: argparse.Namespace) -> int:
    """Raise the cluster of a file. Raises BerthaError for a file or an account that cannot."""
    up(options.file, options.yes, _only_shown if options.dry_run else _run, options.dry_run)
    return 0


def run_down(options: argparse.Namespace) -> int:
    """Take the cluster of a file down."""
    down(options.file, options.yes, _only_shown if options.dry_run else _run, options.dry_run)
    return 0


def up(name: str, yes: bool, run: Run, dry: bool = False) -> Path:
    """Raise a cluster; the file that Ray's other commands take. run: what runs a command."""
    path = spec.find(name)
    settings = _raisable(path)
    check.checked(path)
    account = _account(settings)
    target = path
    if account is not None:
        target = provision.kept(settings, Path.cwd())
        if not dry:
            earlier = read_yaml(target) if target.is_file() else None
            settings = provision.resolved(
                settings, provision.lay(settings, account, print, earlier)
            )
            provision.write(settings, target, path)
        else:
            print(
                f"first     bucket, roles, groups and network are made; ids go into {target.name}"
            )
    if not dry:
        _make_token()
    _launch("up", target, yes, account is not None, run, "--no-config-cache")
    if account is not None and not dry:
        short = spot_fallback.missing(settings, account, print)
        if short:
            _instead_of_spot(target, path, short, run)
    for line in _next(target):
        print(line)
    return target


def down(name: str, yes: bool, run: Run, dry: bool = False) -> None:
    """Take a cluster down, so that nothing of it runs or costs."""
    path = spec.find(name)
    settings = _raisable(path)
    account = _account(settings)
    kept = provision.kept(settings, Path.cwd())
    target = kept if account is not None and kept.is_file() else path
    _launch("down", target, yes, account is not None, run)
    if account is None:
        for address, command in cleanup.stops(settings):
            print(f"$ {shlex.join(command)}", flush=True)
            if run(command, dict(os.environ)):
                print(f"{address}: was not reached; Ray may still run there", file=sys.stderr)
    elif not dry:
        _nothing_left(settings, account)
        if target != path:
            target.unlink()  # made by `up`, which then looks for images and a place anew


def _instead_of_spot(target: Path, source: Path, short: Mapping[str, int], run: Run) -> None:
    """Ask for machines on demand in place of spot ones that did not come."""
    settings = read_yaml(target)
    instead = spot_fallback.moved(settings, short)
    if instead == settings:
        print("          no kind of the file has them on demand; the cluster waits for spot")
        return
    print(f"          on demand instead: {', '.join(f'{n} x {kind}' for kind, n in short.items())}")
    provision.write(instead, target, source)
    _launch("up", target, True, True, run, "--no-config-cache", "--no-restart")


def _raisable(path: Path) -> dict[str, Any]:
    settings = read_yaml(path)
    provider = settings.get("provider")
    if not isinstance(provider, Mapping) or provider.get("type") not in check.OURS:
        raise SettingsError(
            f"{path}: provider.type: `up` and `down` raise {', '.join(check.OURS)}; use `ray up` "
            "for others"
        )
    if not settings.get("cluster_name"):
        raise SettingsError(f"{path}: cluster_name: missing; it is what machines are found by")
    if check.is_this_machine(settings):
        raise SettingsError(
            f"{path} is this machine alone, and nothing is to be raised: `python -m trainers` and "
            "the others start Ray here themselves"
        )
    return settings


def _account(settings: Mapping[str, Any]) -> Account | None:
    provider = settings["provider"]
    if provider["type"] != "aws":
        return None
    if not provider.get("region"):
        raise SettingsError("provider.region: missing; as us-east-1")
    return Account(str(provider["region"]))


def _launch(verb: str, target: Path, yes: bool, rented: bool, run: Run, *more: str) -> None:
    """Run `ray up` or `ray down`, shown first. Raises LaunchError where it does not end well."""
    command = [_ray(), verb, str(target), *(["--yes"] if yes else []), *more]
    environment = {AUTOSCALER_V2: "1" if rented else "0"}
    shown = shlex.join(["ray", *command[1:]])
    print(f"$ {'' if rented else f'{AUTOSCALER_V2}=0 '}{shown}", flush=True)
    status = run(command, os.environ | environment)
    if status:
        raise LaunchError(
            f"`{shown}` ended with status {status}, and says above why; when that is mended, run "
            "this again: what is there already is used"
        )


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, env=dict(environment), check=False).returncode


def _only_shown(command: Sequence[str], environment: Mapping[str, str]) -> int:
    return 0


def _ray() -> str:
    """The `ray` of this environment, whatever the path says."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.is_file() else shutil.which("ray")
    if found is None:
        raise LaunchError('there is no `ray` here; pip install "ray[default]"')
    return found


def _make_token() -> None:
    """The token with which all nodes and this machine know each other, where there is none yet."""
    path = Path.home() / TOKEN_FILE
    if path.is_file():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="utf-8")
    print(f"token     made in {path}, for this machine's user and the nodes")


def _nothing_left(settings: Mapping[str, Any], account: Account) -> None:
    """Take away what costs beside machines, and say what stays."""
    name = str(settings["cluster_name"])
    if nat.take_down(account, name):
        print("NAT gateway deleted")
    left = aws.running(account, name)
    if left:
        named = ", ".join(f"{each.name} ({each.instance_type})" for each in left)
        raise LaunchError(f"still running, and costing: {named}; run this again")
    provision.withdraw(settings, account)
    print(f"nothing of {name} runs; its network, roles and bucket stay: they cost nothing but what")
    print("the bucket holds")


def _next(target: Path) -> list[str]:
    submit = "ray job submit --working-dir . -- python -m trainers RECIPE"
    return [
        f"next      ray dashboard {target}      # in another terminal: port 8265 of the head, here",
        "          export RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:8265",
        f"          {submit} --cluster {target.name}",
        f"          python -m cluster down {target.name}",
    ]
