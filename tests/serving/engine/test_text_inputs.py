"""Texts are read as a request says: ids as they are, the other end cut, fewer tokens."""

from pathlib import Path

import numpy as np
import pytest

from serving.engine.engine import Engine
from serving.interface import TextInput
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.data.tokenizer import EncodingError

LONG = " ".join(f"film plot cast {number}" for number in range(60))


@pytest.fixture(scope="module")
def engine(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    bundle = tmp_path_factory.mktemp("inputs") / "bundle"
    write_tiny_bundle(bundle, tiny_bert, "classification")
    return Engine.load(bundle)


def row(engine: Engine, text: str) -> list[int]:
    return [int(id_) for id_ in engine.encode([text])[0][0]]


def test_the_ids_of_a_text_are_the_text(engine: Engine) -> None:
    ids = row(engine, "a warm film")
    assert row(engine, TextInput(ids=ids)) == ids
    (by_text,), (by_ids,) = engine.predict(["a warm film"]), engine.predict([TextInput(ids=ids)])
    assert by_ids == by_text


def test_without_an_option_a_text_input_is_a_text(engine: Engine) -> None:
    for text in ("a warm film", LONG):
        samples, cut = engine.encode([TextInput(text)])
        plain, plain_cut = engine.encode([text])
        np.testing.assert_array_equal(samples.values, plain.values)
        np.testing.assert_array_equal(cut, plain_cut)


def test_the_other_end_is_cut(engine: Engine) -> None:
    samples, cut = engine.encode([TextInput(LONG, truncation_side="left"), "short"])
    plain = row(engine, LONG)
    left = samples[0].tolist()
    assert cut.tolist() == [True, False]
    assert len(left) == len(plain) and left != plain
    assert (left[0], left[-1]) == (plain[0], plain[-1])  # the special tokens
    end = row(engine, " ".join(LONG.split()[-3:]))[1:-1]
    assert left[1:-1][-len(end) :] == end


def test_fewer_tokens_are_read_where_so_many_are_asked_for(engine: Engine) -> None:
    samples, cut = engine.encode([TextInput(LONG, max_tokens=5)])
    assert samples[0].tolist() == [*row(engine, LONG)[:4], row(engine, LONG)[-1]]
    assert cut.tolist() == [True]
    with pytest.raises(EncodingError, match="leave no room"):
        engine.encode([TextInput("a", max_tokens=2)])


@pytest.mark.parametrize("id_", [-1, 50_257])
def test_ids_of_another_tokenizer_are_refused_with_the_way_out(engine: Engine, id_: int) -> None:
    with pytest.raises(EncodingError, match=r"text 2 .*check_embedding_ctx_length=False"):
        engine.encode([TextInput(ids=[1]), TextInput(ids=[id_])])


def test_tokens_are_the_text_again(engine: Engine) -> None:
    ids = row(engine, "a warm film")
    assert engine.detokenize([ids, ids[1:2]]) == ["a warm film", "a"]
    (whole,) = engine.detokenize([ids], skip_special_tokens=False)
    assert whole.startswith("[CLS]") and "a warm film" in whole
    for id_ in (-1, 50_257):
        with pytest.raises(EncodingError, match=f"text 2 holds the token id {id_}"):
            engine.detokenize([ids, [id_]])


def test_tokens_have_places_in_the_text(engine: Engine) -> None:
    ((first, *words, last),) = engine.tokenize(["a warm film"])
    assert first.special and last.special and first.start is None
    assert [first.id, *(word.id for word in words), last.id] == row(engine, "a warm film")
    assert words[0].start == 0 and words[-1].end == len("a warm film")
    assert engine.tokenize(["a warm film"], add_special_tokens=False) == [words]
