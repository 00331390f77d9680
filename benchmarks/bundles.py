"""The bundle that all contenders serve: the demo's weights, reading 256 tokens, in fp32.

Without a bundle of a finished run it is the demo's encoder with a random head: speed does not
depend on the values of weights. A second copy holds engines built and chosen for this machine.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from serving.engine.backends.registry import BACKENDS
from serving.optimize.optimize import build_engines
from trainers.config.recipe import load_recipe
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.build import build_model
from trainers.models.card import CARD_FILE, ModelCard, read_card, serialize_card
from trainers.storage.atomic import hash_files
from trainers.tracking import provenance

RUN_BUNDLE = Path("runs/reviews/bundle")
MAX_LENGTH = 256  # so that 180 words are not cut
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer_config.json"
ENGINES = shutil.ignore_patterns(*filter(None, (kind.directory for kind in BACKENDS.values())))


def copy_without_engines(source: Path | None, out: Path, max_length: int = MAX_LENGTH) -> Path:
    """Copy the bundle `source` to `out`, with its max_length changed and without engines.

    source: None makes one with a random head. An existing `out` is returned as it is.
    """
    if (out / CARD_FILE).exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if source is None:
        return _write_untrained(out, max_length)
    card = read_card(source)
    shutil.copytree(source, out, ignore=ENGINES)
    settings = json.loads((out / TOKENIZER).read_text())
    settings |= {"model_max_length": max_length, "max_length": max_length}
    (out / TOKENIZER).write_text(json.dumps(settings, indent=2) + "\n")
    (out / CARD_FILE).unlink()
    changed = {"max_length": max_length, "engines": (), "files": hash_files(out)}
    (out / CARD_FILE).write_text(serialize_card(card.model_copy(update=changed)))
    return out


def copy_with_engines(source: Path, out: Path, only: list[str] | None = None) -> Path:
    """Copy `source` to `out`, and build and choose engines there. only: their names."""
    if (out / CARD_FILE).exists() and read_card(out).engines:
        return out
    shutil.copytree(source, out, dirs_exist_ok=True)
    build_engines(out, candidates=only)
    return out


def copy_with_nan_bias(source: Path, out: Path) -> Path:
    """Copy `source` to `out` with valid hashes but a NaN bias, so that its scores are NaN."""
    shutil.copytree(source, out, ignore=ENGINES)
    weights = load_file(out / WEIGHTS)
    bias = next(name for name in weights if name.endswith("classifier.bias"))
    save_file(weights | {bias: weights[bias] * float("nan")}, out / WEIGHTS, {"format": "pt"})
    card = read_card(source)
    (out / CARD_FILE).unlink()
    changed = {"engines": (), "files": hash_files(out)}
    (out / CARD_FILE).write_text(serialize_card(card.model_copy(update=changed)))
    return out


def chosen_engine(directory: Path) -> str:
    """Return the name of the engine that serves a bundle."""
    chosen = read_card(directory).chosen_engine()
    return "torch fp32" if chosen is None else chosen.name


def _write_untrained(out: Path, max_length: int) -> Path:
    """Write a bundle of the demo's encoder with an untrained head."""
    recipe = load_recipe("reviews", [f"batch.max_length={max_length}"])
    labels = ("negative", "positive")
    card = ModelCard(
        task=recipe.task,
        labels=labels,
        cleaning=recipe.data.cleaning,
        max_length=max_length,
        metrics={},
        recipe=recipe.model_dump(mode="json"),
        data_fingerprint="",
        revision=provenance.code_revision(),
        environment=provenance.describe_environment(),
    )
    encoder = load_encoder(recipe.model.name, card.cleaning, max_length)
    model = build_model(recipe, labels, 0)
    bundle.write_bundle(out, model, model.state_dict().items(), encoder, card)
    return out
