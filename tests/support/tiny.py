"""Tiny real things: a vocabulary, a two-layer BERT, a corpus that it can learn."""

import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

GOOD = ["good", "great", "warm", "funny", "lovely", "bright", "moving", "fine"]
BAD = ["bad", "awful", "cold", "dull", "ugly", "grim", "boring", "poor"]
PLAIN = ["the", "a", "film", "plot", "cast", "is", "was", "and", "very", "scene", "actor"]
PLAIN += ["story", "with", "of", "in", "it"]


def write_tiny_bert(directory: Path, num_layers: int = 2) -> Path:
    """Write a random BERT, 32 wide, and its word-level tokenizer; where it is."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).bert.save_pretrained(directory)
    return directory


def write_corpus(path: Path) -> Path:
    """Write a CSV of 240 short reviews, `text,label`, that a tiny model can learn; where it is."""
    draw = random.Random(0)
    rows = ["text,label"]
    for row in range(240):
        mood = (BAD, GOOD)[row % 2]
        words = [draw.choice(PLAIN) for _ in range(draw.randint(3, 30))]
        for _ in range(2):
            words.insert(draw.randrange(len(words) + 1), draw.choice(mood))
        rows.append(f"{' '.join(words)},{('negative', 'positive')[row % 2]}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
