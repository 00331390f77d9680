"""Building engines: each measured against torch fp32, the fastest faithful one answers."""

import json
import shutil
from dataclasses import replace
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
from serving.engine import networks
from serving.engine.backends.registry import KINDS, ONNX_INT8, OPENVINO_INT8, REFERENCE, STUDENT
from serving.engine.engine import Engine, split
from serving.engine.packed import Packed
from serving.optimize import agreement, gptq, layer_sensitivity, smoothquant, throughput
from serving.optimize import optimize as build
from serving.optimize.calibration import Seen, inputs_of
from serving.optimize.candidates import Candidate
from serving.optimize.eval_texts import TextsError, rows_of
from serving.optimize.int8 import Int8
from tests.support.tiny_bundle import LABELS, write_linear_bundle, write_tiny_bundle
from trainers.config.recipe import parse
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.build import build as make_model
from trainers.models.card import CARD, Built, BundleError, read
from trainers.storage.atomic import digests

pytestmark = pytest.mark.slow

GRAPHS = ["onnxruntime fp32", "openvino fp32"]
TEXTS = ["a warm funny film", "dull", "the plot is thin but the cast is good " * 3]
QUICK = {"rounds": 1, "seconds": 0.01, "tell": lambda line: None}

needs_graphs = pytest.mark.skipif(
    any(KINDS[name].lacking(to_make=True) for name in [*GRAPHS, ONNX_INT8]),
    reason="the engines extra is not installed",
)


@pytest.fixture
def texts(tmp_path: Path, corpus: Path) -> Path:
    """A file of texts, one a line."""
    lines = [line.rpartition(",")[0] for line in corpus.read_text().splitlines()[1:]]
    lines = [line.replace("film", "[MASK]", 1) for line in lines]
    place = tmp_path / "texts.txt"
    place.write_text("\n".join(lines))
    return place


@needs_graphs
@pytest.mark.parametrize("task", LABELS)
def test_graphs_answer_as_torch_does(
    task: str, tmp_path: Path, tiny_bert: Path, texts: Path
) -> None:
    """For any batch and any length, with and without padding."""
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task)
    card = read(place)
    rows = rows_of(card, bundle.load_encoder(place, card), texts)
    found = build.build(place, candidates=GRAPHS, rows=rows, **QUICK)
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
    before = read(place)
    found = build.build(place, candidates=GRAPHS, **QUICK)
    card = read(place)
    assert card.model_copy(update={"engines": ()}) == before
    assert [each.name for each in card.engines] == ["torch fp32", *GRAPHS]
    (chosen,) = [each for each in card.engines if each.chosen]
    assert chosen.name == max(found, key=lambda each: each.speed).name
    assert Engine.load(place).backend == chosen.name
    measured = {each.name: each.batch_tokens for each in found}
    assert set(measured.values()) <= set(throughput.BUDGETS)
    assert {name: Engine.load(place, name).batch_tokens for name in measured} == measured
    for entry in card.engines:
        assert entry.agreement == 1.0 and entry.rows == 50
        assert entry.metrics["accuracy"] == card.engines[0].metrics["accuracy"]
        assert set(entry.texts_per_second) == {"short", "long"}
        assert min(entry.texts_per_second.values()) > 0
        assert {name: digest for name, digest in digests(place).items() if name in entry.files} == (
            entry.files
        )
    assert AutoModelForSequenceClassification.from_pretrained(place)
    assert {path.name for path in place.iterdir() if path.is_dir()} == {"onnx", "openvino"}
    assert not list(place.glob(".*"))


@needs_graphs
def test_a_second_build_replaces_the_first(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    build.build(place, candidates=GRAPHS, **QUICK)
    build.build(place, candidates=["openvino fp32"], **QUICK)
    assert [each.name for each in read(place).engines] == ["torch fp32", "openvino fp32"]
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["openvino"]


@needs_graphs
@pytest.mark.parametrize("kind", [ONNX_INT8, OPENVINO_INT8])
def test_int8_is_calibrated_and_judged(
    tmp_path: Path, tiny_bert: Path, corpus: Path, kind: str
) -> None:
    if KINDS[kind].lacking(to_make=True):
        pytest.skip(str(KINDS[kind].lacking(to_make=True)))
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    found = build.build(place, candidates=[kind], threshold=1.01, **QUICK)
    assert found[1].reason == "refused: under 101.0%" and not found[1].chosen
    assert len(found[1].trials) > 2, "every way was tried"
    best = max(trial["agreement"] for trial in found[1].trials)
    assert found[1].agreement == best > 0.5
    with pytest.raises(BundleError, match=r"int8' was refused at .*--allow"):
        Engine.load(place, kind)
    found = build.build(place, candidates=[kind], threshold=1.01, allow=[kind], **QUICK)
    assert found[1].reason == ""
    assert Engine.load(place, kind).predict(TEXTS)
    found = build.build(place, candidates=[kind], threshold=0.5, **QUICK)
    assert len(found[1].trials) == 1, "the first that is faithful is kept"


@needs_graphs
def test_an_altered_engine_is_refused(tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    build.build(place, candidates=["openvino fp32"], **QUICK)
    (place / "openvino" / "model.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"openvino/model\.bin is not the file that was written"):
        Engine.load(place, "openvino fp32")
    assert Engine.load(place, "torch fp32").predict(TEXTS)


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
        made = parse({"model": names, "data": {"source": "x"}, "batch": {"max_length": 16}})
        model = make_model(made, LABELS["classification"], 0)
        card = read(write_tiny_bundle(tmp_path / "like", tiny_bert))
        encoder = load_encoder(str(tiny_bert), card.cleaning, card.max_length)
        bundle.write(tmp_path / "student", model, model.state_dict().items(), encoder, card)
        return tmp_path / "student"

    def test_it_is_refused_until_it_is_allowed(self, place: Path, student: Path) -> None:
        quick = QUICK | {"candidates": [REFERENCE], "student": student, "threshold": 1.01}
        found = build.build(place, **quick)
        assert [each.name for each in found] == [REFERENCE, STUDENT]
        assert found[0].chosen and found[1].reason == "refused: under 101.0%"
        with pytest.raises(BundleError, match=r"'student fp32' was refused at .*--allow"):
            Engine.load(place, STUDENT)
        assert not (place / "student").exists()
        (_, entry) = build.build(place, **quick, allow=[STUDENT])
        assert entry.reason == ""
        engine, alone, teacher = (Engine.load(place, STUDENT), *map(Engine.load, (student, place)))
        assert engine.backend == STUDENT and engine.num_bytes == alone.num_bytes
        for ours, theirs in zip(engine.predict(TEXTS), alone.predict(TEXTS), strict=True):
            np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)
        card = read(place)
        rows = rows_of(card, bundle.load_encoder(place, card))
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
        build.build(place, student=student, **quick)
        assert (place / "student").is_dir()
        (place / "student" / "model.safetensors").write_bytes(b"")
        with pytest.raises(BundleError, match=r"student/model\.safetensors is not the file"):
            Engine.load(place, STUDENT)
        build.build(place, **quick)
        assert not (place / "student").exists()
        assert [each.name for each in read(place).engines] == [REFERENCE]

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
        settings = json.loads((student / CARD).read_text()) | {key: value}
        (student / CARD).write_text(json.dumps(settings))
        with pytest.raises(BundleError, match=f"--student .*: its {key} is .* that of the bundle"):
            build.build(place, student=student, **QUICK)

    def test_another_tokenizer_is_refused(
        self, place: Path, tmp_path: Path, tiny_bert: Path
    ) -> None:
        shutil.copytree(tiny_bert, tmp_path / "bert")
        words = AutoTokenizer.from_pretrained(tiny_bert).get_vocab()
        words["good"], words["bad"] = words["bad"], words["good"]
        BertTokenizerFast(vocab=words).save_pretrained(tmp_path / "bert")
        other = write_tiny_bundle(tmp_path / "other", tmp_path / "bert", layers=[0])
        with pytest.raises(BundleError, match="its tokenizer is not that of the bundle; train"):
            build.build(place, student=other, **QUICK)

    def test_a_task_without_students_and_a_student_without_a_name_are_refused(
        self, place: Path, tmp_path: Path, tiny_bert: Path
    ) -> None:
        words = write_tiny_bundle(tmp_path / "words", tiny_bert, "masked-lm")
        with pytest.raises(BundleError, match="is for masked-lm, which has no students"):
            build.build(words, student=words, **QUICK)
        with pytest.raises(BundleError, match="of another bundle; name it with --student BUNDLE"):
            build.build(place, candidates=[STUDENT], **QUICK)

    def test_the_command_takes_one(
        self, place: Path, student: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["build", str(place), "--student", str(student), "--only", REFERENCE]
        assert main([*words, "--dry-run"]) == 0
        assert "  student fp32: would be measured" in capsys.readouterr().out
        assert main([*words, "--rounds", "1", "--allow", STUDENT]) == 0
        assert "\nstudent fp32" in capsys.readouterr().out


def test_a_linear_model_needs_no_other_engine(tmp_path: Path) -> None:
    place = write_linear_bundle(tmp_path / "bundle", weights=(2.0, -1.0))
    lines = tmp_path / "numbers.txt"
    lines.write_text("\n".join(f"{i} {i * i % 7}" for i in range(40)))
    card = read(place)
    rows = rows_of(card, bundle.load_encoder(place, card), lines)
    found = build.build(place, rows=rows, **QUICK)
    assert [each.name for each in found] == ["torch fp32"] and found[0].chosen
    assert Engine.load(place).predict(["3 1"])[0].scores == (5.0,)


def test_a_candidate_that_is_none_is_named(tmp_path: Path, tiny_bert: Path) -> None:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    with pytest.raises(BundleError, match="no engine is called 'tensorrt'; there is torch fp32"):
        build.build(place, candidates=["tensorrt"], **QUICK)


class TestTexts:
    @pytest.mark.parametrize("task", ["classification", "embedding"])
    def test_where_there_are_none_both_ways_out_are_named(
        self, task: str, tmp_path: Path, tiny_bert: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task, source="gone.csv")
        card = read(place)
        with pytest.raises(TextsError, match=r"make the recipe's data readable here, or .*--texts"):
            rows_of(card, bundle.load_encoder(place, card))

    def test_rows_of_the_recipe_are_those_held_out(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
        card = read(place)
        rows = rows_of(card, bundle.load_encoder(place, card))
        assert rows.targets is not None and len(rows.targets) == len(rows.held_out) == 50
        assert len(rows.calibration) == 190
        held_out = {row.tobytes() for row in split(rows.held_out)}
        assert not held_out & {row.tobytes() for row in split(rows.calibration)}

    def test_a_file_is_lines_or_a_table(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path, texts: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        card = read(place)
        encoder = bundle.load_encoder(place, card)
        for source in (corpus, texts):
            rows = rows_of(card, encoder, source)
            assert rows.targets is None
            assert len(rows.held_out) > 2 * len(rows.calibration) > 50
            assert len(rows.held_out) + len(rows.calibration) == 240

    def test_a_file_that_says_nothing_is_refused(self, tmp_path: Path, tiny_bert: Path) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        (tmp_path / "empty.txt").write_text("\n\n")
        card = read(place)
        encoder = bundle.load_encoder(place, card)
        with pytest.raises(TextsError, match="too few texts"):
            rows_of(card, encoder, tmp_path / "empty.txt")
        with pytest.raises(TextsError, match=r"nowhere\.txt"):
            rows_of(card, encoder, tmp_path / "nowhere.txt")


class TestCommand:
    def test_a_dry_run_says_what_would_be_measured(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
        before = digests(place)
        assert main(["build", str(place), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "classification, 50 texts to judge by and 190 to calibrate with" in said
        assert "  torch fp32: would be measured" in said
        assert digests(place) == before

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


class TestAgreement:
    @pytest.mark.parametrize(
        ("task", "reference", "outputs", "expected"),
        [
            ("classification", [[1, 2], [3, 0]], [[1, 1.5], [0, 3]], [True, False]),
            ("multi-label", [[1, -2], [3, 4]], [[9, -1], [3, -0.1]], [True, False]),
            ("regression", [[10], [20]], [[10.019], [20.021]], [True, False]),
            ("embedding", [[1, 0], [1, 0]], [[0.9999, 0.01], [0.99, 0.14]], [True, False]),
            ("masked-lm", [[1, 2, 0], [3, 0, 1]], [[0, 9, 8], [1, 2, 0]], [True, False]),
        ],
    )
    def test_what_agrees(
        self,
        task: str,
        reference: list[list[float]],
        outputs: list[list[float]],
        expected: list[bool],
    ) -> None:
        found = agreement.agreeing(task, np.array(reference), np.array(outputs), deviation=2.0)
        assert found.tolist() == expected

    def test_a_regression_is_judged_by_its_targets(self) -> None:
        reference, targets = np.array([[0.0], [2.0]]), np.array([0.0, 20.0])
        assert agreement.deviation_of(reference, targets) == 10.0
        assert agreement.deviation_of(reference, None) == 1.0


class TestInt8:
    """Layers in int8, apart from any graph."""

    @pytest.fixture
    def layer(self) -> tuple[np.ndarray, Seen]:
        """A weight, and inputs with channels far from zero and one with outliers."""
        draw = np.random.default_rng(0)
        inputs = draw.normal(size=(4000, 8)) @ draw.normal(size=(8, 64))  # 8 things vary, not 64
        inputs[:, :8] += 20
        inputs[::20, 30] += 100
        seen = Seen.of(inputs.astype(np.float32), 4000)
        return draw.normal(size=(64, 32)).astype(np.float32), seen

    def test_rounding_spreads_an_outlier_over_the_weights(
        self, layer: tuple[np.ndarray, Seen]
    ) -> None:
        weight, seen = layer
        found = smoothquant.best(seen, [weight], 127)
        step = (seen.high.max() - seen.low.min()) / 255
        plain = np.rint(seen.sample / step) * step @ weight - seen.sample @ weight
        levels, scale = smoothquant.nearest(weight, found, 127)
        ours = smoothquant.error(weight, found, (levels, scale), seen.sample)
        assert levels.dtype == np.int8 and np.abs(levels).max() == 127
        assert smoothquant.spread(ours) < 0.1 * smoothquant.spread(plain)

    def test_channels_far_from_zero_are_moved(self, layer: tuple[np.ndarray, Seen]) -> None:
        weight, seen = layer
        found = smoothquant.best(seen, [weight], 127)
        unmoved = replace(found, shift=np.zeros_like(found.shift))
        assert np.abs(found.inputs(seen.sample)).max() < np.abs(seen.sample * found.factor).max()
        assert np.abs(unmoved.inputs(seen.sample)).max() == found.inputs(seen.sample).max(), "cut"

    def test_errors_of_weights_make_up_for_one_another(
        self, layer: tuple[np.ndarray, Seen]
    ) -> None:
        weight, seen = layer
        found = smoothquant.best(seen, [weight], 15)
        made, judged = seen.sample[:2000], seen.sample[2000:]
        plain = smoothquant.nearest(weight, found, 15)
        better = gptq.compensated(weight, found, made, 15)
        errors = [smoothquant.error(weight, found, each, judged) for each in (plain, better)]
        assert smoothquant.spread(errors[1]) < 0.5 * smoothquant.spread(errors[0])
        (product,) = gptq.products([weight], seen, 15)
        difference = product.outputs(seen.sample) - seen.sample @ weight
        assert np.abs(difference.mean(axis=0)).max() < 1e-3, "the mean is made up for"

    def test_the_inputs_of_layers_are_seen_and_shared(
        self, tmp_path: Path, tiny_bert: Path
    ) -> None:
        network, batches, names = self.network(tmp_path, tiny_bert)
        found = inputs_of(network, names, batches)
        assert sorted(name for sharing, _ in found for name in sharing) == sorted(names)
        sharing = [[name.rpartition(".")[2] for name in group] for group, _ in found]
        assert sharing[0] == ["query", "key", "value"] and ["query"] in sharing, "of [CLS] alone"
        assert all(seen.sample.shape[1] == len(seen.low) for _, seen in found)

    def test_the_layer_that_rounding_hurts_comes_first(
        self, tmp_path: Path, tiny_bert: Path
    ) -> None:
        network, batches, _ = self.network(tmp_path, tiny_bert)
        products = Int8.of(network, batches, 127).products
        hurt = "net.bert.encoder.layer.0.output.dense"
        coarse = replace(products[hurt], rounding=replace(products[hurt].rounding, scale=8.0))
        names = layer_sensitivity.ranked(network, batches, products | {hurt: coarse})
        assert names[0] == hurt and set(names) == set(products)

    def test_from_all_layers_to_half_of_them(self, tmp_path: Path, tiny_bert: Path) -> None:
        network, batches, names = self.network(tmp_path, tiny_bert)
        ways = list(Int8.of(network, batches, 127).ways())
        assert [len(products) for _, products in ways][:: len(ways) - 1] == [
            len(names),
            len(names) // 2,
        ]

    def network(
        self, tmp_path: Path, tiny_bert: Path
    ) -> tuple[torch.nn.Module, list[Packed], list[str]]:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        network, engine = networks.load(place, read(place)), Engine.load(place)
        batches = [engine.packed([row]) for row in split(engine.encode(TEXTS)[0])]
        names = [n for n, m in network.named_modules() if is_linear(m) and "encoder" in n]
        return network, batches, names


def is_linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear


class TestSpeed:
    def test_short_and_long_texts_fill_what_is_computed_at_once(self) -> None:
        rows = [np.arange(length, dtype=np.int32) for length in range(3, 90)]
        work = throughput.workload(rows, 256, max_length=128)
        assert [[len(row) for row in batch] for batch in work["long"]] == [[128, 128]] * 2
        assert max(len(row) for batch in work["short"] for row in batch) == throughput.SHORT
        assert sum(map(len, work["short"])) == throughput.NUM_SHORT
        filled = [sum(map(len, batch)) for batch in work["short"]]
        assert max(filled) <= 256 < min(filled[:-1]) + throughput.SHORT

    def test_the_median_of_turns(self) -> None:
        work = {"short": [[np.zeros(3, dtype=np.int32)]]}
        slow = torch.nn.Linear(2000, 2000)
        found = throughput.interleaved(
            {
                ("slow", 64): (lambda rows: slow(torch.zeros(64, 2000)), work),
                ("fast", 64): (lambda rows: None, work),
            },
            rounds=3,
            seconds=0.01,
        )
        assert found["fast", 64]["short"] > found["slow", 64]["short"] > 0

    def test_a_candidate_takes_at_once_what_is_fastest(self) -> None:
        found = Candidate("torch fp32")
        for budget, short in ((64, 100.0), (128, 120.0), (256, 90.0)):
            found.offer(budget, {"short": short, "long": 10.0})
        assert found.batch_tokens == 128 and found.texts_per_second["short"] == 120


def test_the_table_shows_what_could_not_run() -> None:
    card = read_like(task="classification")
    absent = Candidate("openvino bf16", reason="the processor has no fast bf16")
    assert build.table([absent], card).splitlines()[1].endswith("the processor has no fast bf16")


def read_like(task: str) -> "build.Card":
    return build.Card(
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
    settings = json.loads((place / CARD).read_text())
    settings["engines"] = [
        {"name": "torch fp32", "agreement": 1.0, "max_logit_difference": 0.0, "rows": 9}
    ]
    (place / CARD).write_text(json.dumps(settings))
    assert read(place).engines == (
        Built(name="torch fp32", agreement=1.0, max_logit_difference=0.0, rows=9),
    )
