"""Commands on a registry: deploy, register, promote, rollback, list, history.

Running endpoints adopt a change within a second; `deploy --address` also starts an endpoint on a
Ray cluster.
"""

import argparse
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cluster.command_line import COUNT, FRACTION, PORT, POSITIVE, positive_number, whole_number
from cluster.errors import BerthaError
from cluster.settings import validate_settings
from serving.deployment.config import EndpointConfig
from serving.deployment.placement import describe_placement
from serving.fetch import local_copy
from serving.interface import Limits
from serving.registry.canary_rule import CanaryRule
from serving.registry.model_ref import (
    InvalidReference,
    ModelNotFound,
    ModelReference,
    check_alias,
    check_model_name,
    default_model_name,
)
from serving.registry.registry import Registry, RegistryError
from serving.registry.state import ModelState
from trainers.storage.store import is_url

REGISTRY = "registry"


def endpoint_from_options(
    options: argparse.Namespace, registry: str, num_replicas: int = 1
) -> EndpointConfig:
    """Return the endpoint that the command line describes. num_replicas: where it does not say."""
    least = num_replicas if options.replicas is None else options.replicas
    settings = {
        "registry": registry if "://" in registry else str(Path(registry).resolve()),
        "host": options.host,
        "port": options.port,
        "min_replicas": least,
        "max_replicas": max(least, options.max_replicas or least),
        "device": options.device,
        "gpus_per_replica": options.gpus_per_replica,
        "memory_gib": options.memory_gib,
        "cache_mib": options.cache_mib,
        # Behind a link: Kubernetes exchanges what a link of a secret leads to.
        "keys": options.keys and options.keys.absolute(),
        "certificate": options.certificate and options.certificate.absolute(),
        "grpc": options.grpc,
        "allowed_hosts": tuple(options.allow_host),
        "limits": {
            "max_texts": options.max_client_batch_size,
            "max_body_bytes": options.max_body,
            "max_wait_seconds": options.max_wait,
            "max_waiting_requests": options.max_waiting,
        },
        "allowed_origins": tuple(options.allow_origin),
        "root_path": options.root_path,
        "feedback": options.feedback and options.feedback.absolute(),
        "log_requests": options.log_requests,
        "log_format": options.log_format,
        "log_file": options.log_file and options.log_file.absolute(),
        "traces": options.traces,
    }
    return validate_settings(EndpointConfig, settings, "the command line")


def add_endpoint_arguments(parser: argparse.ArgumentParser, num_replicas: str = "1") -> None:
    """Add the arguments that `endpoint_from_options` reads. num_replicas: the default, in words."""
    parser.add_argument("--registry", default=REGISTRY, help="directory or s3://: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at: %(default)s")
    parser.add_argument("--port", type=PORT, default=8000, help="port to listen at: %(default)s")
    parser.add_argument(
        "--replicas", type=COUNT, help=f"of one thread each; default: {num_replicas}"
    )
    parser.add_argument("--max-replicas", type=COUNT, help="scale up to as many; default: do not")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "neuron", "xpu", "mps"),
        default="auto",
        help="that replicas compute on; default: a GPU where there is one",
    )
    parser.add_argument(
        "--gpus-per-replica",
        type=positive_number(1),
        metavar="SHARE",
        help="of a GPU and its memory, as 0.25; default: an even share",
    )
    parser.add_argument(
        "--memory-gib", type=POSITIVE, default=4.0, help="of models on the device, each replica"
    )
    parser.add_argument(
        "--cache-mib",
        type=POSITIVE,
        default=0.0,
        metavar="MIB",
        help="of answers to texts that come again, each replica; default: keep none",
    )
    parser.add_argument("--keys", type=Path, help="file of API keys; without it, none is needed")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name too; on loopback only to localhost otherwise",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="whose pages may read answers, as https://app.example, or *; default: none",
    )
    parser.add_argument("--root-path", default="", help="below which a proxy puts it, as /bertha")
    parser.add_argument("--certificate", type=Path, help="PEM with certificate and key, for TLS")
    parser.add_argument("--grpc", action="store_true", help="answer gRPC too, at the same port")
    parser.add_argument(
        "--feedback", type=Path, metavar="DIR", help="keep right answers that clients send there"
    )
    limits = parser.add_argument_group("limits of each replica, told by /info")
    limits.add_argument(
        "--max-client-batch-size",
        type=COUNT,
        default=Limits().max_texts,
        metavar="TEXTS",
        help="of a request: %(default)s",
    )
    limits.add_argument(
        "--max-body",
        type=whole_number(1024),
        default=Limits().max_body_bytes,
        metavar="BYTES",
        help="of a request, unpacked: %(default)s",
    )
    limits.add_argument(
        "--max-wait",
        type=POSITIVE,
        default=Limits().max_wait_seconds,
        metavar="SECONDS",
        help="that would be longer is refused, unless the request asks for much: %(default)s",
    )
    limits.add_argument(
        "--max-waiting",
        type=COUNT,
        default=Limits().max_waiting_requests,
        metavar="REQUESTS",
        help="at a time: %(default)s",
    )
    parser.add_argument("--traces", metavar="URL", help="of an OpenTelemetry collector")
    parser.add_argument("--log-requests", action="store_true", help="a JSON line a request")
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: a line a request, and messages as such lines too; default: %(default)s",
    )
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="for these lines; default: standard output"
    )


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    deploys = commands.add_parser("deploy", help="make a bundle or a version the one that answers")
    deploys.add_argument("what", metavar="BUNDLE|NAME[:VERSION|@ALIAS]")
    deploys.add_argument("--as", dest="name", help="name of the bundle; default: of its run")
    deploys.add_argument("--note", default="", help="for the history")
    deploys.add_argument("--canary", type=FRACTION, metavar="SHARE", help="of the requests, as 0.1")
    deploys.add_argument("--shadow", action="store_true", help="a copy of them, answered unheard")
    deploys.add_argument(
        "--rule", action="append", default=[], metavar="KEY=VALUE", help="as min_requests=200"
    )
    deploys.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="a Ray cluster")
    add_endpoint_arguments(deploys)
    deploys.set_defaults(command=deploy_version)
    registers = commands.add_parser("register", help="keep a bundle under a name; it answers later")
    registers.add_argument("what", metavar="BUNDLE", help="a directory, or s3://")
    registers.add_argument("--as", dest="name", help="name of the bundle; default: of its run")
    registers.add_argument("--alias", help="of the version, as best")
    registers.add_argument("--note", default="", help="for the history")
    registers.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
    registers.add_argument("--dry-run", action="store_true", help="only whether it could be done")
    registers.set_defaults(command=register_bundle)
    for name, command, text in (
        ("promote", promote_canary, "make the canary live"),
        ("rollback", roll_back, "end the canary, or go back to the live version before"),
        ("history", print_history, "every change of a name"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument("name")
        parser.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
        parser.set_defaults(command=command)
    lists = commands.add_parser("list", help="names, versions, aliases and canaries")
    lists.add_argument("--registry", default=REGISTRY, help="default: %(default)s")
    lists.add_argument(
        "--verify", action="store_true", help="hash every file; fail if anything is damaged"
    )
    lists.set_defaults(command=list_models)


def deploy_version(options: argparse.Namespace) -> int:
    """Make a version live or a canary; register it first if a bundle is given."""
    registry = Registry.open(options.registry)
    if is_url(options.what) or Path(options.what).is_dir():
        name = options.name or default_model_name(Path(options.what))
        with local_copy(options.what) as bundle:
            version = registry.register(bundle, name, options.note)
    else:
        state, reference = find_name(registry, options.registry, options.what)
        name, version = state.name, _resolve_version(state, reference)
        registry.read_card(name, version, state.versions[version].seal)  # or it is damaged
    rule = validate_settings(
        CanaryRule, dict(pair.partition("=")[::2] for pair in options.rule), "--rule"
    )
    after = registry.deploy(name, version, options.canary, options.shadow, rule, options.note)
    print(_describe_state(after))
    if options.address:
        from serving.deployment import app  # Ray, which a change of the registry must not pay for

        endpoint = endpoint_from_options(options, options.registry)
        placed = app.deploy_endpoint(endpoint, options.address)
        print(
            f"served at {options.host}:{options.port} of the cluster's head node, on "
            f"{describe_placement(placed)}"
        )
    return 0


def find_name(registry: Registry, address: str, what: str) -> tuple[ModelState, ModelReference]:
    """Return the state and the reference of a name. Raises BerthaError where there is none.

    address: of the registry, as the user gave it. what: no path of a bundle, else a name.
    """
    try:
        return registry.read_snapshot().resolve_reference(what)
    except (InvalidReference, ModelNotFound) as error:
        raise BerthaError(
            f"{what}: no run or bundle here, and no name in {address}: {error}; `bertha serve` "
            "lists what there is"
        ) from None


def register_bundle(options: argparse.Namespace) -> int:
    """Register a bundle as the next version of a name; nothing answers by it yet."""
    name = check_model_name(options.name or default_model_name(Path(options.what)))
    alias = check_alias(options.alias) if options.alias else None
    registry = open_writable_registry(options.registry)
    if options.dry_run:
        num_names = len(registry.read_snapshot().states)
        print(f"{options.registry}: {num_names} names; {name} can be registered")
        return 0
    with local_copy(options.what) as bundle:
        version = registry.register(bundle, name, options.note)
    if alias:
        registry.set_alias(name, alias, version, options.note)
    print(f"{name}:{version}")
    return 0


def open_writable_registry(address: str) -> Registry:
    """Open a registry. Raises RegistryError unless it can be read and written, or created."""
    if "://" not in address:
        path = Path(address)
        parent = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            what = "cannot be written" if parent.is_dir() else "is not a directory"
            raise RegistryError(f"--registry {address}: {parent} {what}; name another")
    try:
        registry = Registry.open(address)
        registry.read_snapshot()
    except OSError as error:
        raise RegistryError(
            f"--registry {address}: {error}; name a directory, or s3://BUCKET/PREFIX"
        ) from None
    return registry


def promote_canary(options: argparse.Namespace) -> int:
    """Make the canary live."""
    print(_describe_state(Registry.open(options.registry).promote(options.name)))
    return 0


def roll_back(options: argparse.Namespace) -> int:
    """End the canary, or go back to the previous live version."""
    print(_describe_state(Registry.open(options.registry).rollback(options.name)))
    return 0


def print_history(options: argparse.Namespace) -> int:
    """Print every change of a name."""
    for state in Registry.open(options.registry).history(options.name):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.when))
        why = f": {state.why}" if state.why else ""
        print(_printable(f"{state.number:4}  {when}  {state.who}  {state.what}{why}"))
    return 0


def list_models(options: argparse.Namespace) -> int:
    """Print names, versions, aliases and canaries, with a mark and the reason if damaged.

    Reads the card of every version; with --verify all files, and then returns 1 for any damage.
    """
    registry = Registry.open(options.registry)
    snapshot = registry.read_snapshot()
    num_damaged = len(snapshot.damage)
    for name in sorted({*snapshot.states, *snapshot.damage}):
        state, damage = snapshot.states.get(name), {}
        if state is not None:
            damage = registry.find_damage(state, every_file=options.verify)
            default = "  (default)" if name == snapshot.default_name else ""
            print(_describe_state(state, damage) + default)
        if name in snapshot.damage:
            print(_printable(f"  {name}: {snapshot.damage[name]}"))
        for version, reason in damage.items():
            print(_printable(f"  {name}:{version} is damaged: {reason}"), flush=True)
        num_damaged += len(damage)
    if not snapshot.states and not snapshot.damage:
        print(f"{options.registry}: no models; `bertha deploy BUNDLE` makes the first")
    if options.verify:
        num_versions = sum(len(state.versions) for state in snapshot.states.values())
        print(f"{options.registry}: {num_versions} versions verified, {num_damaged} damages")
    return 1 if options.verify and num_damaged else 0


def _resolve_version(state: ModelState, reference: Any) -> str:
    """Return the named version, or the newest of a bare name."""
    if reference.version is None and reference.alias is None and state.versions:
        return max(state.versions, key=int)
    return state.resolve_version(reference)


def describe_versions(state: ModelState) -> str:
    """Return the versions of a name, as `sentiment:1, sentiment:2`."""
    return ", ".join(f"{state.name}:{version}" for version in sorted(state.versions, key=int))


def _printable(text: str) -> str:
    """Return one line of text that a file of the registry holds, its control characters escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _describe_state(state: ModelState, damaged: Collection[str] = ()) -> str:
    """Describe a name in a line; a damaged version has an exclamation mark."""
    versions = [
        "".join([version, *(f"@{alias}" for alias in state.aliases_of(version))])
        + ("!" if version in damaged else "")
        for version in sorted(state.versions, key=int)
    ]
    trial = ""
    if state.canary is not None:
        kind = "shadow" if state.canary.shadow else "canary"
        trial = f"  {kind} {state.canary.version} on {state.canary.share:.1%}"
    return f"{state.name}  live {state.live or 'none'}  versions {' '.join(versions)}{trial}"
