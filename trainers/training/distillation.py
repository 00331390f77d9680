"""Distillation: a teacher's logits for the texts of a run, computed once and memory-mapped.

A teacher is a bundle. Its logits are computed for the training rows, which a student learns from,
and for the test rows, on which the two are compared; with its own cleaning, tokenizer and
max_length, in fp32, before a run starts: a function of the text alone, on any layout. A GPU of the
machine where the run is started computes them.

    bertha train distill.yaml --dry-run      # shows teacher and student
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from cluster.costmodel.model_shape import ModelShape
from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.corpus import gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.files import DataError
from trainers.data.prepare import Progress
from trainers.data.ragged import RaggedArray
from trainers.data.splits import SplitName
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import DEVICES
from trainers.models import bundle
from trainers.models.build import load_model, predict_logits
from trainers.models.card import BundleError, ModelCard, find_bundle, read_card
from trainers.models.shape import shape_from_config
from trainers.storage.atomic import find_corruption, hash_files, json_sha256
from trainers.storage.cache import build_once

FORMAT = 1  # bump to invalidate existing cache entries
PARTS: tuple[SplitName, ...] = ("train", "test")
INDEX = "teacher.json"
_SHOWN = 8

TeacherLogits = dict[SplitName, np.ndarray]


class TeacherError(BerthaError):
    """A bundle that cannot teach this run; the message says why and the way out."""


@dataclass(frozen=True)
class Teacher:
    """A verified bundle and its card."""

    directory: Path
    card: ModelCard

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything its logits depend on."""
        card = self.card
        identity = [card.task, card.labels, card.cleaning, card.max_length, card.files]
        if card.windows is not None:
            identity.append(card.windows.model_dump(mode="json"))
        return json_sha256(identity)

    @property
    def shape(self) -> ModelShape:
        """The sizes of its model."""
        config = json.loads((self.directory / "config.json").read_text())
        if config["model_type"] == "linear":
            return ModelShape.for_linear(config["num_features"], config["num_labels"])
        config = AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        return shape_from_config(config, self.card.task, len(self.card.labels))

    def compute_logits(
        self, samples: RaggedArray, on_progress: Callable[[int], None]
    ) -> np.ndarray:
        """Compute logits [n, num_labels] float32 of texts that its own encoder encoded."""
        if not len(samples):
            return np.empty((0, max(1, len(self.card.labels))), dtype=np.float32)
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        device, budget = (
            torch.device(kind),
            DEVICES[kind].default_token_budget(self.card.max_length),
        )
        model = load_model(self.directory).to(device)
        pool = "mean" if self.card.windows is None else self.card.windows.pool
        return predict_logits(model, samples, budget, device, on_progress, pool)


def load_teacher(recipe: Recipe, labels: tuple[str, ...]) -> Teacher | None:
    """Load the teacher that `recipe` names, for data with those labels; None if it names none.

    Raises TeacherError where there is no such bundle, or its task or labels are others.
    """
    if recipe.distillation is None:
        return None
    given = f"distillation.teacher = {recipe.distillation.teacher!r}"
    try:
        directory = find_bundle(Path(recipe.distillation.teacher))
        card = read_card(directory)
    except BundleError as error:
        raise TeacherError(f"{given}: {error}") from None
    if card.task != recipe.task:
        raise TeacherError(
            f"{given}: its task is {card.task}, but that of the recipe is {recipe.task}; set "
            f"task={card.task}, or name a teacher for {recipe.task}"
        )
    if card.labels != labels:
        raise TeacherError(
            f"{given}: its labels are {_shorten_labels(card.labels)}, but those of the data are "
            f"{_shorten_labels(labels)}; set data.labels to the teacher's, in their order, where "
            "they mean the same, or name another teacher"
        )
    return Teacher(directory, card)


def attach_teacher_logits(
    recipe: Recipe, prepared: PreparedDataset, cache: Path, progress: Progress | None = None
) -> PreparedDataset:
    """Return `prepared` with the logits of the recipe's teacher; unchanged if it has none.

    They are cached in `cache`, a directory of this machine; the first process there computes them.
    progress: called with texts done and their number. Raises TeacherError and DataError.
    """
    teacher = load_teacher(recipe, prepared.labels)
    if teacher is None:
        return prepared
    sizes = {"train": len(prepared.train), "test": len(prepared.test)}

    def build(directory: Path) -> None:
        for part, logits in _compute_logits(recipe, prepared, teacher, cache, progress).items():
            np.save(directory / f"{part}.npy", logits)
        index = json.dumps({"files": hash_files(directory)}, indent=2)
        (directory / INDEX).write_text(index + "\n")

    key = json_sha256([FORMAT, prepared.fingerprint, teacher.digest])
    try:
        logits = build_once(cache / key, build, lambda directory: _load_logits(directory, sizes))
    except OSError as error:
        raise DataError(f"{cache}: cannot keep a teacher's logits there: {error}") from None
    return replace(
        prepared,
        train=replace(prepared.train, teacher=logits["train"]),
        test=replace(prepared.test, teacher=logits["test"]),
        teacher=teacher.digest,
    )


def _compute_logits(
    recipe: Recipe,
    prepared: PreparedDataset,
    teacher: Teacher,
    cache: Path,
    progress: Progress | None,
) -> TeacherLogits:
    """Compute the teacher's logits of the rows of `prepared`, in their order."""
    student = prepare.load_recipe_encoder(recipe, cache)
    encoder = bundle.load_encoder(teacher.directory, teacher.card)
    texts = _teacher_texts(recipe, student, encoder)
    if prepare.dataset_fingerprint(recipe, student) != prepared.fingerprint:
        raise DataError(f"{recipe.data.source}: changed while it was read; start again")
    total, done = sum(map(len, texts.values())), 0
    logits: TeacherLogits = {}
    for part in PARTS:
        samples = encoder.encode(texts[part])[0]
        logits[part] = teacher.compute_logits(
            samples, prepare.offset_progress(done, total, progress)
        )
        done += len(samples)
    return logits


def _teacher_texts(
    recipe: Recipe, student: Encoder, teacher: Encoder
) -> dict[SplitName, list[str]]:
    """Return the raw texts of the recipe under the teacher's cleaning."""
    # Rows are deduplicated and split by the student's cleaning; of raw texts that it makes equal
    # the first one stands for all, for the teacher too.
    by_student_text: dict[str, str] = {}

    def clean_text(raw: str) -> str:
        text = student.clean(raw)
        if text not in by_student_text:
            by_student_text[text] = teacher.clean(raw)
        return text

    sides = gather_corpus(recipe, clean_text).splits
    return {part: [by_student_text[text] for text in sides[part].texts] for part in PARTS}


def _load_logits(directory: Path, sizes: dict[str, int]) -> TeacherLogits | None:
    """Memory-map cached logits; return None where they are incomplete."""
    try:
        files = json.loads((directory / INDEX).read_text(encoding="utf-8"))["files"]
        if (
            set(files) != {f"{part}.npy" for part in PARTS}
            or find_corruption(directory, files) is not None
        ):
            return None
        logits: TeacherLogits = {
            part: np.asarray(np.load(directory / f"{part}.npy", mmap_mode="r")) for part in PARTS
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return logits if all(len(logits[part]) == sizes[part] for part in PARTS) else None


def _shorten_labels(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return (", ".join(labels[:_SHOWN]) or "none") + more
