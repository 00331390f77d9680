"""Which engine answers on a device: the one measured there, else torch fp32, which is said."""

import logging
from pathlib import Path
from typing import Any

import pytest

from serving.engine.choice import EngineChoice, choose_engine
from serving.engine.engine import Engine
from serving.interface import PROMISED_WAIT_SECONDS
from tests.support.fake_gpu import CARD, install_gpu
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import EngineRecord, ModelCard, read_card


def measured(name: str, device: str = "cpu", card: str = "", **more: Any) -> EngineRecord:
    known = {"agreement": 1.0, "max_logit_difference": 0.0, "rows": 9}
    return EngineRecord(name=name, device=device, device_name=card, **(known | more))


ENGINES = (
    measured("torch fp32"),
    measured("onnxruntime int8", chosen=True, batch_tokens=128),
    measured("torch fp32 cuda", "cuda", CARD, batch_tokens=512, tokens_per_second=2e5),
    measured(
        "torch bf16 cuda", "cuda", CARD, chosen=True, batch_tokens=8192, tokens_per_second=9e5
    ),
)


@pytest.fixture
def card(tiny_classifier: Path) -> ModelCard:
    return read_card(tiny_classifier).model_copy(update={"engines": ENGINES})


def test_each_kind_of_device_has_a_chosen_engine(card: ModelCard) -> None:
    assert choose_engine(card, "cpu") == EngineChoice("onnxruntime int8", 128)
    assert choose_engine(card, "cuda", CARD) == EngineChoice("torch bf16 cuda", 8192, 9e5)
    named = choose_engine(card, "cuda", CARD, "torch fp32 cuda")
    assert named == EngineChoice("torch fp32 cuda", 512, 2e5)


def test_a_bundle_that_was_not_measured_there_falls_back_and_says_so(card: ModelCard) -> None:
    bare = card.model_copy(update={"engines": ENGINES[:2]})
    remark = (
        f"'torch fp32 cuda' answers on {CARD}, nobody has measured there: "
        "bertha build BUNDLE --device cuda measures it"
    )
    assert choose_engine(bare, "cuda", CARD) == EngineChoice("torch fp32 cuda", 256, 0.0, remark)
    assert choose_engine(card.model_copy(update={"engines": ()}), "cpu").remark == ""


def test_what_was_measured_on_another_card_does_not_count(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch)
    found = choose_engine(card, "cuda", "Tesla T4")
    assert (found.name, found.batch_tokens, found.tokens_per_second) == ("torch bf16 cuda", 256, 0)
    assert f"answers on Tesla T4, measured on {CARD}, not there" in found.remark


def test_a_card_that_cannot_run_what_was_chosen_on_another_falls_back(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch, capability=(7, 5))
    found = choose_engine(card, "cuda", "Tesla T4")
    assert (found.name, found.batch_tokens) == ("torch fp32 cuda", 256)
    assert found.remark.startswith("'torch fp32 cuda' answers on Tesla T4, measured on")


@pytest.mark.parametrize(
    ("tokens_per_second", "expected"), [(0.0, 8192), (9e5, 8192), (1e5, 5000), (1e3, 256)]
)
def test_a_batch_and_the_one_before_it_are_computed_within_the_wait(
    card: ModelCard, tokens_per_second: float, expected: int
) -> None:
    record = ENGINES[3].model_copy(update={"tokens_per_second": tokens_per_second})
    one = card.model_copy(update={"engines": (record,)})
    assert choose_engine(one, "cuda", CARD).batch_tokens == expected
    assert PROMISED_WAIT_SECONDS == 0.1


def test_a_bundle_answers_on_a_gpu_as_on_the_cpu(
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    texts = ["a warm funny film", "dull"]
    expected = Engine.load(place).predict(texts)
    install_gpu(monkeypatch)
    with caplog.at_level(logging.WARNING):
        engine = Engine.load(place, device="cuda")
    assert (engine.backend, engine.overlaps, engine.batch_tokens) == ("torch fp32 cuda", True, 256)
    assert len(caplog.messages) == 1 and "nobody has measured there" in caplog.messages[0]
    for one, other in zip(engine.predict(texts), expected, strict=True):
        assert one.logits == pytest.approx(other.logits, abs=1e-5)
    assert not Engine.load(place).overlaps
