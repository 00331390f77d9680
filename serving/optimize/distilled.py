"""A distilled student becomes an engine of its teacher's bundle, held to what the teacher answers.

It is another bundle, whose model reads the very tokens that the teacher reads, so that what is
before the model and what is behind it stay the teacher's. Knows no speeds and no agreement.

    python -m serving build runs/reviews/bundle --student runs/distilled/bundle
"""

import shutil
from pathlib import Path

from trainers.data.tokenizer import Encoder
from trainers.models import bundle
from trainers.models.card import BundleError, Card, read

FILES = ("config.json", "model.safetensors")
ALIKE = ("task", "labels", "cleaning", "max_length")
TASKS = ("classification", "multi-label", "regression")


def check(card: Card, encoder: Encoder, student: Path) -> None:
    """Raise a BundleError unless the bundle `student` may stand in for the one of that card.

    encoder: of the teacher.
    """
    if card.task not in TASKS:
        raise BundleError(
            f"--student {student}: the bundle is for {card.task}, which has no students; they "
            f"are of {', '.join(TASKS)}"
        )
    own = read(student)
    differing = [name for name in ALIKE if getattr(own, name) != getattr(card, name)]
    if differing:
        name = differing[0]
        raise BundleError(
            f"--student {student}: its {name} is {getattr(own, name)!r}, that of the bundle is "
            f"{getattr(card, name)!r}; train the student with the same {', '.join(ALIKE)} and "
            "tokenizer"
        )
    if bundle.load_encoder(student, own).fingerprint != encoder.fingerprint:
        raise BundleError(
            f"--student {student}: its tokenizer is not that of the bundle; train the student with "
            "model.tokenizer set to the directory of the bundle"
        )


def copy(student: Path, place: Path) -> None:
    """Copy the model of the bundle `student` to the new directory `place`."""
    place.mkdir()
    for name in FILES:
        shutil.copyfile(student / name, place / name)
