"""Commands for what a registry holds and serves: register, deploy, promote, rollback, list.

Whatever endpoint looks at the registry takes a change up within a second; `deploy --address` also
starts an endpoint on a Ray cluster where none of ours runs.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from cluster.settings import validated
from serving.deployment.config import Endpoint
from serving.fetch import at_hand, is_far
from serving.registry.canary_rule import Rule
from serving.registry.model_ref import checked_alias, checked_name
from serving.registry.naming import name_of
from serving.registry.registry import Registry, RegistryError
from serving.registry.state import State

REGISTRY = "registry"


def endpoint_of(options: argparse.Namespace, registry: str) -> Endpoint:
    """The endpoint that the command line describes."""
    least = options.replicas
    settings = {
        "registry": registry if "://" in registry else str(Path(registry).resolve()),
        "host": options.host,
        "port": options.port,
        "min_replicas": least,
        "max_replicas": max(least, options.max_replicas or least),
        "memory_gib": options.memory_gib,
        "keys": options.keys and options.keys.resolve(),
        "certificate": options.certificate and options.certificate.resolve(),
        "log_requests": options.log_requests,
        "traces": options.traces,
    }
    return validated(Endpoint, settings, "the command line")


def add_endpoint_arguments(parser: argparse.ArgumentParser, num_replicas: int) -> None:
    """What `endpoint_of` reads."""
    parser.add_argument("--registry", default=REGISTRY, help="directory or s3://: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at: %(default)s")
    parser.add_argument(
        "--replicas", type=int, default=num_replicas, help="of one thread each: %(default)s"
    )
    parser.add_argument("--max-replicas", type=int, help="scale up to as many; default: do not")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="of models, in each replica")
    parser.add_argument("--keys", type=Path, help="file of API keys; without it, none is needed")
    parser.add_argument("--certificate", type=Path, help="PEM with certificate and key, for TLS")
    parser.add_argument("--traces", metavar="URL", help="of an OpenTelemetry collector")
    parser.add_argument("--log-requests", action="store_true", help="a JSON line a request")


def add_commands(commands: Any) -> None:
    """The parsers of the commands of this file."""
    deploys = commands.add_parser("deploy", help="make a bundle or a version the one that answers")
    deploys.add_argument("what", metavar="BUNDLE|NAME[:VERSION|@ALIAS]")
    deploys.add_argument("--as", dest="name", help="name of the bundle; default: of its run")
    deploys.add_argument("--note", default="", help="for the history")
    deploys.add_argument("--canary", type=float, metavar="SHARE", help="of the requests, as 0.1")
    deploys.add_argument("--shadow", action="store_true", help="a copy of them, answered unheard")
    deploys.add_argument(
        "--rule", action="append", default=[], metavar="KEY=VALUE", help="as min_requests=200"
    )
    deploys.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="a Ray cluster")
    add_endpoint_arguments(deploys, 1)
    deploys.set_defaults(command=deploy)
    registers = commands.add_parser("register", help="keep a bundle under a name; it answers later")
    registers.add_argument("what", metavar="BUNDLE", help="a directory, or s3://")
    registers.add_argument("--as", dest="name", help="name of the bundle; default: of its run")
    registers.add_argument("--alias", help="of the version, as best")
    registers.add_argument("--note", default="", help="for the history")
    registers.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
    registers.add_argument("--dry-run", action="store_true", help="only whether it could be done")
    registers.set_defaults(command=register)
    for name, command, text in (
        ("promote", promote, "make the canary live"),
        ("rollback", rollback, "end the canary, or go back to the live version before"),
        ("history", history, "every change of a name"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument("name")
        parser.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
        parser.set_defaults(command=command)
    lists = commands.add_parser("list", help="names, versions, aliases and canaries")
    lists.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
    lists.set_defaults(command=show)


def deploy(options: argparse.Namespace) -> int:
    """Make a version live or a canary; register it first where a bundle is given."""
    registry = Registry.open(options.registry)
    if is_far(options.what) or Path(options.what).is_dir():
        name = options.name or name_of(Path(options.what))
        with at_hand(options.what) as bundle:
            version = registry.register(bundle, name, options.note)
    else:
        state, reference = registry.read().find(options.what)
        name, version = state.name, _meant(state, reference)
    rule = validated(Rule, dict(pair.partition("=")[::2] for pair in options.rule), "--rule")
    after = registry.deploy(name, version, options.canary, options.shadow, rule, options.note)
    print(_line(after))
    if options.address:
        from serving.deployment import app  # Ray, which a change of the registry must not pay for

        app.deploy(endpoint_of(options, options.registry), options.address)
        print(f"served at {options.host}:{options.port} of the cluster's head node")
    return 0


def register(options: argparse.Namespace) -> int:
    """Keep a bundle as the next version of a name, which changes nothing of what answers."""
    name = checked_name(options.name or name_of(Path(options.what)))
    alias = checked_alias(options.alias) if options.alias else None
    _check_place(options.registry)
    try:
        registry = Registry.open(options.registry)
        snapshot = registry.read()
    except OSError as error:
        raise RegistryError(
            f"--registry {options.registry}: {error}; name a directory, or s3://BUCKET/PREFIX"
        ) from None
    if options.dry_run:
        print(f"{options.registry}: {len(snapshot.states)} names; {name} can be registered")
        return 0
    with at_hand(options.what) as bundle:
        version = registry.register(bundle, name, options.note)
    if alias:
        registry.alias(name, alias, version, options.note)
    print(f"{name}:{version}")
    return 0


def _check_place(registry: str) -> None:
    """Raise RegistryError unless `registry` can be written: a directory, or what can become one."""
    if "://" in registry:
        return
    path = Path(registry)
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "cannot be written" if there.is_dir() else "is not a directory"
        raise RegistryError(f"--registry {registry}: {there} {what}; name another")


def promote(options: argparse.Namespace) -> int:
    """Make the canary live."""
    print(_line(Registry.open(options.registry).promote(options.name)))
    return 0


def rollback(options: argparse.Namespace) -> int:
    """End the canary, or go back."""
    print(_line(Registry.open(options.registry).rollback(options.name)))
    return 0


def history(options: argparse.Namespace) -> int:
    """Print every change of a name."""
    for state in Registry.open(options.registry).history(options.name):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.when))
        why = f": {state.why}" if state.why else ""
        print(f"{state.number:4}  {when}  {state.who}  {state.what}{why}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print names, versions, aliases and canaries."""
    snapshot = Registry.open(options.registry).read()
    for name in sorted(snapshot.states):
        print(_line(snapshot.states[name]) + ("  (default)" if name == snapshot.default else ""))
    if not snapshot.states:
        print(f"{options.registry}: no models; python -m serving deploy BUNDLE makes the first")
    return 0


def _meant(state: State, reference: Any) -> str:
    """The version to deploy: the one that is named, or the newest of a bare name."""
    if reference.version is None and reference.alias is None:
        return max(state.versions, key=int)
    return state.version_of(reference)


def _line(state: State) -> str:
    versions = [
        version + "".join(f"@{alias}" for alias in state.aliases_of(version))
        for version in sorted(state.versions, key=int)
    ]
    trial = ""
    if state.canary is not None:
        kind = "shadow" if state.canary.shadow else "canary"
        trial = f"  {kind} {state.canary.version} on {state.canary.share:.1%}"
    return f"{state.name}  live {state.live or 'none'}  versions {' '.join(versions)}{trial}"
