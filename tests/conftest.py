"""Tiny real things shared by the tests: a vocabulary, a two-layer BERT, a corpus."""

import os
import secrets

# One token for every Ray of this run: a process reads it once, and none is written to the home.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits for the first

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.tiny import write_corpus, write_tiny_bert

# Assertions of what the scenarios on hosts share say what they saw; benchmarks import them, too.
pytest.register_assert_rewrite(
    "tests.e2e.hosts.account", "tests.e2e.hosts.raised", "tests.e2e.hosts.user"
)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random two-layer BERT, 32 wide, and its word-level tokenizer."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 240 short reviews, `text,label`, that a tiny model can learn."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "reviews.csv")


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two classes, made of that BERT without training."""
    from tests.support.tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("tiny-classifier") / "bundle", tiny_bert)


@pytest.fixture(autouse=True, scope="module")
def _same_threads() -> Iterator[None]:
    """Give each module PyTorch's number of threads: sums differ in their last bit by it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
