"""The bundle that all contenders serve: the demo's weights, reading 256 tokens, in fp32.

Where no run has left a bundle, the demo's encoder with a random head: speed does not depend on
what the weights say. A second copy holds the engines that were measured and chosen for it.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from serving.engine.backends.registry import KINDS
from serving.optimize.optimize import build
from trainers.config.recipe import load
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.build import build as build_model
from trainers.models.card import CARD, Card, read, written
from trainers.storage.atomic import digests
from trainers.tracking import provenance

RUN_BUNDLE = Path("runs/reviews/bundle")
MAX_LENGTH = 256  # so that 180 words are not cut
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer_config.json"
ENGINES = shutil.ignore_patterns(*filter(None, (kind.directory for kind in KINDS.values())))


def plain(source: Path | None, out: Path, max_length: int = MAX_LENGTH) -> Path:
    """A copy of the bundle `source` at `out` that reads `max_length` tokens, without engines."""
    if (out / CARD).exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if source is None:
        return _random(out, max_length)
    card = read(source)
    shutil.copytree(source, out, ignore=ENGINES)
    settings = json.loads((out / TOKENIZER).read_text())
    settings |= {"model_max_length": max_length, "max_length": max_length}
    (out / TOKENIZER).write_text(json.dumps(settings, indent=2) + "\n")
    (out / CARD).unlink()
    changed = {"max_length": max_length, "engines": (), "files": digests(out)}
    (out / CARD).write_text(written(card.model_copy(update=changed)))
    return out


def built(source: Path, out: Path, only: list[str] | None = None) -> Path:
    """A copy of `source` at `out` with the engines that suit this machine, the best one chosen."""
    if (out / CARD).exists() and read(out).engines:
        return out
    shutil.copytree(source, out, dirs_exist_ok=True)
    build(out, candidates=only)
    return out


def broken(source: Path, out: Path) -> Path:
    """A copy of `source` at `out` that is whole and answers no number."""
    shutil.copytree(source, out, ignore=ENGINES)
    weights = load_file(out / WEIGHTS)
    bias = next(name for name in weights if name.endswith("classifier.bias"))
    save_file(weights | {bias: weights[bias] * float("nan")}, out / WEIGHTS, {"format": "pt"})
    card = read(source)
    (out / CARD).unlink()
    changed = {"engines": (), "files": digests(out)}
    (out / CARD).write_text(written(card.model_copy(update=changed)))
    return out


def engine_of(directory: Path) -> str:
    """The engine that a bundle answers with."""
    return next((each.name for each in read(directory).engines if each.chosen), "torch fp32")


def _random(out: Path, max_length: int) -> Path:
    """The demo's encoder with a head that was not trained."""
    made = load("reviews", [f"batch.max_length={max_length}"])
    labels = ("negative", "positive")
    card = Card(
        task=made.task,
        labels=labels,
        cleaning=made.data.cleaning,
        max_length=max_length,
        metrics={},
        recipe=made.model_dump(mode="json"),
        data_fingerprint="",
        revision=provenance.revision(),
        environment=provenance.environment(),
    )
    encoder = load_encoder(made.model.name, card.cleaning, max_length)
    model = build_model(made, labels, 0)
    bundle.write(out, model, model.state_dict().items(), encoder, card)
    return out
