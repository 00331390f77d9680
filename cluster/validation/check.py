"""`bertha check FILE`: list every problem in a cluster file at once."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import ipaddress
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import spec
from cluster.settings import SettingsError, read_cluster_yaml, validate_settings
from cluster.validation import ec2, onprem, start_commands
from cluster.validation.problem import ConfigProblem, as_mapping, suggest_name

SUPPORTED_PROVIDERS = ("local", "aws")
RAY_PROVIDERS = (
    *SUPPORTED_PROVIDERS, "aliyun", "azure", "external", "gcp", "kuberay", "spark", "vsphere",
)  # fmt: skip
TYPE_NAMES = {
    "integer": "a whole number", "string": "text", "array": "a list", "object": "a mapping",
}  # fmt: skip


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `check`."""
    parser = commands.add_parser("check", help="every mistake in a cluster file, explained")
    parser.add_argument("file", help="a cluster file, or the name of a shipped one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the file launches. Raises SettingsError that lists every problem."""
    path = spec.find_cluster_file(options.file)
    cluster = check_cluster_file(path)
    print(
        f"{path}: nothing wrong: {cluster.name} ({cluster.provider}), {cluster.num_nodes} training "
        f"node(s), {cluster.num_workers} worker(s) of kind {cluster.metadata.accelerator}"
    )
    return 0


def check_cluster_file(path: Path) -> spec.ClusterSpec:
    """Return the spec of a valid file. Raises SettingsError that lists every problem."""
    settings = read_cluster_yaml(path)
    problems = list(dict.fromkeys(map(str, find_problems(settings))))
    if not problems:
        return spec.parse_cluster_spec(path, settings)
    raise SettingsError("\n  ".join([f"{path}: {len(problems)} mistake(s):", *problems]))


def find_problems(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield every problem in a file's settings. Raises SettingsError without Ray installed."""
    provider = as_mapping(settings.get("provider"))
    for error in _load_validator().iter_errors(settings):
        yield from _translate_error(error)
    yield from _check_metadata(settings)
    kind = provider.get("type")
    if kind is None:
        yield ConfigProblem("provider.type", f"missing; one of {', '.join(SUPPORTED_PROVIDERS)}")
        return
    if kind not in RAY_PROVIDERS:
        suggestion = suggest_name(str(kind), RAY_PROVIDERS)
        yield ConfigProblem("provider.type", f"Ray has no such provider{suggestion}", kind)
        return
    if is_single_machine(settings):
        return
    if kind == "local":
        yield from onprem.check_onprem(settings)
    elif kind == "aws":
        yield from ec2.check_ec2(settings)
    yield from start_commands.check_commands(settings)
    yield from start_commands.check_access(settings)
    if kind == "aws" and not settings.get("setup_commands"):
        message = "missing: Ray's defaults install a nightly build of Ray and no torch"
        yield ConfigProblem("setup_commands", f"{message}; copy them from a shipped file")
    yield from _check_storage(settings)


def is_single_machine(settings: Mapping[str, Any]) -> bool:
    """Whether the file describes this machine alone, which is never launched."""
    provider = settings["provider"]
    alone = provider.get("type") == "local" and not provider.get("worker_ips")
    return alone and provider.get("head_ip", "127.0.0.1") in onprem.LOOPBACK


@functools.cache
def _load_validator() -> Any:
    """Load Ray's own JSON schema of cluster files without importing Ray."""
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        raise SettingsError('Ray is not installed here; pip install "ray[default]"')
    schema = json.loads((Path(ray.origin).parent / "autoscaler/ray-schema.json").read_text())
    return importlib.import_module("jsonschema").Draft7Validator(schema)


def _translate_error(error: Any) -> Iterator[ConfigProblem]:
    """Translate one jsonschema error; a group with several unknown keys gives several problems."""
    field = ".".join(str(part) for part in error.absolute_path)
    prefix = f"{field}." if field else ""
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in sorted(set(error.instance) - set(known), key=str):
            message = f"Ray has no such setting{suggest_name(name, known)}"
            yield ConfigProblem(f"{prefix}{name}", message)
    elif error.validator == "required":
        # jsonschema reports each missing name in an error of its own, and only in its message.
        name = error.message.split("'")[1]
        yield ConfigProblem(f"{prefix}{name}", "missing; Ray requires it")
    elif error.validator == "type":
        expected = TYPE_NAMES.get(str(error.validator_value), str(error.validator_value))
        yield ConfigProblem(field or "the file", f"must be {expected}", error.instance)
    else:
        yield ConfigProblem(field or "the file", error.message.split("\n")[0], error.instance)


def _check_metadata(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    metadata = settings.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        return  # the schema check reports it
    try:
        ours = validate_settings(spec.ClusterMetadata, metadata, "metadata")
    except SettingsError as error:
        for line in str(error).splitlines()[1:]:
            field, _, message = line.strip().partition(": ")
            yield ConfigProblem(f"metadata.{field}", message)
        return
    if ours.ssh_from == "auto":
        return
    try:
        network = ipaddress.ip_network(ours.ssh_from)
    except ValueError:
        message = "is not a network, as 203.0.113.7/32, nor auto for this machine's own address"
        yield ConfigProblem("metadata.ssh_from", message, ours.ssh_from)
        return
    if network.prefixlen == 0:
        message = "lets everybody try to log in; give your own address, or auto"
        yield ConfigProblem("metadata.ssh_from", message, ours.ssh_from)


def _check_storage(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    storage = as_mapping(settings.get("metadata")).get("storage", "runs")
    if not isinstance(storage, str):
        return
    scheme, is_url, _ = storage.partition("://")
    if is_url and scheme != "s3":
        message = "is neither a directory that all nodes share nor s3://BUCKET/PREFIX"
        yield ConfigProblem("metadata.storage", message, storage)
    elif not is_url and not Path(storage).is_absolute():
        message = "is another directory on each machine; give a shared one, or s3://..."
        yield ConfigProblem("metadata.storage", message, storage)
