"""The command line of serving.

bertha serve BUNDLE [--port 8000] [--ask TEXT ...]     on this machine, until Ctrl-C
bertha predict BUNDLE TEXT...                        in this process
bertha predict BUNDLE rows.csv --out answers.csv     the same rows, answered
bertha evaluate BUNDLE labelled.csv                  how good it is on them
bertha export BUNDLE DIR [--format onnx]             for other libraries
bertha push BUNDLE USER/NAME                         on the Hugging Face hub
bertha build BUNDLE                                  benchmark and choose an engine
bertha deploy BUNDLE|NAME[:VERSION] [--canary 0.1]   in a registry, and on a cluster
bertha register BUNDLE --as NAME                     in a registry, without deploying
bertha promote|rollback|list|history ...             in a registry
bertha key NAME                                      create an API key
bertha embedder MODEL OUT                            export a bundle of embeddings
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from cluster.command_line import COUNT, FRACTION, POSITIVE, Parser
from cluster.errors import BerthaError
from serving import choices, client, commands
from serving.batch import commands as batch_commands
from serving.deployment import placement
from serving.deployment.config import EndpointConfig, machine_memory_gib, suggest_replicas
from serving.fetch import local_copy, upload_engines
from serving.http import keys
from serving.http.grpc_server import check_grpc_packages
from serving.http.messages import Scope
from serving.interface import SERVED_DEVICES
from serving.protocols.labels import choose_labels
from serving.publish import commands as publish_commands
from serving.registry.model_ref import default_model_name
from trainers.models.card import ModelCard, find_bundle, read_card


def main(arguments: Sequence[str] | None = None, prog: str = "python -m serving") -> int:
    """Run one command and return the exit status: 0, or 2 for an error of the user."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = "serve" if words[:1] == ["run"] else words[0] if words else ""
    if len(words) == 1 and command in choices.USAGES:
        print(choices.describe_choices(command, prog))
        return 2
    options = parse_arguments(words, prog)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        return int(options.command(options))
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_service(options: argparse.Namespace) -> int:
    """Serve a bundle, or what is live in a registry, until Ctrl-C."""
    scheme = "https" if options.certificate else "http"
    url = client.service_url(options.host, options.port, scheme)
    with _open_registry(options) as (registry, name, card):
        endpoint = _local_endpoint(options, registry)
        for line in _describe_device(endpoint, card):
            print(line, flush=True)
        if options.dry_run:
            number = endpoint.min_replicas
            replicas = f"{number} replica{'s' if number > 1 else ''} of one thread"
            print(f"would be served at {url}, on {replicas}")
            return 0
        from serving.deployment import app  # Ray, which `predict` must not pay for

        print(f"starting Ray and loading {name} …", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with app.serve_locally(endpoint) as local_ray:
            client.wait_until_healthy(url, options.certificate)
            print(f"  page  {url}/\n  API   {url}/predict\n  docs  {url}/docs", flush=True)
            for text in options.ask:
                answer = client.predict_text(url, text, options.certificate)
                print(_format_answer(answer, card, text), flush=True)
            if options.ask and not sys.stdin.isatty():
                print(f"To serve it again: bertha serve {options.what}")
            else:
                print("Ctrl-C ends it.", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    local_ray.watch()
                print("ending …", flush=True)
    return 0


def _local_endpoint(options: argparse.Namespace, registry: str) -> EndpointConfig:
    """Return the endpoint that the command line describes, placed on this machine.

    Without a number of replicas, one a core, but no more than suit its GPUs.
    """
    number = suggest_replicas(len(os.sched_getaffinity(0)), machine_memory_gib())
    kind, gpus = ("cpu", 0) if options.device == "cpu" else placement.find_local_gpus()
    if gpus:
        number = min(number, gpus * placement.REPLICAS_PER_GPU)
        options.device = kind if options.device == "auto" else options.device
    endpoint = commands.endpoint_from_options(options, registry, number)
    if endpoint.grpc:
        check_grpc_packages()
    return placement.place_endpoint(endpoint, {"GPU": gpus})


def _describe_device(endpoint: EndpointConfig, card: ModelCard) -> Iterator[str]:
    """Yield what to say of the device of an endpoint, and of the engine that answers there."""
    if endpoint.device == "cpu":
        return
    from serving.engine.choice import choose_engine  # torch, which serving on the CPU loads later
    from serving.engine.devices import open_device

    name = open_device(endpoint.device).name
    yield f"device    {placement.describe_placement(endpoint)}: {name}"
    remark = choose_engine(card, endpoint.device, name).remark
    if remark:
        yield f"engine    {remark}"


def _format_answer(labels: client.LabelScores, card: ModelCard, text: str) -> str:
    """Format what the service says of a text, by the thresholds of the card."""
    by_name = {each["label"]: each["score"] for each in labels}
    scores = [by_name[label] for label in card.labels]
    chosen = choose_labels(scores, card.labels, card.task, card.thresholds)
    return client.format_labels(labels, card.task, text, chosen)


@contextlib.contextmanager
def serve_bundle(
    bundle: str, *, host: str = "127.0.0.1", port: int = 8000, replicas: int = 1
) -> Iterator[str]:
    """Serve a bundle on this machine within a `with` block; yield its URL once it answers."""
    from serving.deployment import app

    options = parse_arguments(["serve", bundle], "bertha")
    options.host, options.port, options.replicas = host, port, replicas
    url = client.service_url(host, port)
    with contextlib.ExitStack() as stack:
        registry, _, _ = stack.enter_context(_open_registry(options))
        endpoint = _local_endpoint(options, registry)
        stack.enter_context(app.serve_locally(endpoint))
        client.wait_until_healthy(url)
        yield url


@contextlib.contextmanager
def _open_registry(options: argparse.Namespace) -> Iterator[tuple[str, str, ModelCard]]:
    """Yield the registry to serve, a name in it, and its card; a bundle gets its own."""
    from serving.registry.model_ref import ModelReference
    from serving.registry.registry import Registry

    if not (Path(options.what).exists() or "/" in options.what):
        registry = Registry.open(options.registry)
        state, reference = commands.find_name(registry, options.registry, options.what)
        if reference != ModelReference(state.name):
            raise BerthaError(
                f"{options.what}: what is served is the live version: `bertha deploy "
                f"{options.what}` makes it that, and `bertha serve {state.name}` answers"
            )
        if state.live is None:
            place = options.registry
            where = "" if place == commands.REGISTRY else f" --registry {place}"
            raise BerthaError(
                f"{state.name} is registered, as {commands.describe_versions(state)}, and not "
                f"deployed: `bertha deploy {state.name}{where}` makes the newest version live, "
                f"then `bertha serve {state.name}{where}` answers"
            )
        version = state.resolve_version(reference)
        card = registry.read_card(state.name, version, state.versions[version].seal)
        if not options.dry_run:
            registry.make_default(state.name)
        yield options.registry, state.name, card
        return
    with (
        local_copy(options.what) as directory,
        tempfile.TemporaryDirectory(prefix="bertha-") as place,
    ):
        card, name = read_card(directory), default_model_name(directory)
        labels = ", ".join(card.labels) or "a number"
        if options.dry_run:
            print(f"{name}: {card.task} ({labels}), texts of up to {card.max_tokens} tokens")
            yield options.registry, name, card
            return
        own = Registry.open(place)
        own.deploy(name, own.register(directory, name))
        yield place, name, card


def create_key(options: argparse.Namespace) -> int:
    """Create an API key and print it once."""
    scopes = tuple(options.scope or ("inference",))
    print(keys.add_key(options.file, options.name, scopes, options.rate))
    print(f"kept as SHA-256 in {options.file}; it is not shown again", file=sys.stderr)
    return 0


def export_embedder_bundle(options: argparse.Namespace) -> int:
    """Export a bundle of embeddings."""
    from serving.optimize import export_embedder

    card = export_embedder.write_embedder_bundle(
        options.model, options.out, options.pooling, options.max_length
    )
    print(f"{options.out}: embeddings of texts of up to {card.max_length} tokens")
    if card.prompts:
        print(f"a request may name a prompt: {', '.join(sorted(card.prompts))}")
    return 0


def build_engines(options: argparse.Namespace) -> int:
    """Benchmark engines and choose one."""
    from serving.optimize.optimize import run_build_command

    if options.student is not None:
        options.student = find_bundle(options.student)
    with local_copy(options.bundle) as directory:
        status = run_build_command(options, directory)
        if not options.dry_run:
            upload_engines(directory, options.bundle)
    return status


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse a command line; exit as argparse does on a mistake."""
    parser = Parser(
        prog=prog,
        description="Serve bundles.",
        epilog=choices.help_epilog(prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")

    runs = subparsers.add_parser(
        "serve", aliases=["run"], help="serve on this machine until Ctrl-C"
    )
    runs.add_argument("what", metavar="BUNDLE|NAME", help="a directory, s3://, or a live name")
    runs.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this first")
    runs.add_argument("--dry-run", action="store_true", help="say what would be served")
    commands.add_endpoint_arguments(
        runs, f"one a core, on GPUs at most {placement.REPLICAS_PER_GPU} each"
    )
    runs.set_defaults(command=run_service)

    batch_commands.add_commands(subparsers)
    publish_commands.add_commands(subparsers)

    builds = subparsers.add_parser("build", help="measure engines of a bundle and choose one")
    builds.add_argument("bundle", help="directory of a bundle, or s3://")
    builds.add_argument(
        "--device",
        choices=("auto", *SERVED_DEVICES),
        default="auto",
        help="the kind that will serve; one must be here; default: a GPU where there is one",
    )
    builds.add_argument("--texts", type=Path, help="measure on these; default: the recipe's own")
    builds.add_argument("--threshold", type=FRACTION, help="least agreement; default: 0.995")
    builds.add_argument("--allow", action="append", default=[], metavar="NAME", help="even below")
    builds.add_argument("--only", action="append", metavar="NAME", help="this and torch fp32")
    builds.add_argument(
        "--student", type=Path, metavar="BUNDLE", help="a distilled model: one more candidate"
    )
    builds.add_argument("--rounds", type=COUNT, help="turns of each engine; default: 3")
    builds.add_argument("--dry-run", action="store_true", help="say what would be measured")
    builds.set_defaults(command=build_engines)

    made = subparsers.add_parser("key", help="make an API key")
    made.add_argument("name", help="whose it is")
    made.add_argument("--file", type=Path, default=Path("keys.jsonl"), help="default: %(default)s")
    made.add_argument("--scope", action="append", choices=get_args(Scope))
    made.add_argument("--rate", type=POSITIVE, help="requests a second, of all replicas together")
    made.set_defaults(command=create_key)

    embeds = subparsers.add_parser("embedder", help="make a bundle of embeddings from an encoder")
    embeds.add_argument("model", help="a directory, a hub name or package:all-minilm-l6-v2")
    embeds.add_argument("out", type=Path, help="directory of the bundle")
    embeds.add_argument("--pooling", choices=("mean", "cls"), default="mean")
    embeds.add_argument("--max-length", type=COUNT, default=256, help="tokens: %(default)s")
    embeds.set_defaults(command=export_embedder_bundle)

    commands.add_commands(subparsers)
    for name, usage in choices.USAGES.items():
        subparsers.choices[name].epilog = f"as in: {prog} {name} {usage.example}"
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
