"""Exported graphs: they compute what torch does, and the bundle lists their files."""

from pathlib import Path

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
)

from serving.engine.engine import Engine
from serving.optimize import throughput
from serving.optimize.eval_texts import load_eval_rows
from serving.optimize.optimize import build_engines
from tests.support.engine_builds import GRAPHS, QUICK, TEXTS, needs_graphs
from tests.support.tiny_bundle import LABELS, write_tiny_bundle
from trainers.models import bundle
from trainers.models.card import BundleError, read_card
from trainers.storage.atomic import hash_files

pytestmark = pytest.mark.slow


@needs_graphs
@pytest.mark.parametrize("task", LABELS)
def test_graphs_answer_as_torch_does(
    task: str, tmp_path: Path, tiny_bert: Path, texts: Path
) -> None:
    """For any batch and any length, with and without padding."""
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task)
    card = read_card(place)
    rows = load_eval_rows(card, bundle.load_encoder(place, card), texts)
    found = build_engines(place, candidates=GRAPHS, rows=rows, **QUICK)
    assert [each.agreement for each in found] == [1.0, 1.0, 1.0]
    assert all(each.max_logit_difference < 1e-3 for each in found)
    reference = Engine.load(place, "torch fp32")
    asked = [text.replace("film", "[MASK]") for text in TEXTS]
    for name in GRAPHS:
        engine = Engine.load(place, name)
        assert engine.backend == name and engine.num_bytes > 0
        for batch in (asked, asked[:1], [asked[0], asked[0]]):
            for ours, theirs in zip(engine.predict(batch), reference.predict(batch), strict=True):
                ours, theirs = getattr(ours, "logits", ours), getattr(theirs, "logits", theirs)
                np.testing.assert_allclose(ours, theirs, atol=1e-3)


@needs_graphs
def test_the_card_tells_what_was_measured(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    """On the rows that the recipe holds out, and the bundle stays a bundle."""
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    before = read_card(place)
    found = build_engines(place, candidates=GRAPHS, **QUICK)
    card = read_card(place)
    assert card.model_copy(update={"engines": ()}) == before
    assert [each.name for each in card.engines] == ["torch fp32", *GRAPHS]
    (chosen,) = [each for each in card.engines if each.chosen]
    assert chosen.name == max(found, key=lambda each: each.speed).name
    assert Engine.load(place).backend == chosen.name
    measured = {each.name: each.batch_tokens for each in found}
    assert set(measured.values()) <= set(throughput.CPU_BUDGETS)
    assert {name: Engine.load(place, name).batch_tokens for name in measured} == measured
    for entry in card.engines:
        assert entry.agreement == 1.0 and entry.rows == 48
        assert entry.metrics["accuracy"] == card.engines[0].metrics["accuracy"]
        assert set(entry.texts_per_second) == {"short", "long"}
        assert min(entry.texts_per_second.values()) > 0
        assert {
            name: digest for name, digest in hash_files(place).items() if name in entry.files
        } == (entry.files)
    assert AutoModelForSequenceClassification.from_pretrained(place)
    assert {path.name for path in place.iterdir() if path.is_dir()} == {"onnx", "openvino"}
    assert not list(place.glob(".*"))


@needs_graphs
def test_a_second_build_replaces_the_first(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    build_engines(place, candidates=GRAPHS, **QUICK)
    build_engines(place, candidates=["openvino fp32"], **QUICK)
    assert [each.name for each in read_card(place).engines] == ["torch fp32", "openvino fp32"]
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["openvino"]


@needs_graphs
def test_an_altered_engine_is_refused(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    build_engines(place, candidates=["openvino fp32"], **QUICK)
    (place / "openvino" / "model.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"openvino/model\.bin is not the file that was written"):
        Engine.load(place, "openvino fp32")
    assert Engine.load(place, "torch fp32").predict(TEXTS)
