"""Training on windows: a text counts once, whatever its windows, its cut and its layout."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from cluster.costmodel.layout import Layout
from tests.support.layouts import Job, full_weights, make_loop, run_alone, run_layouts
from tests.support.tiny import BAD, GOOD, PLAIN
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.config.windows import Pool, WindowsConfig
from trainers.data.dataset_cache import DatasetSplit
from trainers.data.microbatch import MicroBatch, epoch_order
from trainers.data.tokenizer import load_encoder
from trainers.distributed.transfer import Transfer
from trainers.models.build import load_model, predict_logits
from trainers.training.collator import Collator
from trainers.training.events import EvalEvent, StepEvent
from trainers.training.linear_probe import compute_features
from trainers.training.losses import sample_losses

STRIDE, LENGTH = 9, 16
WINDOWS = f"data.windows={{stride: {STRIDE}, max_windows: 4}}"


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 reviews of 3 to 60 words, whose mood stands at their end."""
    draw, rows = random.Random(1), ["text,label"]
    for row in range(120):
        words = [draw.choice(PLAIN) for _ in range(draw.randint(3, 58))]
        words += draw.sample((BAD, GOOD)[row % 2], 2)
        rows.append(f"{' '.join(words)},{('negative', 'positive')[row % 2]}")
    path = tmp_path_factory.mktemp("long") / "reviews.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_recipe(model: Path, corpus: Path, *overrides: str) -> Recipe:
    settings = [
        f"model.name={model}",
        f"data.source={corpus}",
        WINDOWS,
        "model.dropout=0",
        "batch.global_size=13",
        f"batch.max_length={LENGTH}",
        "batch.token_budget=96",
        "optimizer.learning_rate=2e-3",
        "stopping.max_steps=5",
        "stopping.patience=null",
        "evaluation.every_steps=5",
        "precision=fp32",
    ]
    return recipes.load_recipe("csv", [*settings, *overrides])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_the_loss_is_that_of_the_pooled_logits_of_each_text(
    tiny_bert: Path, long_corpus: Path, cache: Path, tmp_path: Path, pool: Pool
) -> None:
    loop = make_loop(make_recipe(tiny_bert, long_corpus, f"data.windows.pool={pool}"), cache)
    config = AutoConfig.from_pretrained(tiny_bert, num_labels=2)
    net = AutoModelForSequenceClassification.from_config(config).eval()
    names = {name.removeprefix("net."): value for name, value in full_weights(loop).items()}
    net.load_state_dict({name: torch.from_numpy(v) for name, v in names.items()}, strict=False)
    samples, targets = loop.data.train.samples, loop.data.train.targets
    assert samples.windows is not None and samples.windows.lengths.max() == 4
    rows = epoch_order(loop.recipe.seed, 0, len(samples))[:13]
    logits = []
    for row in rows:
        of_row, _ = samples.sequences_of(np.array([row]))
        ids = [torch.tensor([samples.sequences[each].tolist()]) for each in of_row]
        of_windows = torch.cat([net(each).logits for each in ids])
        logits.append(of_windows.mean(0) if pool == "mean" else of_windows.amax(0))
    losses = sample_losses("classification", torch.stack(logits), torch.from_numpy(targets[rows]))
    losses.mean().backward()
    assert loop.loss_and_grad() == pytest.approx(losses.mean().item(), abs=1e-5)
    of_loop = dict(loop.parallel.named_parameters())
    for name, parameter in net.named_parameters():
        if parameter.grad is not None and f"net.{name}" in of_loop:
            found = of_loop[f"net.{name}"].grad
            assert found is not None
            torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-3)


def test_the_token_budget_changes_no_loss_and_no_metric(
    tiny_bert: Path, long_corpus: Path, cache: Path
) -> None:
    settings = ["model.dropout=0.1", "model.attention_dropout=0.1", "stopping.max_steps=8"]
    runs = []
    for budget in (16, 96, 4096):
        recipe = make_recipe(tiny_bert, long_corpus, *settings, f"batch.token_budget={budget}")
        runs.append(list(make_loop(recipe, cache).run()))
    steps, evaluations = (
        [[event for event in run if isinstance(event, kind)] for run in runs]
        for kind in (StepEvent, EvalEvent)
    )
    assert len({step[0].micro_batches for step in steps}) == 3
    assert [step.samples for step in steps[0]][:7] == [13] * 7, "texts, and no windows"
    for of_run in steps[1:]:
        assert [s.loss for s in of_run] == pytest.approx([s.loss for s in steps[0]], abs=2e-5)
        assert [s.samples for s in of_run] == [s.samples for s in steps[0]]
    for of_run in evaluations[1:]:
        for found, wanted in zip(of_run, evaluations[0], strict=True):
            assert found.metrics["rows"] == wanted.metrics["rows"]
            assert found.metrics["loss"] == pytest.approx(wanted.metrics["loss"], abs=2e-5)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_layout_equals_one_process(
    tiny_bert: Path, long_corpus: Path, cache: Path, tmp_path: Path, pool: Pool
) -> None:
    recipe = make_recipe(tiny_bert, long_corpus, f"data.windows.pool={pool}", "model.dropout=0.1")
    expected, _ = run_alone(recipe, cache)
    layouts = [Layout(), Layout(dp_shard=2), Layout(pp=2), Layout(tp=2, sequence_parallel=True)]
    jobs: list[Job] = [(recipe, layout) for layout in layouts]
    for layout, ranks in zip(layouts, run_layouts(jobs, 2, cache, tmp_path), strict=True):
        print(layout)
        for events, _ in ranks:
            for found, wanted in zip(events, expected, strict=True):
                if "loss" in wanted:
                    assert found["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
                if "metrics" in wanted:
                    for key in ("rows", "loss", "accuracy"):
                        assert found["metrics"][key] == pytest.approx(
                            wanted["metrics"][key], abs=2e-5
                        )


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_an_evaluation_has_one_row_of_logits_a_text(
    tiny_bert: Path, long_corpus: Path, cache: Path, pool: Pool
) -> None:
    loop = make_loop(make_recipe(tiny_bert, long_corpus, f"data.windows.pool={pool}"), cache)
    found: dict[int, list[float]] = {}
    metrics = loop.evaluate(
        loop.data.train, lambda rows, logits: found.update(zip(rows, logits.tolist(), strict=True))
    )
    samples = loop.data.train.samples
    model = loop.parallel.stage_modules[0].eval()
    expected = predict_logits(model, samples, 64, pool=pool)
    assert sorted(found) == list(range(len(samples))) and metrics["rows"] == len(samples)
    np.testing.assert_allclose([found[row] for row in range(len(samples))], expected, atol=1e-5)


def test_features_of_a_text_are_the_mean_of_its_windows(
    tiny_classifier: Path, tiny_bert: Path
) -> None:
    model = load_model(tiny_classifier)
    windows = WindowsConfig(stride=STRIDE)
    text = " ".join(PLAIN * 2)
    samples, _ = load_encoder(str(tiny_bert), "none", LENGTH, windows).encode([text, "good film"])
    targets = np.zeros(2, dtype=np.int64)
    found = compute_features(model, DatasetSplit(samples, targets))  # type: ignore[arg-type]
    single = DatasetSplit(samples.sequences, np.zeros(len(samples.sequences), dtype=np.int64))
    each = compute_features(model, single)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [each[:-1].mean(axis=0), each[-1]], atol=1e-5)


def test_few_shapes_pool_the_same(tiny_bert: Path, long_corpus: Path, cache: Path) -> None:
    recipe = make_recipe(tiny_bert, long_corpus)
    loop = make_loop(recipe, cache)
    encoder = load_encoder(str(tiny_bert), "text-v1", LENGTH, recipe.data.windows)
    rows = np.array([4, 0, 9])
    fewer = Collator(recipe, encoder, Transfer(torch.device("cpu")), 1, (16, 32))
    plain = Collator(recipe, encoder, Transfer(torch.device("cpu")))
    found, expected = (
        each.collate(loop.data.train, [MicroBatch(rows, 1.0)], epoch=None)[0]
        for each in (fewer, plain)
    )
    assert found.pool is not None and expected.pool is not None and expected.packed is not None
    assert found.count == 3 and found.targets.shape[0] == 4 == found.pool.places.shape[0]
    sequences = expected.packed.reads
    model = loop.parallel.stage_modules[0].eval()
    with torch.no_grad():
        wanted = expected.pool(model(expected.inputs, expected.packed))
        got = found.pool(model(found.inputs, found.packed))
    assert len(sequences) > 3
    torch.testing.assert_close(got[:3], wanted, atol=1e-5, rtol=1e-4)
    assert found.targets[:3].tolist() == expected.targets.tolist()
