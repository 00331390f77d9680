"""A teacher's answers to the texts of a run: computed once, kept, and mapped by every process.

A teacher is a bundle. It answers the training rows, which a student learns from, and the test rows,
on which the two are compared. It answers with its own cleaning, tokenizer and max_length, in fp32
on the processor, before a run starts: a function of the text alone, whatever the layout. Knows no
loss and no Ray.

    python -m trainers distill.yaml --dry-run      # who teaches whom
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from transformers import AutoConfig

from cluster.costmodel.model_shape import Shape
from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.corpus import gather
from trainers.data.prepare import Data, DataError, Progress
from trainers.data.splits import Part
from trainers.data.tokenizer import CHUNK, Encoder, Samples, joined
from trainers.distributed.device import DEVICES
from trainers.models import bundle
from trainers.models.build import predict
from trainers.models.card import BundleError, Card, read
from trainers.models.shape import shape_of
from trainers.storage.atomic import digests, flaw, written_aside

FORMAT = 1  # of what is kept; a new number makes strangers of the old answers
PARTS: tuple[Part, ...] = ("train", "test")
INDEX = "teacher.json"
_SHOWN = 8

Answers = dict[Part, np.ndarray]


class TeacherError(BerthaError):
    """A bundle that cannot teach this run; the text says why and the way out."""


@dataclass(frozen=True)
class Teacher:
    """A bundle that was verified, and its card."""

    directory: Path
    card: Card

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides its answers."""
        card = self.card
        everything = [card.task, card.labels, card.cleaning, card.max_length, card.files]
        return _sha256(everything)

    @property
    def shape(self) -> Shape:
        """The sizes of its model."""
        config = json.loads((self.directory / "config.json").read_text())
        if config["model_type"] == "linear":
            return Shape.linear(config["num_features"], config["num_labels"])
        whole = AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        return shape_of(whole, self.card.task, len(self.card.labels))

    def logits(self, samples: Samples, pad: int, tell: Callable[[int], None]) -> np.ndarray:
        """[n, num_labels] float32 of texts that its own encoder encoded."""
        if not len(samples):
            return np.empty((0, max(1, len(self.card.labels))), dtype=np.float32)
        budget = max(DEVICES["cpu"].token_budget, self.card.max_length)
        model = bundle.load_model(self.directory, self.card)
        return predict(model, samples, pad, budget, tell=tell)


def of(recipe: Recipe, labels: tuple[str, ...]) -> Teacher | None:
    """The teacher that `recipe` names, for data of those labels; None where it names none.

    Raises TeacherError where there is no such bundle, or it is for something else.
    """
    if recipe.distillation is None:
        return None
    directory = Path(recipe.distillation.teacher)
    given = f"distillation.teacher = {recipe.distillation.teacher!r}"
    try:
        card = read(directory)
    except BundleError as error:
        raise TeacherError(f"{given}: {error}") from None
    if card.task != recipe.task:
        raise TeacherError(
            f"{given}: its task is {card.task}, but that of the recipe is {recipe.task}; set "
            f"task={card.task}, or name a teacher for {recipe.task}"
        )
    if card.labels != labels:
        raise TeacherError(
            f"{given}: its labels are {_shown(card.labels)}, but those of the data are "
            f"{_shown(labels)}; set data.labels to the teacher's, in their order, where they mean "
            "the same, or name another teacher"
        )
    return Teacher(directory, card)


def taught(recipe: Recipe, prepared: Data, cache: Path, progress: Progress | None = None) -> Data:
    """`prepared` with the answers of the recipe's teacher; as it is where there is none.

    They are kept in `cache`, a directory of this machine; the first process to ask there computes
    them. progress: called with texts answered and their number. Raises TeacherError, and what
    `data.prepare` raises.
    """
    teacher = of(recipe, prepared.labels)
    if teacher is None:
        return prepared
    key = _sha256([FORMAT, prepared.fingerprint, teacher.digest])
    sizes = {"train": len(prepared.train), "test": len(prepared.test)}
    found = _load(cache / key, sizes)
    if found is None:
        try:
            with FileLock(cache / f"{key}.lock"):
                found = _load(cache / key, sizes)
                if found is None:
                    _write(cache / key, _answers(recipe, prepared, teacher, cache, progress))
                    found = _load(cache / key, sizes)
        except OSError as error:
            raise DataError(f"{cache}: cannot keep a teacher's answers there: {error}") from None
        if found is None:
            raise DataError(f"{cache / key}: not the answers just written; is the disk sound?")
    return replace(
        prepared,
        train=replace(prepared.train, teacher=found["train"]),
        test=replace(prepared.test, teacher=found["test"]),
        teacher=teacher.digest,
    )


def _answers(
    recipe: Recipe, prepared: Data, teacher: Teacher, cache: Path, progress: Progress | None
) -> Answers:
    """What the teacher says to the rows of `prepared`, in their order."""
    student = prepare.encoder_of(recipe, cache)
    encoder = bundle.load_encoder(teacher.directory, teacher.card)
    texts = _texts(recipe, student, encoder)
    if prepare.fingerprint(recipe, student) != prepared.fingerprint:
        raise DataError(f"{recipe.data.source}: changed while it was read; start again")
    total, done = sum(map(len, texts.values())), 0
    found: Answers = {}
    for part in PARTS:
        samples = _encoded(encoder, texts[part])
        found[part] = teacher.logits(samples, encoder.pad, _after(done, total, progress))
        done += len(samples)
    return found


def _texts(recipe: Recipe, student: Encoder, teacher: Encoder) -> dict[Part, list[str]]:
    """The texts of the recipe as the teacher reads them: cleaned from the raw ones, which are told
    apart as the student's cleaning leaves them.
    """
    heard: dict[str, str] = {}

    def clean(raw: str) -> str:
        text = student.clean(raw)
        if text not in heard:
            heard[text] = teacher.clean(raw)
        return text

    sides = gather(recipe, clean).sides
    return {part: [heard[text] for text in sides[part].texts] for part in PARTS}


def _encoded(encoder: Encoder, texts: Sequence[str]) -> Samples:
    starts = range(0, len(texts), CHUNK)
    return joined([encoder.encode(texts[start : start + CHUNK])[0] for start in starts])


def _after(done: int, total: int, progress: Progress | None) -> Callable[[int], None]:
    return lambda more: progress(done + more, total) if progress is not None else None


def _write(directory: Path, answers: Answers) -> None:
    with written_aside(directory) as aside:
        for part, logits in answers.items():
            np.save(aside / f"{part}.npy", logits)
        (aside / INDEX).write_text(json.dumps({"files": digests(aside)}, indent=2) + "\n")


def _load(directory: Path, sizes: dict[str, int]) -> Answers | None:
    """What `_write` wrote, memory-mapped; None where it is not whole."""
    try:
        files = json.loads((directory / INDEX).read_text(encoding="utf-8"))["files"]
        if set(files) != {f"{part}.npy" for part in PARTS} or flaw(directory, files) is not None:
            return None
        found: Answers = {
            part: np.asarray(np.load(directory / f"{part}.npy", mmap_mode="r")) for part in PARTS
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(len(found[part]) == sizes[part] for part in PARTS) else None


def _shown(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return (", ".join(labels[:_SHOWN]) or "none") + more


def _sha256(everything: object) -> str:
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
