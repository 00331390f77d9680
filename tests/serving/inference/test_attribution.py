"""Explanations: weights that add up, at the places where the words stood in the text."""

import itertools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from serving.engine.engine import Engine
from serving.inference.attribution import TOLERANCE, Attributor, NotExplainable
from serving.inference.offsets import trace_cleaning
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.data.cleaning import CLEANINGS
from trainers.models.bert import TextModel
from trainers.models.build import load_model

FUZZED = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)
ANY_TEXT = st.text(st.characters(exclude_categories=[]))
MARKUP = st.lists(
    st.sampled_from(
        [
            *("<br />", "<b>", "</b>", "<p class='x'>", "&lt;", "&amp;", "&#0;", "&;", "<3", "<"),
            *("good", " ", "\r\n", "\x00", "\ud83d", "&NotEqualTilde;", "e\u0301"),
            "\u1112\u1161\u11ab",
        ]
    )
    | ANY_TEXT
).map("".join)


class TestTracing:
    @pytest.mark.parametrize(
        ("raw", "word", "origin"),
        [
            ("a warm film", "warm", "warm"),
            ("one<br />two", "two", "two"),
            ("un<b>believ</b>able!", "unbelievable", "un<b>believ</b>able"),
            ("so <b>good</b>.", "good", "good"),
            ("caf&eacute; is", "café", "caf&eacute;"),
            ("&lt;b&gt;", "<b>", "&lt;b&gt;"),
            ("cafe\u0301 is", "café", "cafe\u0301"),
            ("\t spaced \r\n out ", "out", "out"),
            ("a\x00b", "b", "b"),
            ("half \ud83d one", "\ufffd", "\ud83d"),
            ("\u1112\u1161\u11ab good", "한", "\u1112\u1161\u11ab"),
            ("\u304b\u3099 good", "が", "\u304b\u3099"),
        ],
    )
    def test_a_word_is_found_where_it_stood(self, raw: str, word: str, origin: str) -> None:
        traced = trace_cleaning("text-v1", raw)
        at = traced.text.index(word)
        start, end = traced.original_span(at, at + len(word))
        assert raw[start:end] == origin

    @settings(FUZZED, max_examples=300)
    @given(ANY_TEXT | MARKUP)
    @example("<b <br>>")
    @example("<<b>b>")
    @example("\u0f4d")
    def test_it_is_the_cleaning_for_any_text(self, raw: str) -> None:
        traced = trace_cleaning("text-v1", raw)
        assert traced.text == CLEANINGS["text-v1"](raw)
        assert len(traced.starts) == len(traced.ends) == len(traced.text)
        for start, end in zip(traced.starts, traced.ends, strict=True):
            assert 0 <= start <= end <= len(raw)
        assert all(one <= other for one, other in itertools.pairwise(traced.starts))
        for at, character in enumerate(traced.text):
            start, end = traced.original_span(at, at + 1)
            if end - start == 1 and character != " " and character != "\ufffd":
                assert character in raw[start] + _normalized(raw[start])

    @given(ANY_TEXT)
    def test_where_nothing_is_cleaned_nothing_moves(self, raw: str) -> None:
        traced = trace_cleaning("none", raw)
        assert traced.text == raw
        assert all(traced.original_span(at, at + 1) == (at, at + 1) for at in range(len(raw)))

    def test_an_unknown_cleaning_is_matched_by_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shout = {"shout": lambda raw: " ".join(raw.replace("film", "MOVIE").split())}
        monkeypatch.setattr("serving.inference.offsets.CLEANINGS", shout)
        raw = "a  warm   film of note"
        traced = trace_cleaning("shout", raw)
        assert traced.text == "a warm MOVIE of note"
        for word, origin in (("warm", "warm"), ("MOVIE", "film"), ("note", "note")):
            at = traced.text.index(word)
            start, end = traced.original_span(at, at + len(word))
            assert raw[start:end] == origin

    def test_it_takes_linear_time(self) -> None:
        text = "so <b>good</b> &amp; caf\u00e9 e\u0301 <br/>" * 6000
        started = time.perf_counter()
        trace_cleaning("text-v1", text)
        assert time.perf_counter() - started < 20  # well under 1 s


def _normalized(character: str) -> str:
    """What a character alone becomes: a few have a canonical one, or never compose (U+0F4D)."""
    return CLEANINGS["text-v1"](f"x{character}y")[1:-1]


@pytest.fixture(scope="module")
def moved_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with larger weights: fresh ones hardly move an answer, whatever the text."""
    directory = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("moved") / "bert")
    model = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(50)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(10)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["classification", "multi-label", "regression"])
def directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, moved_bert: Path
) -> Path:
    target = tmp_path_factory.mktemp("explain") / "bundle"
    return write_tiny_bundle(target, moved_bert, request.param)


@pytest.fixture(scope="module")
def explainer(directory: Path) -> Attributor:
    return Attributor.from_bundle(directory)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(directory)


TEXTS = ["a warm funny film", "dull", "<b>Good</b> plot, grim   story &amp; the cast is fine"]


def read_and_masked(engine: Engine, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids [1, s] that the engine reads, and the same with masks between [CLS] and [SEP]."""
    samples, _ = engine.encode([text])
    ids = torch.from_numpy(samples.values).long()[None]
    masks = ids.clone()
    masks[0, 1:-1] = 4  # [MASK] of the tiny vocabulary
    return ids, masks


def difference(explainer: Attributor, engine: Engine, text: str, label: int) -> float:
    """What the text changes in a logit."""
    ids, masks = read_and_masked(engine, text)
    with torch.inference_mode():
        logits = explainer._model(torch.cat([masks, ids]))
    return float(logits[1, label] - logits[0, label])


def test_the_weights_add_up_to_what_the_text_changes(explainer: Attributor, engine: Engine) -> None:
    changes = []
    for text, name in itertools.product(TEXTS, explainer.card.labels or (None,)):
        found = explainer.explain(text, name)
        changes.append(difference(explainer, engine, text, found.label))
        total = sum(each.weight for each in found.attributions)
        assert abs(total - changes[-1]) <= TOLERANCE * max(1.0, abs(changes[-1])) + 1e-4
    assert max(map(abs, changes)) > 0.5, "a text that changes something"


@pytest.mark.parametrize("text", TEXTS)
def test_the_prediction_is_the_engine_s(explainer: Attributor, engine: Engine, text: str) -> None:
    found, (expected,) = explainer.explain(text), engine.predict([text])
    np.testing.assert_allclose(found.prediction.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(found.prediction.scores, expected.scores, atol=1e-5)
    assert found.label == int(np.argmax(expected.logits))


def test_the_label_by_default_is_the_answer_by_its_threshold(
    tmp_path: Path, tiny_bert: Path
) -> None:
    text = TEXTS[0]
    place = write_tiny_bundle(tmp_path / "plain", tiny_bert)
    plain = Attributor.from_bundle(place)
    scores = plain.explain(text).prediction.scores
    for threshold, expected in ((scores[1] - 1e-3, 1), (scores[1] + 1e-3, 0)):
        card = plain.card.model_copy(update={"thresholds": {plain.card.labels[1]: threshold}})
        model = load_model(place)
        assert isinstance(model, TextModel)
        assert Attributor(card, plain._encoder, model).explain(text).label == expected


def test_words_stand_where_they_stood(explainer: Attributor) -> None:
    text = "  <p>Good &amp; <i>gr</i>im,\nstory</p>"
    found = explainer.explain(text)
    words = [text[each.start : each.end] for each in found.attributions]
    assert words == ["Good", "&amp;", "gr</i>im", ",", "story"]


def by_hand(explainer: Attributor, engine: Engine, text: str, label: int) -> list[float]:
    """The weight of each token: the gradient at many points of the path, averaged."""
    model, embedded = explainer._model, explainer._model.embedded
    ids, masks = read_and_masked(engine, text)
    table = model._model.word_embeddings.weight.detach()
    here, there = table[ids], table[masks]
    gradient, steps = torch.zeros_like(here), 200
    for step in range(steps):
        point = (there + (step + 0.5) / steps * (here - there)).requires_grad_()
        hook = embedded.register_forward_hook(lambda *_, point=point: point)
        gradient += torch.autograd.grad(model(ids)[0, label], point)[0] / steps
        hook.remove()
    return ((here - there) * gradient).sum(dim=-1)[0, 1:-1].tolist()


def test_the_weights_are_integrated_gradients(explainer: Attributor, engine: Engine) -> None:
    found = explainer.explain(TEXTS[0])
    expected = by_hand(explainer, engine, TEXTS[0], found.label)
    assert [TEXTS[0][each.start : each.end] for each in found.attributions] == TEXTS[0].split()
    np.testing.assert_allclose([each.weight for each in found.attributions], expected, atol=0.05)


def test_what_the_model_does_not_read_has_no_weight(explainer: Attributor) -> None:
    text = "good " * 100
    found = explainer.explain(text)
    assert len(found.attributions) == explainer.card.max_length - 2
    assert found.attributions[-1].end < len(text) / 2


@pytest.mark.parametrize("text", ["", "   ", "<br />", "\x00"])
def test_nothing_is_explained_by_nothing(explainer: Attributor, text: str) -> None:
    assert explainer.explain(text).attributions == ()


@FUZZED
@given(text=ANY_TEXT | MARKUP)
def test_any_text_is_explained(explainer: Attributor, text: str) -> None:
    found = explainer.explain(text)
    ends = 0
    for each in found.attributions:
        assert ends <= each.start < each.end <= len(text), "in order, and none over another"
        assert np.isfinite(each.weight)
        ends = each.end


def test_threads_get_the_same_explanations(explainer: Attributor) -> None:
    alone = [explainer.explain(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(explainer.explain, TEXTS * 2)) == alone * 2


def test_another_label_is_explained_by_its_name(explainer: Attributor) -> None:
    for index, label in enumerate(explainer.card.labels or ("value",)):
        assert explainer.explain(TEXTS[0], label).label == index
    with pytest.raises(NotExplainable, match="'awful' is no label of this model"):
        explainer.explain(TEXTS[0], "awful")
    if "positive" in explainer.card.labels:
        with pytest.raises(NotExplainable, match="did you mean positive"):
            explainer.explain(TEXTS[0], "positiv")


def test_the_bundle_is_left_as_it_was(explainer: Attributor, engine: Engine) -> None:
    before = explainer.explain(TEXTS[0])
    expected = engine.predict(TEXTS)
    explainer.explain(TEXTS[1])
    assert explainer.explain(TEXTS[0]) == before
    assert engine.predict(TEXTS) == expected


def test_models_without_words_or_labels_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    for task in ("masked-lm", "embedding"):
        unlabelled = write_tiny_bundle(tmp_path / task, tiny_bert, task)
        with pytest.raises(NotExplainable, match=f"a model for {task} gives no label to explain"):
            Attributor.from_bundle(unlabelled)
    linear = write_linear_bundle(tmp_path / "linear", [1.0, 2.0])
    with pytest.raises(NotExplainable, match="reads numbers, which are no words"):
        Attributor.from_bundle(linear)
