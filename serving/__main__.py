"""The command line of serving.

python -m serving run BUNDLE [--port 8000] [--ask TEXT ...]     on this machine, until Ctrl-C
python -m serving predict BUNDLE TEXT...                        in this process
python -m serving build BUNDLE                                  benchmark and choose an engine
python -m serving deploy BUNDLE|NAME[:VERSION] [--canary 0.1]   in a registry, and on a cluster
python -m serving register BUNDLE --as NAME                     in a registry, without deploying
python -m serving promote|rollback|list|history ...             in a registry
python -m serving key NAME                                      create an API key
python -m serving embedder MODEL OUT                            export a bundle of embeddings
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

from cluster.errors import BerthaError
from serving import client, commands
from serving.deployment.config import machine_memory_gib, suggest_replicas
from serving.fetch import local_copy, upload_engines
from serving.http import keys
from serving.http.messages import Scope
from serving.registry.model_ref import default_model_name
from trainers.models.card import read_card


def main(arguments: Sequence[str] | None = None, prog: str = "python -m serving") -> int:
    """Run one command and return the exit status: 0, or 2 for an error of the user."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments, prog)
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
    url = client.service_url(options.host, options.port)
    with _open_registry(options) as (registry, name, task):
        endpoint = commands.endpoint_from_options(options, registry)
        if options.dry_run:
            number = endpoint.min_replicas
            replicas = f"{number} replica{'s' if number > 1 else ''} of one thread"
            print(f"would be served at {url}, on {replicas}")
            return 0
        from serving.deployment import app  # Ray, which `predict` must not pay for

        print(f"starting Ray and loading {name} …", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with app.serve_locally(endpoint) as local_ray:
            client.wait_until_healthy(url)
            print(f"  page  {url}/\n  API   {url}/predict\n  docs  {url}/docs", flush=True)
            for text in options.ask:
                print(client.format_labels(client.predict_text(url, text), task, text), flush=True)
            if options.ask and not sys.stdin.isatty():
                print(f"To serve it again: python -m serving run {options.what}")
            else:
                print("Ctrl-C ends it.", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    local_ray.watch()
                print("ending …", flush=True)
    return 0


@contextlib.contextmanager
def serve_bundle(
    bundle: str, *, host: str = "127.0.0.1", port: int = 8000, replicas: int = 1
) -> Iterator[str]:
    """Serve a bundle on this machine within a `with` block; yield its URL once it answers."""
    from serving.deployment import app

    command = ["run", bundle, "--host", host, "--port", str(port), "--replicas", str(replicas)]
    options = parse_arguments(command, "bertha")
    url = client.service_url(host, port)
    with contextlib.ExitStack() as stack:
        registry, _, _ = stack.enter_context(_open_registry(options))
        endpoint = commands.endpoint_from_options(options, registry)
        stack.enter_context(app.serve_locally(endpoint))
        client.wait_until_healthy(url)
        yield url


@contextlib.contextmanager
def _open_registry(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield the registry to serve, a name in it, and its task; a bundle gets its own."""
    from serving.registry.model_ref import ModelReference
    from serving.registry.registry import Registry

    if not (Path(options.what).exists() or "/" in options.what):
        registry = Registry.open(options.registry)
        state, reference = registry.read_snapshot().resolve_reference(options.what)
        if reference != ModelReference(state.name):
            raise BerthaError(
                f"{options.what}: what runs is the live version; python -m serving deploy "
                f"{options.what}, and run {state.name}"
            )
        version = state.resolve_version(reference)
        card = registry.read_card(state.name, version, state.versions[version].seal)
        if not options.dry_run:
            registry.make_default(state.name)
        yield options.registry, state.name, card.task
        return
    with (
        local_copy(options.what) as directory,
        tempfile.TemporaryDirectory(prefix="bertha-") as place,
    ):
        card, name = read_card(directory), default_model_name(directory)
        labels = ", ".join(card.labels) or "a number"
        if options.dry_run:
            print(f"{name}: {card.task} ({labels}), texts of up to {card.max_length} tokens")
            yield options.registry, name, card.task
            return
        own = Registry.open(place)
        own.deploy(name, own.register(directory, name))
        yield place, name, card.task


def predict_texts(options: argparse.Namespace) -> int:
    """Answer texts in this process."""
    from serving.engine.engine import Engine
    from serving.interface import Prediction
    from serving.protocols.labels import rank_labels

    with local_copy(options.bundle) as directory:
        engine = Engine.load(directory, options.engine)
        answers = engine.predict(options.text)
    card = engine.card
    for text, answer in zip(options.text, answers, strict=True):
        if not isinstance(answer, Prediction):
            raise BerthaError(
                f"{options.bundle}: a model for {card.task}; serve it and ask over HTTP: "
                f"python -m serving run {options.bundle}"
            )
        print(client.format_labels(rank_labels(answer.scores, card.labels), card.task, text))
    return 0


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
    return 0


def build_engines(options: argparse.Namespace) -> int:
    """Benchmark engines and choose one."""
    from serving.optimize.optimize import run_build_command

    with local_copy(options.bundle) as directory:
        status = run_build_command(options, directory)
        if not options.dry_run:
            upload_engines(directory, options.bundle)
    return status


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse a command line; exit as argparse does on a mistake."""
    parser = argparse.ArgumentParser(prog=prog, description="Serve bundles.")
    subparsers = parser.add_subparsers(required=True, metavar="command")

    runs = subparsers.add_parser(
        "serve", aliases=["run"], help="serve on this machine until Ctrl-C"
    )
    runs.add_argument("what", metavar="BUNDLE|NAME", help="a directory, s3://, or a live name")
    runs.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this first")
    runs.add_argument("--dry-run", action="store_true", help="say what would be served")
    num_cores = len(os.sched_getaffinity(0))
    commands.add_endpoint_arguments(runs, suggest_replicas(num_cores, machine_memory_gib()))
    runs.set_defaults(command=run_service)

    predicts = subparsers.add_parser("predict", help="answer texts in this process")
    predicts.add_argument("bundle", help="directory of a bundle, or s3://")
    predicts.add_argument("text", nargs="+", help="what to answer")
    predicts.add_argument("--engine", help="as 'onnxruntime int8'; default: the chosen one")
    predicts.set_defaults(command=predict_texts)

    builds = subparsers.add_parser("build", help="measure engines of a bundle and choose one")
    builds.add_argument("bundle", help="directory of a bundle, or s3://")
    builds.add_argument("--texts", type=Path, help="measure on these; default: the recipe's own")
    builds.add_argument("--threshold", type=float, help="least agreement; default: 0.995")
    builds.add_argument("--allow", action="append", default=[], metavar="NAME", help="even below")
    builds.add_argument("--only", action="append", metavar="NAME", help="this and torch fp32")
    builds.add_argument(
        "--student", type=Path, metavar="BUNDLE", help="a distilled model: one more candidate"
    )
    builds.add_argument("--rounds", type=int, help="turns of each engine; default: 3")
    builds.add_argument("--dry-run", action="store_true", help="say what would be measured")
    builds.set_defaults(command=build_engines)

    made = subparsers.add_parser("key", help="make an API key")
    made.add_argument("name", help="whose it is")
    made.add_argument("--file", type=Path, default=Path("keys.jsonl"), help="default: %(default)s")
    made.add_argument("--scope", action="append", choices=get_args(Scope))
    made.add_argument("--rate", type=float, help="requests a second, of all replicas together")
    made.set_defaults(command=create_key)

    embeds = subparsers.add_parser("embedder", help="make a bundle of embeddings from an encoder")
    embeds.add_argument("model", help="a directory, a hub name or package:all-minilm-l6-v2")
    embeds.add_argument("out", type=Path, help="directory of the bundle")
    embeds.add_argument("--pooling", choices=("mean", "cls"), default="mean")
    embeds.add_argument("--max-length", type=int, default=256, help="tokens: %(default)s")
    embeds.set_defaults(command=export_embedder_bundle)

    commands.add_commands(subparsers)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
