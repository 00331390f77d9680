"""Any layout, the same maths: losses, gradient norms, metrics and weights equal one process.

Five steps of a tiny BERT with AdamW, every dropout on, clipping that bites, and global batches that
divide by nothing; bare gloo processes, fp32.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from cluster.costmodel.layout import Layout
from tests.support.layouts import (
    LAYOUTS,
    TASKS,
    Job,
    Run,
    fresh_recipe,
    run_alone,
    run_layouts,
    tiny_recipe,
)
from tests.support.tiny import write_tiny_bert

pytestmark = pytest.mark.multiprocess


def tasks_of(name: str) -> tuple[str, ...]:
    """Recomputing a layer knows no head: one task shows it; `benchmarks/parity.py` runs both."""
    return TASKS[:1] if "recompute" in name else TASKS


CASES = [
    (size, name, task)
    for size, named in LAYOUTS.items()
    for name in named
    for task in tasks_of(name)
]
OPTIMIZERS = (
    ["name=sgd", "momentum=0.9", "learning_rate=0.05"],
    ["name=adam"],
    ["name=adamw", "layer_decay=1"],
    ["name=lamb"],
)
FAMILIES = ("roberta", "electra", "distilbert")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tiny_bert: Path, corpus: Path, cache: Path) -> dict[str, Run]:
    return {task: run_alone(fresh_recipe(tiny_bert, corpus, task), cache) for task in TASKS}


@pytest.fixture(scope="module")
def together(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[tuple[str, str], list[Run]]]:
    """The runs of every rank by (layout, task), for a number of ranks; computed once for each."""

    @functools.cache
    def runs_of(size: int) -> dict[tuple[str, str], list[Run]]:
        names = [(name, task) for name in LAYOUTS[size] for task in tasks_of(name)]
        jobs: list[Job] = [
            (fresh_recipe(tiny_bert, corpus, task), Layout(**LAYOUTS[size][name]))
            for name, task in names
        ]
        runs = run_layouts(jobs, size, cache, tmp_path_factory.mktemp(f"ranks{size}"))
        return dict(zip(names, runs, strict=True))

    return runs_of


def compare(found: list[Run], expected: Run) -> None:
    """Every rank saw the same events, and all the weights are somewhere and equal."""
    events, weights = expected
    seen: set[str] = set()
    for of_rank, held in found:
        assert len(of_rank) == len(events)
        for event, wanted in zip(of_rank, events, strict=True):
            for key in ("step", "samples", "tokens", "learning_rate", "best"):
                assert event.get(key) == wanted.get(key)
            if "loss" in wanted:
                assert event["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
                assert event["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-5)
            assert_same_metrics(event.get("metrics"), wanted.get("metrics"))
        for name, value in held.items():
            np.testing.assert_allclose(value, weights[name], rtol=0, atol=2e-5, err_msg=name)
        seen |= held.keys()
    assert seen == weights.keys()


def assert_same_metrics(found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> None:
    if wanted is None:
        assert found is None
        return
    assert found is not None
    assert found.get("confusion") == wanted.get("confusion")
    assert found.get("tokens") == wanted.get("tokens")
    for key in ("loss", "accuracy"):
        assert found[key] == pytest.approx(wanted[key], abs=2e-5)


@pytest.mark.parametrize(
    ("size", "name", "task"), CASES, ids=[f"{name} {task}" for _, name, task in CASES]
)
def test_a_layout_equals_one_process(
    together: Callable[[int], dict[tuple[str, str], list[Run]]],
    alone: dict[str, Run],
    size: int,
    name: str,
    task: str,
) -> None:
    compare(together(size)[name, task], alone[task])


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=" ".join)
def test_every_optimizer_on_sharded_parameters(
    settings: list[str], tiny_bert: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    own = [f"optimizer.{each}" for each in settings]
    recipe = fresh_recipe(tiny_bert, corpus, "classification", *own)
    jobs: list[Job] = [(recipe, Layout(**LAYOUTS[2][name])) for name in ("FSDP 2", "TP 2")]
    expected = run_alone(recipe, cache)
    for found in run_layouts(jobs, 2, cache, tmp_path):
        compare(found, expected)


@pytest.fixture(scope="module")
def family_models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each family, on disk as Transformers writes it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64}
    shared = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    configs = {
        "roberta": RobertaConfig(**shared, **sizes),
        "electra": ElectraConfig(**shared, **sizes, embedding_size=16),
        "distilbert": DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    }
    directories = {}
    for family, config in configs.items():
        directories[family] = tmp_path_factory.mktemp(family)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directories[family])
        tokenizer.save_pretrained(directories[family])
    return directories


def test_every_family_on_every_kind_of_layout(
    family_models: dict[str, Path], corpus: Path, cache: Path, tmp_path: Path
) -> None:
    layouts = [
        Layout(dp_shard=2),
        Layout(tp=2, sequence_parallel=True),
        Layout(pp=2),
    ]
    cases = [(family, task, layout) for family in FAMILIES for task in TASKS for layout in layouts]
    made = {
        (family, task): tiny_recipe(corpus, f"task={task}", f"model.name={family_models[family]}")
        for family, task, _ in cases
    }
    expected = {key: run_alone(recipe, cache) for key, recipe in made.items()}
    jobs = [(made[family, task], layout) for family, task, layout in cases]
    for (family, task, layout), found in zip(
        cases, run_layouts(jobs, 2, cache, tmp_path), strict=True
    ):
        print(family, task, layout)
        compare(found, expected[family, task])


FROZEN_LAYOUTS = {
    2: (
        Layout(),
        Layout(dp_shard=2),
        Layout(tp=2, sequence_parallel=True),
        Layout(pp=2, recompute="full"),
        Layout(pp=2, stages_per_rank=2),
    ),
    4: (Layout(pp=4), Layout(dp_shard=2, pp=2), Layout(dp_shard=2, pp=2, stages_per_rank=2)),
}
# Of four layers: with `encoder` all pipeline stages but the last have nothing to train, and the
# tied table of a masked-language model is at both ends of it.
FROZEN = (
    ("classification", "2", "lamb"),
    ("classification", "3", "adamw"),
    ("classification", "encoder", "sgd"),
    ("masked-lm", "embeddings", "adamw"),
    ("masked-lm", "encoder", "adamw"),
)


def test_frozen_layers_on_every_kind_of_layout(
    corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = write_tiny_bert(tmp_path_factory.mktemp("four-layers"), num_layers=4)
    recipes = [
        tiny_recipe(
            corpus,
            f"task={task}",
            f"model.name={model}",
            f"model.freeze={frozen}",
            f"optimizer.name={optimizer}",
            "optimizer.layer_decay=0.8",
        )
        for task, frozen, optimizer in FROZEN
    ]
    expected = [run_alone(recipe, cache) for recipe in recipes]
    for size, layouts in FROZEN_LAYOUTS.items():
        jobs = [(recipe, layout) for layout in layouts for recipe in recipes]
        runs = run_layouts(jobs, size, cache, tmp_path_factory.mktemp(f"frozen{size}"))
        for (recipe, layout), found, wanted in zip(
            jobs, runs, expected * len(layouts), strict=True
        ):
            print(recipe.task, recipe.model.freeze, layout)
            compare(found, wanted)
