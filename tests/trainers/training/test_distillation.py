"""Distillation: fewer layers of a model learn from a teacher's answers, the same on any layout."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from cluster.settings import SettingsError
from cluster.spec import ClusterMetadata, ClusterSpec
from serving.engine.engine import Engine
from serving.interface import Prediction
from tests.support.padded import one_text
from tests.support.tiny import BAD, GOOD, PLAIN
from tests.support.tiny_bundle import LABELS, write_tiny_bundle
from tests.support.worker_processes import run_workers, worker_config
from trainers.config import recipe as recipes
from trainers.config import sections
from trainers.config.recipe import Recipe, Task
from trainers.data import prepare
from trainers.data.cleaning import CLEANINGS
from trainers.data.corpus import gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.models.build import build_model
from trainers.models.card import CARD_FILE, read_card
from trainers.models.config import ModelError
from trainers.planning.dry_run import describe_run
from trainers.planning.layout import resolve_shape
from trainers.runtime import fit
from trainers.runtime.worker import run_worker
from trainers.runtime.worker_config import WorkerConfig
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training import distillation
from trainers.training.distillation import TeacherError
from trainers.training.losses import distillation_losses, training_losses
from trainers.training.metrics import MetricAccumulator

SETTINGS = [
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "batch.global_size=13",
    "batch.max_length=32",
    "batch.token_budget=96",
    "optimizer.learning_rate=5e-3",
    "stopping.epochs=4",
    "data.test=0.2",
    "stopping.patience=null",
    "precision=fp32",
]
SHORT = ["stopping.max_steps=6", "evaluation.every_steps=3", "checkpoints.every_steps=2"]


def write_moods(path: Path, turned: bool = False) -> Path:
    """240 texts of three words of one mood among plain ones; turned: with the wrong labels."""
    draw, rows = random.Random(0), ["text,label"]
    for row in range(240):
        words = draw.choices((BAD, GOOD)[row % 2], k=3)
        words += draw.choices(PLAIN, k=draw.randint(2, 9))
        draw.shuffle(words)
        rows.append(f"{' '.join(words)},{('negative', 'positive')[(row + turned) % 2]}")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def moods(place: Path) -> Path:
    return write_moods(place / "moods.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def cache(place: Path) -> Path:
    return place / "cache"


@pytest.fixture(scope="module")
def teacher_bundle(place: Path, cache: Path, tiny_bert: Path, moods: Path) -> Path:
    """A teacher that has learned the moods."""
    recipe = recipes.load_recipe(
        "csv", [f"model.name={tiny_bert}", f"data.source={moods}", *SETTINGS]
    )
    trained(recipe, place / "teacher", cache)
    assert read_card(place / "teacher" / "bundle").metrics["accuracy"] > 0.9
    return place / "teacher" / "bundle"


@pytest.fixture(scope="module")
def settings(teacher_bundle: Path, tiny_bert: Path, moods: Path) -> list[str]:
    """A student of one layer of two."""
    student = [f"model.name={tiny_bert}", "model.layers=[1]", f"data.source={moods}"]
    return [*student, f"distillation.teacher={teacher_bundle}", *SETTINGS]


def trained(recipe: Recipe, run: Path, cache: Path) -> RunDirectory:
    run.mkdir(parents=True, exist_ok=True)
    assignment = worker_config(recipe, run, cache)
    run_worker(assignment)
    return assignment.run


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], place: Path, cache: Path) -> RunDirectory:
    return trained(recipes.load_recipe("csv", [*settings, *SHORT]), place / "undisturbed", cache)


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metric_rows("step")]


class TestLoss:
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_classification_is_the_divergence_of_softened_shares(self, temperature: float) -> None:
        student, told = torch.randn(5, 4), torch.randn(5, 4)
        found = distillation_losses("classification", student, told, temperature)
        shares = (
            torch.distributions.Categorical(logits=each / temperature) for each in (told, student)
        )
        expected = torch.distributions.kl_divergence(*shares) * temperature**2
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_multi_label_is_the_same_of_each_label(self, temperature: float) -> None:
        student, told = torch.randn(5, 4), torch.randn(5, 4)
        found = distillation_losses("multi-label", student, told, temperature)
        shares = (
            torch.distributions.Bernoulli(logits=each / temperature) for each in (told, student)
        )
        expected = torch.distributions.kl_divergence(*shares).mean(dim=1) * temperature**2
        torch.testing.assert_close(found, expected)

    def test_regression_is_the_squared_difference(self) -> None:
        found = distillation_losses("regression", torch.tensor([[3.0]]), torch.tensor([[1.0]]), 5.0)
        assert found.tolist() == [4.0]

    @pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
    def test_nothing_is_left_to_learn_where_both_say_the_same(self, task: Task) -> None:
        logits = torch.randn(6, 1 if task == "regression" else 3, requires_grad=True)
        found = distillation_losses(task, logits, logits.detach(), 2.0)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert found.abs().max() < 1e-6 and gradient.abs().max() < 1e-6

    def test_the_weight_is_the_share_of_the_teacher(self) -> None:
        changes = ["distillation.teacher=t", "distillation.temperature=2"]
        logits, targets, told = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
        of_labels = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        of_teacher = distillation_losses("classification", logits, told, 2.0)
        for weight in (0.25, 1.0):
            recipe = recipes.load_recipe("csv", [*changes, f"distillation.weight={weight}"])
            found = training_losses(recipe, logits, targets, told)
            torch.testing.assert_close(found, (1 - weight) * of_labels + weight * of_teacher)
        plain = training_losses(recipes.load_recipe("csv"), logits, targets, None)
        torch.testing.assert_close(plain, of_labels)


class TestRecipe:
    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["distillation.teacher=t", "task=masked-lm"], "masked-lm has no teacher; remove dist"),
            (["distillation.weight=0.5"], "distillation.teacher: missing; directory of the"),
            (["distillation={teacher: t, weight: 0}"], "weight = 0: .*greater than 0"),
            (["distillation={teacher: t, weight: 1.5}"], "weight = 1.5: .*less than or equal to 1"),
            (["distillation={teacher: t, temperature: 0}"], "temperature = 0: .*greater than 0"),
            (
                ["model.layers=[2, 0]"],
                r"layers = \[2, 0\]: .* in their order; write them so",
            ),
            (["model.layers=[-1, 2]"], r"layers = \[-1, 2\]: .* numbered from 0 and kept once"),
            (["model.layers=[]"], r"model.layers = \[\]: .*at least 1 item"),
            (["model.name=linear", "model.layers=[0]"], "but name is linear; remove layers, or"),
        ],
    )
    def test_a_wrong_setting_names_the_way_out(self, overrides: list[str], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            recipes.load_recipe("csv", overrides)

    def test_the_teacher_is_found_from_any_directory(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (place / "here").mkdir()
        monkeypatch.chdir(place)
        told = (
            recipes.load_recipe("csv", ["distillation.teacher=here"])
            .with_absolute_paths()
            .distillation
        )
        assert told is not None and told.teacher == str(place / "here")


CONFIGS: dict[str, Any] = {
    "bert": BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8),
    "roberta": RobertaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8),
    "electra": ElectraConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=8, embedding_size=4
    ),
    "distilbert": DistilBertConfig(dim=8, n_heads=2, hidden_dim=8),
}


class TestLayers:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_those_of_the_named_model_are_kept_and_load_in_transformers(
        self, family: str, tmp_path: Path, tiny_bert: Path
    ) -> None:
        config = CONFIGS[family]
        config.update({"vocab_size": 40, "max_position_embeddings": 64})
        config.num_hidden_layers = 4
        whole = AutoModelForSequenceClassification.from_config(config)
        whole.save_pretrained(tmp_path / "whole")
        named = [f"model.name={tmp_path / 'whole'}", f"model.tokenizer={tiny_bert}"]
        recipe = recipes.load_recipe("csv", [*named, "model.layers=[1, 3]", "batch.max_length=16"])
        student: Any = build_model(recipe, ("no", "yes"), 0).eval()
        before, after = whole.state_dict(), student.net.state_dict()
        layers = student.family.layers
        for ours, theirs in ((0, 1), (1, 3)):
            name = f"{student.family.encoder}.{layers}.{ours}."
            kept = [each for each in after if each.startswith(name)]
            assert len(kept) >= 16
            for each in kept:
                source = each.replace(f"{layers}.{ours}.", f"{layers}.{theirs}.")
                assert torch.equal(after[each], before[source]), each
        assert student.num_layers == 2
        assert resolve_shape(recipe, ("no", "yes"), 0, tmp_path).num_layers == 2
        student.save_pretrained(tmp_path / "student")
        assert AutoConfig.from_pretrained(tmp_path / "student").num_hidden_layers == 2
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
        ids = torch.tensor([[2, 7, 9, 11, 3]])
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, student(*one_text(ids)), atol=1e-6, rtol=1e-5
        )

    def test_a_layer_that_is_not_there_is_named(self, tiny_bert: Path) -> None:
        recipe = recipes.load_recipe("csv", [f"model.name={tiny_bert}", "model.layers=[0, 5]"])
        short = recipe.model_copy(update={"batch": sections.BatchConfig(max_length=32)})
        with pytest.raises(ModelError, match=r"layers = \[0, 5\]: .* has 2 layers; name some of 0"):
            build_model(short, ("no", "yes"), 0)


class TestTeacher:
    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["distillation.teacher=gone"], "teacher = 'gone': gone: no such directory; a train"),
            (["distillation.teacher={bert}"], f"no {CARD_FILE}; this is not a bundle"),
            (["task=regression", "data.label=n"], "its task is classification, but that of the re"),
            (["data.labels=[positive, negative]"], "negative, positive, but .* positive, negative"),
        ],
    )
    def test_one_that_cannot_teach_is_refused(
        self, settings: list[str], overrides: list[str], said: str, tiny_bert: Path
    ) -> None:
        changes = [each.format(bert=tiny_bert) for each in overrides]
        recipe = recipes.load_recipe("csv", [*settings, *changes])
        with pytest.raises(TeacherError, match=said):
            distillation.load_teacher(recipe, recipe.data.labels or ("negative", "positive"))

    @pytest.mark.parametrize("cleanings", [("none", "text-v1"), ("text-v1", "none")])
    def test_it_reads_the_raw_texts_as_it_does_when_it_serves(
        self, tmp_path: Path, tiny_bert: Path, cleanings: tuple[str, str]
    ) -> None:
        """With its own cleaning and max_length, whatever the student's are."""
        students, teachers = cleanings
        raw = [f"a {mood}<br />film {'the plot ' * (i % 9)}was" for i, mood in enumerate(MOODS)]
        rows = [f'"{text}",{["no", "yes"][i % 2]}' for i, text in enumerate(raw)]
        (tmp_path / "raw.csv").write_text("\n".join(["text,label", *rows]))
        place = write_tiny_bundle(tmp_path / "teacher", tiny_bert)
        card = json.loads((place / CARD_FILE).read_text())
        card |= {"cleaning": teachers, "labels": ["no", "yes"]}
        (place / CARD_FILE).write_text(json.dumps(card))
        changes = [f"model.name={tiny_bert}", f"data.source={tmp_path / 'raw.csv'}", *SETTINGS]
        changes += [f"distillation.teacher={place}", f"data.cleaning={students}"]
        recipe = recipes.load_recipe("csv", changes)
        prepared = distillation.attach_teacher_logits(
            recipe, prepare.prepare_dataset(recipe, tmp_path / "c"), tmp_path / "c"
        )
        encoder = prepare.load_recipe_encoder(recipe)
        answers = Engine.load(place, "torch fp32").predict(raw)
        told = {
            encoder.encode([encoder.clean(text)])[0].values.tobytes(): answer.logits
            for text, answer in zip(raw, answers, strict=True)
        }
        for split in (prepared.train, prepared.test):
            assert split.teacher is not None and len(split.teacher) == len(split) > 0
            for row, logits in enumerate(split.teacher):
                ids = split.samples[row]
                np.testing.assert_allclose(logits, told[ids.tobytes()], atol=1e-5)

    def test_it_is_asked_once_for_each_data_and_teacher(
        self, settings: list[str], teacher_bundle: Path, cache: Path, tmp_path: Path
    ) -> None:
        asked: list[tuple[int, int]] = []

        def told(*changes: str) -> PreparedDataset:
            recipe = recipes.load_recipe("csv", [*settings, *changes])
            prepared = prepare.prepare_dataset(recipe, tmp_path)
            return distillation.attach_teacher_logits(
                recipe, prepared, tmp_path, lambda *done: asked.append(done)
            )

        first = told()
        assert asked[-1] == (len(first.train) + len(first.test),) * 2
        asked.clear()
        again = told("optimizer.learning_rate=1e-3", "distillation.temperature=9")
        assert asked == [] and again.teacher == first.teacher
        assert first.train.teacher is not None and again.train.teacher is not None
        np.testing.assert_array_equal(first.train.teacher, again.train.teacher)
        told("batch.max_length=20")
        assert asked, "of other data"
        asked.clear()
        other = tmp_path / "other"
        shutil.copytree(teacher_bundle, other)
        (other / CARD_FILE).write_text((other / CARD_FILE).read_text().replace("text-v1", "none"))
        assert told(f"distillation.teacher={other}").teacher != first.teacher
        assert asked, "of another teacher"

    @pytest.mark.parametrize("name", ["train.npy", "teacher.json"])
    def test_answers_that_were_damaged_are_asked_for_again(
        self, settings: list[str], cache: Path, name: str
    ) -> None:
        recipe = recipes.load_recipe("csv", settings)
        prepared = prepare.prepare_dataset(recipe, cache)
        before = distillation.attach_teacher_logits(recipe, prepared, cache).train.teacher
        assert before is not None
        expected = before.copy()
        for path in cache.glob(f"*/{name}"):
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
        found = distillation.attach_teacher_logits(recipe, prepared, cache).train.teacher
        np.testing.assert_array_equal(found, expected)  # type: ignore[arg-type]

    def test_no_row_to_compare_on_is_no_hindrance(self, settings: list[str], cache: Path) -> None:
        recipe = recipes.load_recipe("csv", [*settings, "data.test=0"])
        prepared = distillation.attach_teacher_logits(
            recipe, prepare.prepare_dataset(recipe, cache), cache
        )
        assert prepared.test.teacher is not None and prepared.test.teacher.shape == (0, 2)


MOODS = ["good", "bad", "warm", "dull", "funny", "grim", "lovely", "poor"] * 5


class TestRun:
    def test_the_student_learns_what_the_teacher_says_and_not_what_the_labels_say(
        self, settings: list[str], tmp_path: Path, cache: Path
    ) -> None:
        """Where all labels are wrong, and the teacher's share of the loss is the whole."""
        source = write_moods(tmp_path / "turned.csv", turned=True)
        changes = [f"data.source={source}", "distillation.weight=1", "data.validation=0"]
        run = trained(recipes.load_recipe("csv", [*settings, *changes]), tmp_path / "run", cache)
        result = run.read_result()
        assert result is not None
        assert result["test"]["teacher_agreement"] > 0.9 > 0.1 > result["test"]["accuracy"]

    def test_agreement_is_counted_on_the_test_rows(
        self, undisturbed: RunDirectory, settings: list[str], teacher_bundle: Path
    ) -> None:
        card = read_card(undisturbed.bundle_path)
        result = undisturbed.read_result()
        assert result is not None and result["test"] == card.metrics
        student, told = (
            Engine.load(bundle, "torch fp32")
            for bundle in (undisturbed.bundle_path, teacher_bundle)
        )
        texts = (
            gather_corpus(recipes.load_recipe("csv", settings), CLEANINGS["none"])
            .splits["test"]
            .texts
        )
        pairs = zip(student.predict(texts), told.predict(texts), strict=True)
        same = [likeliest(one) == likeliest(other) for one, other in pairs]
        assert card.metrics["teacher_agreement"] == pytest.approx(sum(same) / len(same))
        assert "teacher_agreement" not in next(undisturbed.metric_rows("evaluation"))["metrics"]

    def test_it_leaves_a_smaller_bundle_and_says_who_taught(
        self, undisturbed: RunDirectory, teacher_bundle: Path
    ) -> None:
        loaded = AutoModelForSequenceClassification.from_pretrained(undisturbed.bundle_path)
        assert loaded.config.num_hidden_layers == 1
        recipe = recipes.parse_recipe(read_card(undisturbed.bundle_path).recipe)
        assert recipe.distillation is not None
        assert recipe.distillation.teacher == str(teacher_bundle)
        assert len(undisturbed.read_record()["teacher"]) == 64

    def test_the_token_budget_changes_no_loss(
        self, undisturbed: RunDirectory, settings: list[str], tmp_path: Path, cache: Path
    ) -> None:
        changes = [*settings, *SHORT, "batch.token_budget=32"]
        found = trained(recipes.load_recipe("csv", changes), tmp_path, cache)
        assert losses(found) == pytest.approx(losses(undisturbed), abs=2e-5)

    def test_it_goes_on_as_if_it_had_not_been_stopped(
        self, undisturbed: RunDirectory, settings: list[str], tmp_path: Path, cache: Path
    ) -> None:
        class Left(Exception):
            pass

        def leave(metrics: Mapping[str, float]) -> None:
            raise Left

        recipe = recipes.load_recipe("csv", [*settings, *SHORT])
        assignment: WorkerConfig = worker_config(recipe, tmp_path, cache)
        with pytest.raises(Left):
            run_worker(assignment, leave)
        assert not (tmp_path / "result.json").exists()
        run_worker(assignment)
        assert losses(assignment.run) == losses(undisturbed)

    def test_another_teacher_is_refused_when_it_goes_on(
        self, settings: list[str], tmp_path: Path, cache: Path
    ) -> None:
        recipe = recipes.load_recipe("csv", [*settings, *SHORT]).with_absolute_paths()
        run = RunDirectory(tmp_path)
        run.acquire(recipe, resume=False)
        run.record_path.write_text(json.dumps({"teacher": "0" * 64}))
        here = ClusterSpec(
            "here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(cache))
        )
        with pytest.raises(RunError, match=r"distillation.teacher = .* is not the bundle it began"):
            fit.fit(recipe, here, tmp_path, resume=True)

    def test_a_dry_run_says_what_is_distilled_from_what(
        self, settings: list[str], teacher_bundle: Path, cache: Path
    ) -> None:
        here = ClusterSpec(
            "here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(cache))
        )
        said = "\n".join(describe_run(recipes.load_recipe("csv", settings), here))
        assert ": 1 layers, 32 wide, 0.0 M parameters; layers 1 of it\n" in said
        assert f"teacher   {teacher_bundle}: 2 layers, 32 wide" in said
        assert "its answers are 50% of the loss, at temperature 2" in said

    @pytest.mark.multiprocess
    @pytest.mark.parametrize(
        "degrees", [{"dp_replicate": 2}, {"dp_shard": 2}, {"tp": 2}, {"pp": 2}], ids=str
    )
    def test_two_processes_end_with_the_losses_of_one(
        self,
        settings: list[str],
        place: Path,
        tmp_path: Path,
        cache: Path,
        degrees: dict[str, int],
        tiny_bert: Path,
    ) -> None:
        """Two layers, so that a pipeline has one for each rank; the receipt is taken, too."""
        recipe = recipes.load_recipe("csv", [*settings, *SHORT, "model.layers=[0, 1]"])
        alone = place / "alone"
        if not alone.exists():
            trained(recipe, alone, cache)
        together = worker_config(recipe, tmp_path, cache, **degrees)
        run_workers([(together, None)], size=2)
        assert losses(together.run) == pytest.approx(losses(RunDirectory(alone)), abs=2e-5)
        found, expected = together.run.read_result(), RunDirectory(alone).read_result()
        assert found is not None and expected is not None
        agreed = expected["test"]["teacher_agreement"]
        assert found["test"]["teacher_agreement"] == pytest.approx(agreed)
        assert together.run.read_record()["parity"]["loss"] < 1e-5


def likeliest(answer: Prediction) -> int:
    return int(np.argmax(answer.logits))


@pytest.mark.parametrize(
    ("task", "logits", "told", "deviation", "share"),
    [
        ("classification", [[1.0, 2], [3, 0]], [[1, 1.5], [0, 3]], 0.0, 0.5),
        ("multi-label", [[1.0, -2], [3, 4]], [[9, -1], [3, -0.1]], 0.0, 0.5),
        ("regression", [[10.0], [20]], [[10.019], [20.021]], 2.0, 0.5),
    ],
)
def test_agreement_adds_up_by_task(
    task: Task, logits: list[list[float]], told: list[list[float]], deviation: float, share: float
) -> None:
    labels = LABELS[task][: len(logits[0])]
    tally = MetricAccumulator(task, len(logits[0]))
    targets = {"classification": torch.tensor([0]), "regression": torch.tensor([1.0])}
    for ours, theirs in zip(logits, told, strict=True):
        tally.add_batch(torch.tensor([ours]), targets.get(task, torch.zeros(1, len(ours))))
        tally.add_agreement(torch.tensor([ours]), torch.tensor([theirs]), deviation)
    assert tally.compute_metrics(labels)["teacher_agreement"] == share
