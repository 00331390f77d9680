"""Packing: every token of every document, in order; and the data path to it."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny import PLAIN
from trainers.config import recipe as recipes
from trainers.config.data_section import DataConfig
from trainers.config.recipe import Recipe
from trainers.data.corpus import gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.files import DataError
from trainers.data.packing import DocumentPacker
from trainers.data.prepare import estimate_dataset, load_recipe_encoder, prepare_dataset
from trainers.data.ragged import RaggedArray, concat_ragged, ragged_from_rows
from trainers.data.report import DataReport
from trainers.data.tokenizer import EncodingError, TextEncoder, load_encoder

CLS, SEP = 1, 2
DOCUMENTS = st.lists(st.integers(0, 40), max_size=12)


def documents(lengths: list[int]) -> RaggedArray:
    """Documents of `lengths`, whose tokens are numbered through from 10."""
    ends = np.cumsum([10, *lengths])
    rows = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    return ragged_from_rows([row.astype(np.int32) for row in rows], np.int32)


def pack_documents(given: RaggedArray, longest: int, first_id: int, end_id: int) -> RaggedArray:
    """Pack all documents at once."""
    packer = DocumentPacker(longest, first_id, end_id)
    return concat_ragged([packer.add(given), packer.finish()])


def sequences(packed: RaggedArray) -> list[list[int]]:
    return [
        packed.values[a:b].tolist()
        for a, b in zip(packed.offsets, packed.offsets[1:], strict=False)
    ]


@settings(deadline=None)
@given(DOCUMENTS, st.integers(8, 20))
def test_no_token_is_lost_and_none_is_moved(lengths: list[int], longest: int) -> None:
    given_documents = documents(lengths)
    packed = sequences(pack_documents(given_documents, longest, CLS, SEP))
    kept = [token for each in packed for token in each if token not in (CLS, SEP)]
    assert kept == given_documents.values.tolist()
    for each in packed:
        assert each[0] == CLS and each[-1] == SEP and each.count(CLS) == 1
        assert [SEP, SEP] not in [each[i : i + 2] for i in range(len(each))]
        assert each[1] != SEP and len(each) <= longest
    starts = set(given_documents.offsets[:-1][given_documents.lengths > 0] + 10)
    for each in packed[:-1]:
        following = packed[packed.index(each) + 1][1]
        assert len(each) == longest or (len(each) == longest - 1 and following in starts)
    for each in packed:  # a document begins after [CLS] or [SEP], and nothing else does but a rest
        for left, token in itertools.pairwise(each[1:]):
            assert (left == SEP) == (token in starts) or token == SEP


@settings(deadline=None)
@given(DOCUMENTS, st.integers(8, 20), st.lists(st.integers(0, 12), max_size=4))
def test_documents_pack_alike_however_many_come_at_a_time(
    lengths: list[int], longest: int, cuts: list[int]
) -> None:
    whole, packer = documents(lengths), DocumentPacker(longest, CLS, SEP)
    edges = [0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)]
    found = []
    for first, last in itertools.pairwise(edges):
        rows = [whole[row] for row in range(first, last)]
        found += sequences(packer.add(ragged_from_rows(rows, np.int32)))
    found += sequences(packer.finish())
    assert found == sequences(pack_documents(whole, longest, CLS, SEP))


def test_an_example_by_hand() -> None:
    packed = sequences(pack_documents(documents([3, 2, 0, 9, 1]), 8, CLS, SEP))
    assert packed == [
        [CLS, 10, 11, 12, SEP, 13, 14, SEP],
        [CLS, 15, 16, 17, 18, 19, 20, SEP],
        [CLS, 21, 22, 23, SEP, 24, SEP],
    ]
    assert sequences(pack_documents(documents([5, 1]), 8, CLS, SEP)) == [
        [CLS, 10, 11, 12, 13, 14, SEP],  # one place is left: no token and its [SEP] fit
        [CLS, 15, SEP],
    ]
    assert (
        len(pack_documents(documents([]), 8, CLS, SEP))
        == len(pack_documents(documents([0]), 8, CLS, SEP))
        == 0
    )


# --- through the data path


def write(path: Path, texts: list[str]) -> str:
    """A JSONL file without a label column."""
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe(tiny_bert: Path, tmp_path: Path) -> Recipe:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(PLAIN, draw.integers(1, 60))) for _ in range(400)]
    return recipes.parse_recipe(
        {
            "task": "masked-lm",
            "model": {"name": str(tiny_bert)},
            "data": {"source": write(tmp_path / "texts.jsonl", texts)},
            "batch": {"max_length": 16},
        }
    )


def test_texts_become_sequences(recipe: Recipe, tmp_path: Path) -> None:
    data = prepare_dataset(recipe, tmp_path / "cache")
    encoder = load_recipe_encoder(recipe)
    sides = gather_corpus(recipe, encoder.clean).splits
    for name, side in sides.items():
        split = getattr(data, name)
        words = [word for text in side.texts for word in text.split()]
        inner = split.samples.values[split.samples.values > 4]
        assert len(inner) == len(words)
        assert set(split.samples.lengths[:-1]) <= {15, 16}
        assert (split.targets.dtype, split.targets.sum()) == (np.int64, 0)
        assert len(split.targets) == len(split)
    report = data.report
    assert data.labels == () and report.truncated == 0 and report.numbers == {}
    assert report.rows == {name: len(side.texts) for name, side in sides.items()}
    assert report.sequences == {name: len(getattr(data, name)) for name in sides}
    said = "\n".join(report.to_lines())
    assert "packed into sequences" in said and f"{len(data.train):,}" in said
    assert DataReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    again = prepare_dataset(
        recipe, tmp_path / "cache", lambda done, total: pytest.fail("packed twice")
    )
    assert again.report == report


def test_the_fingerprint_covers_the_packing(
    recipe: Recipe, tmp_path: Path, monkeypatch: Any
) -> None:
    first = prepare_dataset(recipe, tmp_path / "cache").fingerprint
    monkeypatch.setattr("trainers.data.packing.FORMAT", 2)
    assert prepare_dataset(recipe, tmp_path / "cache").fingerprint != first


def test_a_sketch_of_packed_texts(recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("trainers.data.prepare.ESTIMATE_TEXTS", 100)
    rough = estimate_dataset(recipe, tmp_path / "cache")
    data = prepare_dataset(recipe, tmp_path / "cache")
    exact = estimate_dataset(recipe, tmp_path / "cache")
    assert (rough.report.sampled, rough.report.sequences) == (100, {})
    assert rough.num_train == pytest.approx(len(data.train), rel=0.2)
    assert exact.num_train == len(exact.lengths) == len(data.train)


def test_a_tokenizer_in_python_packs_too(recipe: Recipe, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    encoder = load_encoder(str(tmp_path / "byt5"), "none", 8)
    assert isinstance(encoder, TextEncoder)
    assert encoder.tokenize_uncut(["ab", "c" * 20]).lengths.tolist() == [2, 20]
    with pytest.raises(EncodingError, match="no tokens that begin and end a sequence"):
        encoder.document_packer()
    with pytest.raises(EncodingError, match=r"no mask token.*model\.vocabulary_size"):
        encoder.masking_vocabulary()


def test_whole_texts_are_not_cut_and_others_still_are(tiny_bert: Path) -> None:
    encoder = load_encoder(str(tiny_bert), "text-v1", 8)
    assert isinstance(encoder, TextEncoder)
    assert encoder.tokenize_uncut(["good film " * 500]).lengths.tolist() == [1000]
    assert encoder.encode(["good film " * 500])[0].lengths.tolist() == [8]


def test_what_masking_knows_of_a_tokenizer() -> None:
    encoder = load_encoder("package:all-minilm-l6-v2", "none", 8)
    assert isinstance(encoder, TextEncoder)
    vocabulary = encoder.masking_vocabulary()
    assert (vocabulary.size, vocabulary.mask_id) == (30522, 103)
    assert np.flatnonzero(vocabulary.special).tolist() == [0, 100, 101, 102, 103]
    ids = encoder.tokenize_uncut(["unaffable"]).values
    assert vocabulary.continuation[ids].tolist() == [False] + [True] * (len(ids) - 1)


def test_texts_without_tokens_are_an_error(recipe: Recipe, tmp_path: Path) -> None:
    source = write(tmp_path / "odd.jsonl", ["\u0301", "\u0302"])
    settings = {"source": source, "validation": 0.0, "test": 0.0}
    odd = recipe.model_copy(update={"data": DataConfig(**settings)})
    with pytest.raises(DataError, match="no token in any text"):
        prepare_dataset(odd, tmp_path / "cache")


def test_prepared_is_shared_with_other_tasks(recipe: Recipe, tmp_path: Path) -> None:
    data: PreparedDataset = prepare_dataset(recipe, tmp_path / "cache")
    assert data.train.samples.lengths.max() == 16 == len(data.train.samples[0])
