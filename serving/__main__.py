"""The command line of serving.

    python -m serving run BUNDLE [--host 127.0.0.1] [--port 8000] [--ask TEXT ...]
    python -m serving predict BUNDLE TEXT...

`run` answers over HTTP until Ctrl-C. With --ask it asks itself first; and then, where nobody sits
at the terminal, it ends. `predict` answers in this process, without Ray.
"""

import argparse
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import BerthaError
from serving import client
from trainers.card import Card, read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, or 2 where the command line asks the impossible."""
    options = _parser().parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        card = read(options.bundle)
        return int(options.command(options, card))
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(options: argparse.Namespace, card: Card) -> int:
    """Serve a bundle until Ctrl-C."""
    from serving import app  # Ray, which `predict` must not pay for

    url = client.url(options.host, options.port)
    name = app.name_of(options.bundle)
    if options.dry_run:
        labels = ", ".join(card.labels) or "a number"
        print(f"{name}: {card.task} ({labels}), texts of up to {card.max_length} tokens")
        print(f"would be served at {url} by one replica of at most {app.MAX_THREADS} threads")
        return 0
    print(f"starting Ray and loading {name} …", flush=True)
    with app.running(options.bundle, options.host, options.port, options.address):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        client.wait_until_healthy(url)
        print(f"  page  {url}/\n  API   {url}/predict\n  docs  {url}/docs", flush=True)
        for text in options.ask:
            print(client.line(client.ask(url, text), card.task, text), flush=True)
        if options.ask and not sys.stdin.isatty():
            print(f"To serve it again: python -m serving run {options.bundle}")
        else:
            _wait_for_the_end()
    return 0


def predict(options: argparse.Namespace, card: Card) -> int:
    """Answer texts in this process."""
    from serving.engine import Engine
    from serving.protocols import tei

    predictions = Engine.load(options.bundle).predict(options.text)
    for text, prediction in zip(options.text, predictions, strict=True):
        print(client.line(tei.ranked(prediction.scores, card.labels), card.task, text))
    return 0


def _wait_for_the_end() -> None:
    print("Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    print("ending …", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve a bundle.")
    commands = parser.add_subparsers(required=True, metavar="command")
    runs = commands.add_parser("run", help="serve a bundle over HTTP")
    runs.add_argument("bundle", type=Path, help="directory of a bundle, as runs/reviews/bundle")
    runs.add_argument("--host", default="127.0.0.1", help="address to listen at: %(default)s")
    runs.add_argument("--port", type=int, default=8000, help="port to listen at: %(default)s")
    runs.add_argument("--address", help="a Ray cluster to serve on; default: a Ray of its own")
    runs.add_argument("--ask", action="append", default=[], metavar="TEXT", help="ask this first")
    runs.add_argument("--dry-run", action="store_true", help="say what would be served")
    runs.set_defaults(command=run)
    predicts = commands.add_parser("predict", help="answer texts in this process")
    predicts.add_argument("bundle", type=Path, help="directory of a bundle")
    predicts.add_argument("text", nargs="+", help="what to answer")
    predicts.set_defaults(command=predict)
    return parser


if __name__ == "__main__":
    sys.exit(main())
