"""Bundles of a tiny BERT, one a task, and files of rows for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.engine.engine import Engine
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import CARD_FILE, read_card, serialize_card

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def engine_of(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """Load the engine of a bundle for a task, with these fields of its card."""

    def load(task: str, **fields: object) -> Engine:
        directory = tmp_path_factory.mktemp("bundles") / "bundle"
        write_tiny_bundle(directory, tiny_bert, task)
        card = read_card(directory).model_copy(update=fields)
        (directory / CARD_FILE).write_text(serialize_card(card))
        return Engine.load(directory)

    return load
