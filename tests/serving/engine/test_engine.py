"""The engine: a bundle's answers are those of its model, whatever they are batched with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    FillMaskPipeline,
    RobertaConfig,
    RobertaModel,
)

from serving.engine.engine import Engine, batch_rows, split_rows
from serving.optimize import export_embedder
from tests.support.tiny_bundle import LABELS, MAX_LENGTH, write_linear_bundle, write_tiny_bundle
from trainers.data.encoders.encoder import EmptyTextError
from trainers.data.ragged import ragged_from_rows
from trainers.data.tokenizer import EncodingError
from trainers.models.card import BundleError
from trainers.models.config import ModelError
from trainers.training.losses import logits_to_scores as meant

FUZZED = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)
CLASSIFIERS = ["classification", "multi-label", "regression"]

TEXTS = [
    "a warm funny film",
    "dull",
    "the plot is thin but the cast is good " * 3,
    "boring scene of a grim story",
]
MASKED = ["a [MASK] film", "the plot is <b>bad</b> and the [MASK] is very [MASK]", "no mask"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    """A bundle for each task."""
    place = tmp_path_factory.mktemp("engine")
    return {task: write_tiny_bundle(place / task, tiny_bert, task) for task in LABELS}


@pytest.fixture(scope="module", params=CLASSIFIERS)
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    return directories[request.param]


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(directory)


@pytest.fixture(scope="module")
def embedding(directories: dict[str, Path]) -> Engine:
    return Engine.load(directories["embedding"])


@pytest.fixture(scope="module")
def masked_lm(directories: dict[str, Path]) -> Engine:
    return Engine.load(directories["masked-lm"])


def test_tokens_are_counted_before_a_text_is_cut(engine: Engine, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [*TEXTS, "the <br /> plot " * 200, ""]
    expected = [len(tokenizer(text.replace("<br />", " "))["input_ids"]) for text in texts]
    assert engine.count_tokens(texts) == expected and expected[-2] > MAX_LENGTH
    long = "film " * 100_000
    assert engine.count_tokens([long])[0] == 20_000 + 2, "of a long text so many are counted"
    assert engine.count_tokens([]) == []


def test_the_logits_are_those_transformers_computes(engine: Engine, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    for text, prediction in zip(TEXTS, engine.predict(TEXTS), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits[0]
        np.testing.assert_allclose(prediction.logits, expected, rtol=1e-4, atol=1e-4)


def test_the_scores_are_what_the_task_means(engine: Engine) -> None:
    task = engine.card.task
    assert task != "embedding"
    for prediction in engine.predict(TEXTS):
        expected = meant(task, torch.tensor([prediction.logits]))[0]
        np.testing.assert_allclose(prediction.scores, expected, atol=1e-6)


def test_a_text_is_answered_alike_alone_and_in_any_batch(engine: Engine) -> None:
    together = engine.predict(TEXTS)
    for text, prediction in zip(TEXTS, together, strict=True):
        (alone,) = engine.predict([text])
        np.testing.assert_allclose(alone.logits, prediction.logits, atol=1e-4)
    backwards = engine.predict(TEXTS[::-1])[::-1]
    for there, back in zip(together, backwards, strict=True):
        np.testing.assert_allclose(there.logits, back.logits, atol=1e-4)


def test_rows_of_several_requests_are_answered_as_one(engine: Engine) -> None:
    samples, truncated = engine.encode(TEXTS)
    assert truncated.sum() == 1
    rows = split_rows(samples)
    assert [len(row) for row in rows] == samples.lengths.tolist()
    joined = ragged_from_rows(rows, samples.values.dtype.type)
    np.testing.assert_array_equal(joined.values, samples.values)
    np.testing.assert_array_equal(joined.offsets, samples.offsets)
    for one, other in zip(engine.infer_rows(rows), engine.infer(samples), strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)  # type: ignore[union-attr]


def test_batches_are_filled_in_order_as_far_as_tokens_go() -> None:
    rows = [np.arange(length) for length in (100, 150, 7, 300, 9)]
    assert [[len(row) for row in batch] for batch in batch_rows(rows, 256)] == [
        [100, 150],
        [7],
        [300],
        [9],
    ]


def test_a_model_that_answers_no_number_says_so(directory: Path) -> None:
    engine = Engine.load(directory)
    with torch.no_grad():
        next(iter(engine._backend.network.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError):
        engine.predict(["a film"])


@FUZZED
@given(text=st.text(min_size=1))
def test_any_text_that_is_none_is_refused_and_any_other_answered(engine: Engine, text: str) -> None:
    if not engine.clean(text):
        with pytest.raises(EmptyTextError, match="text 1 is empty"):
            engine.predict([text])
        return
    (prediction,) = engine.predict([text])
    if engine.card.task == "classification":
        assert sum(prediction.scores) == pytest.approx(1)


def test_an_engine_says_what_it_is_and_weighs(engine: Engine, directory: Path) -> None:
    assert engine.backend == "torch fp32"
    weights = (directory / "model.safetensors").stat().st_size
    assert 0.8 * weights < engine.num_bytes < 1.5 * weights
    assert engine.predict([engine.probe_text])


def test_a_linear_model_reads_as_many_numbers_as_it_was_trained_on(tmp_path: Path) -> None:
    engine = Engine.load(write_linear_bundle(tmp_path / "bundle", weights=(2.0, -1.0)))
    assert [each.scores for each in engine.predict(["3 1", "0.5 0"])] == [(5.0,), (1.0,)]
    assert engine.predict([engine.probe_text])[0].scores == (0.0,)
    for text, words in (("3", "'3' holds 1 numbers; this model reads 2"), ("a b", "'a b'")):
        with pytest.raises(EncodingError, match=words):
            engine.predict([text])


class TestMaskedLanguageModel:
    def test_the_logits_are_those_at_the_masks(
        self, masked_lm: Engine, directories: dict[str, Path]
    ) -> None:
        place = directories["masked-lm"]
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForMaskedLM.from_pretrained(place).eval()
        samples, _ = masked_lm.encode(MASKED)
        for row, logits in zip(split_rows(samples), masked_lm.infer(samples), strict=True):
            at_masks = row == tokenizer.mask_token_id
            assert len(logits) == at_masks.sum()  # type: ignore[arg-type]
            if at_masks.any():
                with torch.no_grad():
                    expected = model(torch.from_numpy(row[None]).long()).logits[0, at_masks]
                np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    def test_the_fillings_are_those_of_transformers(
        self, masked_lm: Engine, directories: dict[str, Path]
    ) -> None:
        place = directories["masked-lm"]
        pipeline = FillMaskPipeline(
            AutoModelForMaskedLM.from_pretrained(place).eval(),
            AutoTokenizer.from_pretrained(place),
            device="cpu",
        )
        text = "a [MASK] film"
        (of_mask,) = fillings(masked_lm, text, top_k=4)
        for ours, theirs in zip(of_mask, pipeline(text, top_k=4), strict=True):
            assert ours.token == theirs["token"] and ours.token_str == theirs["token_str"]
            assert ours.score == pytest.approx(theirs["score"], rel=1e-4)
            assert ours.sequence == theirs["sequence"]
        (of_targets,) = fillings(masked_lm, text, targets=["dull", "good", "dull"])
        assert {each.token_str for each in of_targets} == {"dull", "good"}
        assert of_targets[0].score >= of_targets[1].score

    def test_a_word_is_put_into_the_text_as_it_was_written(self, masked_lm: Engine) -> None:
        text = "The <b>plot</b> is [MASK],\nand the [MASK] is VERY bad"
        first, second = fillings(masked_lm, text, targets=["cast"])
        assert first[0].sequence == "The plot is cast, and the [MASK] is VERY bad"
        assert second[0].sequence == "The plot is [MASK], and the cast is VERY bad"

    def test_masks_that_were_cut_off_are_not_filled(self, masked_lm: Engine) -> None:
        found = fillings(masked_lm, "a [MASK] film " + "is bad " * 20 + "[MASK]", targets=["cast"])
        assert len(found) == 1
        assert found[0][0].sequence.startswith("a cast film is bad")

    def test_a_text_without_masks_has_no_fillings(self, masked_lm: Engine) -> None:
        assert fillings(masked_lm, "a film") == ()
        assert len(fillings(masked_lm, masked_lm.probe_text)) == 1


def fillings(engine: Engine, text: str, **settings: object) -> tuple:  # type: ignore[type-arg]
    """What the engine fills into one text."""
    samples, _ = engine.encode([text])
    (row,) = split_rows(samples)
    (logits,) = engine.infer_rows([row])
    return engine.predict_masks(text, row, logits, **settings)  # type: ignore[arg-type]


class TestEmbedding:
    def test_a_vector_is_the_mean_over_the_tokens(
        self, embedding: Engine, directories: dict[str, Path]
    ) -> None:
        place = directories["embedding"]
        tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place)
        vectors = embedding.predict(TEXTS)
        for text, vector in zip(TEXTS, vectors, strict=True):
            inputs = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            with torch.no_grad():
                mean = model.eval()(**inputs).last_hidden_state[0].mean(dim=0)
            np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
            np.testing.assert_allclose(embedding.predict([text])[0], vector, atol=1e-5)
            assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1)

    def test_cls_pooling_reads_the_first_token(self, tmp_path: Path, tiny_bert: Path) -> None:
        card = export_embedder.write_embedder_bundle(
            tiny_bert, tmp_path / "bundle", pooling="cls", max_length=MAX_LENGTH
        )
        assert card.pooling == "cls" and "model.safetensors" in card.files
        vector = Engine.load(tmp_path / "bundle").predict(["a warm film"])[0]
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
        model = AutoModel.from_pretrained(tiny_bert).eval()
        with torch.no_grad():
            hidden = model(**tokenizer("a warm film", return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0, 0] / hidden[0, 0].norm(), atol=1e-5)

    @pytest.mark.parametrize("kind", ["roberta", "distilbert"])
    def test_encoders_of_the_family_are_embedded(
        self, kind: str, tmp_path: Path, tiny_bert: Path
    ) -> None:
        sizes = {"vocab_size": 64, "num_attention_heads": 2}
        model = (
            RobertaModel(
                RobertaConfig(**sizes, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
            )
            if kind == "roberta"
            else DistilBertModel(DistilBertConfig(**sizes, dim=8, hidden_dim=8, n_layers=1))
        )
        AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "encoder")
        model.eval().save_pretrained(tmp_path / "encoder")
        export_embedder.write_embedder_bundle(
            tmp_path / "encoder", tmp_path / "bundle", max_length=MAX_LENGTH
        )
        engine = Engine.load(tmp_path / "bundle")
        samples, _ = engine.encode(["a warm film"])
        with torch.no_grad():
            hidden = model(torch.from_numpy(samples.values[None]).long()).last_hidden_state[0]
        mean = hidden.mean(dim=0)
        np.testing.assert_allclose(engine.infer(samples)[0], mean / mean.norm(), atol=1e-5)

    def test_a_length_that_the_encoder_lacks_is_refused(
        self, tmp_path: Path, tiny_bert: Path
    ) -> None:
        with pytest.raises(ModelError, match=r"max_length 256: .* has positions for 64 tokens"):
            export_embedder.write_embedder_bundle(tiny_bert, tmp_path / "bundle")


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="bundle"):
        Engine.load(tmp_path)


def test_an_engine_that_was_not_built_is_refused(directory: Path) -> None:
    with pytest.raises(BundleError, match=r"'onnxruntime int8' was never built; .*'torch fp32'"):
        Engine.load(directory, backend="onnxruntime int8")
    with pytest.raises(BundleError, match="no engine 'tensorrt'; there is torch fp32, "):
        Engine.load(directory, backend="tensorrt")
