"""Tiny real things shared by the tests: a vocabulary, a two-layer BERT, a corpus."""

import os
import secrets

# One token for every Ray of this run: a process reads it once, and none is written to the home.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits for the first

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

GOOD = ["good", "great", "warm", "funny", "lovely", "bright", "moving", "fine"]
BAD = ["bad", "awful", "cold", "dull", "ugly", "grim", "boring", "poor"]
PLAIN = ["the", "a", "film", "plot", "cast", "is", "was", "and", "very", "scene", "actor"]
PLAIN += ["story", "with", "of", "in", "it"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random two-layer BERT, 32 wide, and its word-level tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).bert.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 240 short reviews, `text,label`, that a tiny model can learn."""
    import random

    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "reviews.csv"
    rows = ["text,label"]
    for row in range(240):
        mood = (BAD, GOOD)[row % 2]
        words = [draw.choice(PLAIN) for _ in range(draw.randint(3, 30))]
        for _ in range(2):
            words.insert(draw.randrange(len(words) + 1), draw.choice(mood))
        rows.append(f"{' '.join(words)},{('negative', 'positive')[row % 2]}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
