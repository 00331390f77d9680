"""A distilled student as an engine of its teacher's bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    RobertaConfig,
)

from serving.__main__ import main
from serving.engine.backends.registry import REFERENCE, STUDENT
from serving.engine.engine import Engine
from serving.optimize.eval_texts import load_eval_rows
from serving.optimize.optimize import build_engines
from tests.support.engine_builds import QUICK, TEXTS
from tests.support.tiny_bundle import LABELS, write_tiny_bundle
from trainers.config.recipe import parse_recipe
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.build import build_model as make_model
from trainers.models.card import CARD_FILE, BundleError, read_card

pytestmark = pytest.mark.slow


class TestStudent:
    """A distilled model in its teacher's bundle."""

    @pytest.fixture
    def place(self, tmp_path: Path, tiny_bert: Path, corpus: Path) -> Path:
        return write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))

    @pytest.fixture
    def student(self, tmp_path: Path, tiny_bert: Path) -> Path:
        """Of another family, which counts positions in its own way."""
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        config = RobertaConfig(**sizes, vocab_size=40, num_hidden_layers=1, initializer_range=1.0)
        config.update({"max_position_embeddings": 64, "num_labels": 2})
        torch.manual_seed(1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "roberta")
        names = {"name": str(tmp_path / "roberta"), "tokenizer": str(tiny_bert)}
        made = parse_recipe({"model": names, "data": {"source": "x"}, "batch": {"max_length": 16}})
        model = make_model(made, LABELS["classification"], 0)
        card = read_card(write_tiny_bundle(tmp_path / "like", tiny_bert))
        encoder = load_encoder(str(tiny_bert), card.cleaning, card.max_length)
        bundle.write_bundle(tmp_path / "student", model, model.state_dict().items(), encoder, card)
        return tmp_path / "student"

    def test_it_is_refused_until_it_is_allowed(self, place: Path, student: Path) -> None:
        quick = QUICK | {"candidates": [REFERENCE], "student": student, "threshold": 1.01}
        found = build_engines(place, **quick)
        assert [each.name for each in found] == [REFERENCE, STUDENT]
        assert found[0].chosen and found[1].reason == "refused: under 101.0%"
        with pytest.raises(BundleError, match=r"'student fp32' was refused at .*--allow"):
            Engine.load(place, STUDENT)
        assert not (place / "student").exists()
        (_, entry) = build_engines(place, **quick, allow=[STUDENT])
        assert entry.reason == ""
        engine, alone, teacher = (Engine.load(place, STUDENT), *map(Engine.load, (student, place)))
        assert engine.backend == STUDENT and engine.num_bytes == alone.num_bytes
        for ours, theirs in zip(engine.predict(TEXTS), alone.predict(TEXTS), strict=True):
            np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)
        card = read_card(place)
        rows = load_eval_rows(card, bundle.load_encoder(place, card))
        told, found_ = (
            np.array([value.logits for value in each.infer(rows.held_out)])
            for each in (Engine.load(place, REFERENCE), engine)
        )
        same = (told.argmax(axis=1) == found_.argmax(axis=1)).mean()
        assert card.engines[1].agreement == entry.agreement == pytest.approx(same)
        assert set(card.engines[1].files) == {"student/config.json", "student/model.safetensors"}
        assert card.engines[1].metrics["accuracy"] > 0 and teacher.card == card

    def test_a_build_without_it_forgets_it(self, place: Path, student: Path) -> None:
        quick = QUICK | {"candidates": [REFERENCE], "allow": [STUDENT]}
        build_engines(place, student=student, **quick)
        assert (place / "student").is_dir()
        (place / "student" / "model.safetensors").write_bytes(b"")
        with pytest.raises(BundleError, match=r"student/model\.safetensors is not the file"):
            Engine.load(place, STUDENT)
        build_engines(place, **quick)
        assert not (place / "student").exists()
        assert [each.name for each in read_card(place).engines] == [REFERENCE]

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("task", "multi-label"),
            ("labels", ["positive", "negative"]),
            ("cleaning", "none"),
            ("max_length", 12),
        ],
    )
    def test_one_that_reads_or_answers_otherwise_is_refused(
        self, place: Path, student: Path, key: str, value: object
    ) -> None:
        settings = json.loads((student / CARD_FILE).read_text()) | {key: value}
        (student / CARD_FILE).write_text(json.dumps(settings))
        with pytest.raises(BundleError, match=f"--student .*: its {key} is .* that of the bundle"):
            build_engines(place, student=student, **QUICK)

    def test_another_tokenizer_is_refused(
        self, place: Path, tmp_path: Path, tiny_bert: Path
    ) -> None:
        shutil.copytree(tiny_bert, tmp_path / "bert")
        words = AutoTokenizer.from_pretrained(tiny_bert).get_vocab()
        words["good"], words["bad"] = words["bad"], words["good"]
        BertTokenizerFast(vocab=words).save_pretrained(tmp_path / "bert")
        other = write_tiny_bundle(tmp_path / "other", tmp_path / "bert", layers=[0])
        with pytest.raises(BundleError, match="its tokenizer is not that of the bundle; train"):
            build_engines(place, student=other, **QUICK)

    def test_a_task_without_students_and_a_student_without_a_name_are_refused(
        self, place: Path, tmp_path: Path, tiny_bert: Path
    ) -> None:
        words = write_tiny_bundle(tmp_path / "words", tiny_bert, "masked-lm")
        with pytest.raises(BundleError, match="is for masked-lm, which has no students"):
            build_engines(words, student=words, **QUICK)
        with pytest.raises(BundleError, match="of another bundle; name it with --student BUNDLE"):
            build_engines(place, candidates=[STUDENT], **QUICK)

    def test_the_command_takes_one(
        self, place: Path, student: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["build", str(place), "--student", str(student), "--only", REFERENCE]
        assert main([*words, "--dry-run"]) == 0
        assert "  student fp32: would be measured" in capsys.readouterr().out
        assert main([*words, "--rounds", "1", "--allow", STUDENT]) == 0
        assert "\nstudent fp32" in capsys.readouterr().out
