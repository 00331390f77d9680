"""A vocabulary of one's own: made of the training texts alone, alike everywhere, and kept."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.paths import ROOT
from trainers.config import recipe as recipes
from trainers.config import sections
from trainers.config.recipe import Recipe
from trainers.data.prepare import load_recipe_encoder, prepare_dataset
from trainers.data.tokenizer import TextEncoder, load_encoder
from trainers.data.wordpiece import SPECIAL, resolve_tokenizer, train_vocabulary

TEXTS = [f"The plot thickens, {n} actors act: déjà-vu again and again! {n % 7}" for n in range(300)]


def recipe(source: Path, **model: Any) -> Recipe:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return recipes.parse_recipe(
        {
            "task": "masked-lm",
            "model": {"name": "random", "vocabulary_size": 200} | sizes | model,
            "data": {"source": str(source)},
            "batch": {"max_length": 16},
        }
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    return path


def test_pieces_are_numbered_and_lower_case() -> None:
    found = train_vocabulary(TEXTS, 100)
    assert sorted(found.values()) == list(range(len(found))) and len(found) <= 100
    assert [found[each] for each in SPECIAL] == list(range(5))
    assert all(each == each.lower() for each in found if each not in SPECIAL)
    assert "é" not in "".join(found) and "act" in train_vocabulary(TEXTS, 200)


def test_few_pieces_keep_the_frequent_letters() -> None:
    found = train_vocabulary(["aaaa bbb " * 9, "zq " * 2, *map(chr, range(0x4E00, 0x4E50))], 64)
    assert len(found) <= 64 and {"a", "b"} <= set(found)


SCRIPT = """
import json, sys
from trainers.data.wordpiece import train_vocabulary
print(json.dumps(train_vocabulary(json.loads(sys.stdin.read()), 150), sort_keys=True))
"""


@pytest.mark.multiprocess
def test_every_process_finds_the_same_pieces() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(TEXTS),
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for _ in range(3)
    }
    assert len(said) == 1
    assert json.loads(said.pop()) == train_vocabulary(TEXTS, 150)


def test_it_is_trained_once_and_serves_as_a_tokenizer(source: Path, tmp_path: Path) -> None:
    asked, cache = recipe(source), tmp_path / "cache"
    data = prepare_dataset(asked, cache)
    (directory,) = (path for path in cache.glob("vocabulary-*") if path.is_dir())
    written = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    encoder = load_recipe_encoder(asked, cache)
    assert isinstance(encoder, TextEncoder)
    vocabulary = encoder.masking_vocabulary()
    assert (
        vocabulary.size <= 200 and vocabulary.special.sum() == 5 and vocabulary.continuation.any()
    )
    assert data.train.samples.values.max() < vocabulary.size
    assert 1 not in data.train.samples.values  # no [UNK] among the texts it was made from
    named = resolve_tokenizer(asked, cache)
    assert named.model.tokenizer == str(directory) and named.model.vocabulary_size is None
    explicit = recipe(source, tokenizer=str(directory), vocabulary_size=None)
    assert prepare_dataset(explicit, cache).fingerprint == data.fingerprint
    assert resolve_tokenizer(explicit, cache) is explicit
    assert hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest() == written


def test_a_bundle_keeps_it(source: Path, tmp_path: Path) -> None:
    encoder = load_recipe_encoder(recipe(source), tmp_path / "cache")
    encoder.save(tmp_path / "bundle")
    assert load_encoder(str(tmp_path / "bundle"), "text-v1", 16).fingerprint == encoder.fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path / "bundle").mask_token == "[MASK]"


def test_other_texts_sizes_and_splits_make_another(source: Path, tmp_path: Path) -> None:
    cache, asked = tmp_path / "cache", recipe(source)
    names = {resolve_tokenizer(asked, cache).model.tokenizer}
    names.add(resolve_tokenizer(recipe(source, vocabulary_size=150), cache).model.tokenizer)
    data = asked.data.model_copy(update={"test": 0.3})
    names.add(resolve_tokenizer(asked.model_copy(update={"data": data}), cache).model.tokenizer)
    longer = asked.model_copy(update={"batch": sections.BatchConfig(max_length=32), "seed": 5})
    assert resolve_tokenizer(longer, cache).model.tokenizer in names and len(names) == 3


def test_a_damaged_vocabulary_is_trained_again(source: Path, tmp_path: Path) -> None:
    cache, asked = tmp_path / "cache", recipe(source)
    directory = Path(resolve_tokenizer(asked, cache).model.tokenizer or "")
    whole = (directory / "tokenizer.json").read_bytes()
    (directory / "tokenizer.json").write_bytes(whole[:-50])
    assert resolve_tokenizer(asked, cache).model.tokenizer == str(directory)
    assert (directory / "tokenizer.json").read_bytes() == whole
