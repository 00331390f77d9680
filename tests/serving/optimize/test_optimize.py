"""Building engines: each measured against torch fp32, the fastest faithful one answers."""

import json
from pathlib import Path

import pytest

from serving.__main__ import main
from serving.engine.backends.registry import ONNX_INT8
from serving.engine.engine import Engine
from serving.optimize.candidates import EngineCandidate
from serving.optimize.eval_texts import load_eval_rows
from serving.optimize.optimize import build_engines, format_table
from tests.support.engine_builds import GRAPHS, QUICK, needs_graphs
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.models import bundle
from trainers.models.card import CARD_FILE, BundleError, EngineRecord, ModelCard, read_card
from trainers.storage.atomic import hash_files

pytestmark = pytest.mark.slow


def test_a_linear_model_needs_no_other_engine(tmp_path: Path) -> None:
    place = write_linear_bundle(tmp_path / "bundle", weights=(2.0, -1.0))
    lines = tmp_path / "numbers.txt"
    lines.write_text("\n".join(f"{i} {i * i % 7}" for i in range(40)))
    card = read_card(place)
    rows = load_eval_rows(card, bundle.load_encoder(place, card), lines)
    found = build_engines(place, rows=rows, **QUICK)
    assert [each.name for each in found] == ["torch fp32"] and found[0].chosen
    assert Engine.load(place).predict(["3 1"])[0].scores == (5.0,)


def test_a_candidate_that_is_none_is_named(tmp_path: Path, tiny_bert: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    with pytest.raises(BundleError, match="no engine is called 'tensorrt'; there is torch fp32"):
        build_engines(place, candidates=["tensorrt"], **QUICK)


class TestCommand:
    def test_a_dry_run_says_what_would_be_measured(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
        before = hash_files(place)
        assert main(["build", str(place), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "classification, 48 texts to judge by and 192 to calibrate with" in said
        assert "  torch fp32: would be measured" in said
        assert hash_files(place) == before

    @needs_graphs
    def test_it_prints_a_line_a_candidate(
        self,
        tmp_path: Path,
        tiny_bert: Path,
        texts: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        only = [word for name in (*GRAPHS, ONNX_INT8) for word in ("--only", name)]
        words = [str(place), "--texts", str(texts), "--rounds", "1", *only]
        assert main(["build", *words]) == 0
        said = capsys.readouterr().out
        for name in ("torch fp32", *GRAPHS, ONNX_INT8):
            assert f"\n{name}" in said
        assert said.count("<- chosen") == 1


def test_the_table_shows_what_could_not_run() -> None:
    card = read_like(task="classification")
    absent = EngineCandidate("openvino bf16", reason="the processor has no fast bf16")
    assert format_table([absent], card).splitlines()[1].endswith("the processor has no fast bf16")


def read_like(task: str) -> ModelCard:
    return ModelCard(
        task=task,  # type: ignore[arg-type]
        labels=(),
        cleaning="none",
        max_length=8,
        metrics={},
        recipe={},
        data_fingerprint="",
        revision="",
        environment={},
    )


def test_a_card_keeps_its_engines(tmp_path: Path, tiny_bert: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    settings = json.loads((place / CARD_FILE).read_text())
    settings["engines"] = [
        {"name": "torch fp32", "agreement": 1.0, "max_logit_difference": 0.0, "rows": 9}
    ]
    (place / CARD_FILE).write_text(json.dumps(settings))
    assert read_card(place).engines == (
        EngineRecord(name="torch fp32", agreement=1.0, max_logit_difference=0.0, rows=9),
    )
