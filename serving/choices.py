"""What a command of serving has to choose from: runs below ./runs, and names of ./registry.

Said where a command is given without what it works on. Knows no engine and no HTTP.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.errors import BerthaError
from serving.registry.registry import Registry
from trainers.models.card import CARD_FILE, IN_RUN, parse_card

RUNS, REGISTRY = Path("runs"), Path("registry")
MAX_SHOWN = 10
BUNDLE = (
    "A BUNDLE is a trained model with its tokenizer and labels: the directory RUN/bundle that\n"
    "training leaves, given as RUN or RUN/bundle, here or on s3://."
)
NAME = "A NAME stands in a registry: `register` keeps a bundle under it, `deploy` makes it live."
TRAIN_ONE = (
    "bertha train csv.yaml data.source=reviews.csv data.text=body data.label=stars --run runs/mine"
)


class Usage(NamedTuple):
    """How a command is used: what follows its name, what it does in three words, an example."""

    operands: str
    purpose: str
    example: str


USAGES = {
    "serve": Usage("BUNDLE|NAME", "answer over HTTP", "runs/mine --port 8000"),
    "predict": Usage("BUNDLE TEXT|FILE...", "answer texts here", 'runs/mine "A wonderful film."'),
    "evaluate": Usage("BUNDLE FILE...", "measure on files", "runs/mine labelled.csv"),
    "export": Usage("BUNDLE DIR", "write for others", "runs/mine exported --format onnx"),
    "push": Usage("BUNDLE USER/NAME", "publish on hub", "runs/mine me/sentiment --private"),
    "build": Usage("BUNDLE", "measure faster engines", "runs/mine"),
    "register": Usage("BUNDLE", "keep for later", "runs/mine --as sentiment"),
    "deploy": Usage("BUNDLE|NAME", "make it live", "sentiment"),
    "promote": Usage("NAME", "make canary live", "sentiment"),
    "rollback": Usage("NAME", "undo last change", "sentiment"),
    "history": Usage("NAME", "list all changes", "sentiment"),
    "key": Usage("NAME", "make an API key", "mobile-app"),
    "embedder": Usage("MODEL OUT", "export an encoder", "package:all-minilm-l6-v2 runs/embedder"),
}


def describe_choices(command: str, prog: str) -> str:
    """Return what to say where a command of USAGES stands alone."""
    usage = USAGES[command]
    purpose = f"{usage.purpose[0].upper()}{usage.purpose[1:]}."
    lines = [f"usage: {prog} {command} {usage.operands}", "", purpose, ""]
    if "BUNDLE" in usage.operands:
        runs = list(_run_lines())
        lines += [BUNDLE, "", *_listed(f"./{RUNS}", runs, f"none yet; as in {TRAIN_ONE}"), ""]
    if usage.operands in ("NAME", "BUNDLE|NAME") and command != "key":
        names = list(_name_lines())
        empty = "none yet; as in bertha register runs/mine --as sentiment"
        lines += [NAME, "", *_listed(f"./{REGISTRY}", names, empty), ""]
    lines += [f"as in   {prog} {command} {usage.example}"]
    return "\n".join([*lines, f"More: `{prog} {command} --help`"])


def help_epilog(prog: str) -> str:
    """Return the ends of `--help`: how a model comes to answer, a line a command."""
    lines = [
        f"  {name:<10}{USAGES[name].purpose:<18}{prog} {name} {USAGES[name].example}"
        for name in ("register", "deploy", "serve")
    ]
    return "\n".join(["From a bundle to an answer:", *lines])


def _listed(place: str, lines: list[str], empty: str) -> list[str]:
    more = [f"  and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return [f"In {place}:", *(lines[:MAX_SHOWN] or [f"  {empty}"]), *more]


def _run_lines() -> Iterator[str]:
    """Yield a line for each run below RUNS that has a bundle, the newest first."""
    cards = [*RUNS.glob(f"*/{IN_RUN}/{CARD_FILE}"), *RUNS.glob(f"*/*/{IN_RUN}/{CARD_FILE}")]
    for path in sorted(cards, key=lambda card: -card.stat().st_mtime):
        run = path.parent.parent
        try:
            card = parse_card(path.read_bytes(), str(path))
        except (BerthaError, OSError):
            yield f"  {run}   its bundle cannot be read"
            continue
        labels = f": {', '.join(card.labels[:5])}" if card.labels else ""
        more = ", ..." if len(card.labels) > 5 else ""
        yield f"  {run!s:<30}{card.task}{labels}{more}"


def _name_lines() -> Iterator[str]:
    """Yield a line for each name of the registry here, if there is one."""
    if not REGISTRY.is_dir():
        return
    try:
        states = Registry.open(str(REGISTRY)).read_snapshot().states
    except BerthaError as error:
        yield f"  {error}"
        return
    for name, state in sorted(states.items()):
        live = f"live {state.live}" if state.live else f"not deployed: bertha deploy {name}"
        yield f"  {name:<30}{live}"
