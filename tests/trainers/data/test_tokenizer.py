"""Encoders: the same numbers as Transformers, counted, saved and loaded without a change."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from trainers.data.ragged import RaggedArray, concat_ragged
from trainers.data.tokenizer import EncodingError, load_encoder

ROWS = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8)


@given(ROWS, st.data())
def test_taken_rows_lie_end_to_end(rows: list[list[int]], data: Any) -> None:
    samples = concat_ragged([_samples(rows)])
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    ids = samples.take(chosen)
    assert ids.tolist() == [token for row in chosen for token in rows[row]]
    assert (ids.dtype, ids.flags.writeable, ids.base) == (np.int32, True, None)
    assert all(samples[row].tolist() == rows[row] for row in chosen)


@given(ROWS, st.integers(0, 8))
def test_joined_parts_are_the_whole(rows: list[list[int]], cut: int) -> None:
    whole, parts = _samples(rows), concat_ragged([_samples(rows[:cut]), _samples(rows[cut:])])
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.offsets, parts.offsets)
    assert list(whole.lengths) == [len(row) for row in rows]


def _samples(rows: list[list[int]]) -> RaggedArray:
    values = np.array([each for row in rows for each in row], dtype=np.int32)
    return RaggedArray(values, np.cumsum([0, *map(len, rows)]))


def test_tokens_are_those_of_transformers_and_cut_texts_are_counted_exactly(
    tiny_bert: Path,
) -> None:
    encoder = load_encoder(str(tiny_bert), "text-v1", 8)
    fits, too_long = "good film " * 3, "good film " * 3 + "bad"
    given_texts = [fits, too_long, "", "unknown words", "x" * 100_000, "film " * 100_000]
    samples, truncated = encoder.encode([encoder.clean(text) for text in given_texts])
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    expected = tokenizer(given_texts, truncation=True, max_length=8)["input_ids"]
    assert [samples[row].tolist() for row in range(6)] == expected
    assert truncated.tolist() == [False, True, False, False, True, True]
    assert encoder.pad_id == tokenizer.pad_token_id


def test_an_encoder_saved_and_loaded_is_the_same_one(tiny_bert: Path, tmp_path: Path) -> None:
    for source in (str(tiny_bert), "package:all-minilm-l6-v2"):
        encoder = load_encoder(source, "text-v1", 16)
        encoder.save(tmp_path)
        assert load_encoder(str(tmp_path), "text-v1", 16).fingerprint == encoder.fingerprint
        assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 16


def test_a_fingerprint_is_of_tokenizer_cleaning_and_length(tiny_bert: Path) -> None:
    made = [
        load_encoder(str(tiny_bert), "text-v1", 16),
        load_encoder(str(tiny_bert), "text-v1", 32),
        load_encoder(str(tiny_bert), "none", 16),
        load_encoder("package:all-minilm-l6-v2", "text-v1", 16),
        load_encoder("linear", "none", 16),
    ]
    assert len({encoder.fingerprint for encoder in made}) == len(made)


def test_a_tokenizer_in_python_works_too(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "none", 8)
    samples, truncated = encoder.encode(["1234567", "12345678", "\ud800"])
    assert (list(samples.lengths), truncated.tolist()) == ([8, 8, 2], [False, True, False])
    encoder.save(tmp_path / "saved")
    assert load_encoder(str(tmp_path / "saved"), "none", 8).fingerprint == encoder.fingerprint


def test_no_tokenizer_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"no tokenizer could be loaded .*model.tokenizer"):
        load_encoder("absent/model", "none", 8)
    for settings in (None, '{"model_type": "bert"}'):
        if settings is not None:
            (tmp_path / "config.json").write_text(settings)
        with pytest.raises(EncodingError, match=r"holds no tokenizer .*or set model.tokenizer"):
            load_encoder(str(tmp_path), "none", 8)


def test_numbers_are_read_as_they_are() -> None:
    samples, truncated = load_encoder("linear", "none", 8).encode(["1 -2.5", "3e2\t4"])
    assert samples.take([0, 1]).tolist() == [1, -2.5, 300, 4]
    assert (samples.values.dtype, truncated.any()) == (np.float32, False)


@pytest.mark.parametrize(
    ("given_texts", "message"),
    [
        (["1 2", "3"], r"text '3' holds 1 numbers, '1 2' holds 2"),
        (["1 two"], "text '1 two' is not numbers"),
        (["nan"], "text 'nan' is not numbers"),
        (["1e39"], "text '1e39' is not numbers"),
        ([""], "text '' is not numbers"),
        (["1 " * 9], r"holds 9 numbers; raise batch.max_length = 8"),
    ],
)
def test_texts_that_are_not_numbers_are_named(given_texts: list[str], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        load_encoder("linear", "none", 8).encode(given_texts)


FORK = """
import os, sys
from trainers.data.tokenizer import load_encoder
encoder = load_encoder(sys.argv[1], "none", 16)
texts = ["good film"] * 2000
encoder.encode(texts)
child = os.fork()
if not child:
    os._exit(0 if encoder.encode(texts)[0].lengths.sum() == 8000 else 1)
print(os.waitpid(child, 0)[1], encoder.encode(texts)[0].lengths.sum())
print(os.environ.get("TOKENIZERS_PARALLELISM"))
"""


@pytest.mark.multiprocess
def test_a_forked_process_tokenizes_without_warning_or_deadlock(tiny_bert: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", FORK, str(tiny_bert)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["0", "8000", "None"]
    assert done.stderr == ""
