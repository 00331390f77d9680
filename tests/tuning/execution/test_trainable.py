"""One trial in this process, as Tune would run it: no Ray."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import spec
from trainers.checkpoint import checkpoint
from trainers.config import recipe as recipes
from trainers.models import card
from trainers.runtime import fit
from trainers.tracking.run_directory import RunDirectory
from tuning.execution import stop_signal
from tuning.execution.trainable import (
    TrialSpec,
    WarmStartError,
    copy_parent_checkpoint,
    train_trial,
)

SETTINGS = [
    "batch.global_size=16",
    "batch.max_length=32",
    "batch.token_budget=128",
    "optimizer.learning_rate=2e-3",
    "stopping.epochs=2",
    "linear_probe=false",
    "stopping.patience=null",
    "evaluation.every_steps=6",
    "precision=fp32",
]


class Listener:
    """Hears what a trial in `path` tells, and stops it after `most` evaluations."""

    def __init__(self, path: Path, most: int = 10**9) -> None:
        self.heard: list[dict[str, Any]] = []
        self._path, self._most = path, most

    def __call__(self, facts: Mapping[str, Any]) -> None:
        self.heard.append(dict(facts))
        if "tokens" in facts:
            stop_signal.write_decision(
                RunDirectory(self._path), facts["tokens"], len(self.heard) < self._most
            )

    @property
    def curve(self) -> list[tuple[int, float]]:
        return [(facts["tokens"], facts["value"]) for facts in self.heard if "tokens" in facts]


@pytest.fixture(scope="module")
def trial_spec(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path
) -> TrialSpec:
    place = tmp_path_factory.mktemp("place")
    metadata = {"devices_per_node": 0, "cache": str(place / "cache")}
    text = yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata})
    (place / "cluster.yaml").write_text(text)
    recipe = recipes.load_recipe(
        "csv", [f"model.name={tiny_bert}", f"data.source={corpus}", *SETTINGS]
    )
    return TrialSpec(
        0, recipe, spec.load_cluster_spec(place / "cluster.yaml"), RunDirectory(place / "whole")
    )


@pytest.fixture(scope="module")
def whole(trial_spec: TrialSpec) -> Listener:
    """A trial that trained to its end."""
    listener = Listener(trial_spec.run.path)
    train_trial(trial_spec, listener)
    return listener


def test_a_trial_tells_each_evaluation_and_its_end(trial_spec: TrialSpec, whole: Listener) -> None:
    run = trial_spec.run
    seen, tokens = {}, 0
    for row in run.metric_rows("step"):
        tokens += row["tokens"]
        seen[row["step"]] = tokens
    rows = list(run.metric_rows("evaluation"))
    expected = [(seen[row["step"]], row["metrics"]["f1"]) for row in rows]
    assert sorted(set(whole.curve)) == sorted(set(expected)) and len(expected) == 4
    assert whole.heard[-1]["ended"] == "complete"
    assert all(facts["seconds"] > 0 for facts in whole.heard)


def test_a_trial_does_not_look_at_the_test_rows_until_it_is_judged(
    trial_spec: TrialSpec, whole: Listener
) -> None:
    run = trial_spec.run
    before = run.read_result()
    assert before is not None and before["test"] is None and not run.bundle_path.exists()
    steps = [row["step"] for row in run.metric_rows("step")]
    outcome = fit.fit(trial_spec.recipe, trial_spec.cluster, trial_spec.run.path, resume=True)
    assert outcome.result["test"]["rows"] > 0 and card.read_card(run.bundle_path).metrics
    assert [row["step"] for row in run.metric_rows("step")] == steps, "nothing is trained again"
    assert {**outcome.result, "test": None, "verdict": {}} == before


def test_the_evaluation_before_the_first_step_is_not_told(
    trial_spec: TrialSpec, whole: Listener, tmp_path: Path
) -> None:
    fitted = trial_spec.recipe.model_copy(update={"linear_probe": True})
    run = RunDirectory(tmp_path / "fitted")
    listener = Listener(run.path)
    train_trial(replace(trial_spec, recipe=fitted, run=run), listener)
    steps = [row["step"] for row in run.metric_rows("evaluation")]
    assert steps[0] == 0 and len(steps) == 5
    assert all(tokens for tokens, _ in listener.curve) and len(set(listener.curve)) == 4


def test_an_evaluation_is_told_once_its_checkpoint_is_there(
    trial_spec: TrialSpec, whole: Listener, tmp_path: Path
) -> None:
    path = tmp_path / "stopped"
    listener = Listener(path, most=2)
    train_trial(replace(trial_spec, run=RunDirectory(path)), listener)
    assert listener.heard[-1]["ended"] == "failed" and "stopped" in listener.heard[-1]["reason"]
    held = checkpoint.find_latest(RunDirectory(path).checkpoints)
    assert held is not None and held.step == 12
    again = Listener(path)
    train_trial(replace(trial_spec, run=RunDirectory(path)), again)
    assert again.curve[:2] == listener.curve, "what was told is told again, and then the rest"
    assert sorted(set(again.curve)) == sorted(set(whole.curve))
    steps = [row["step"] for row in RunDirectory(path).metric_rows("step")]
    assert steps == list(range(1, 25))


def test_a_diverging_trial_says_so(trial_spec: TrialSpec, tmp_path: Path) -> None:
    hopeless = {"learning_rate": 1e30, "max_grad_norm": None, "name": "sgd", "weight_decay": 0.0}
    settings = trial_spec.recipe.model_dump(mode="json")
    recipe = recipes.parse_recipe({**settings, "optimizer": hopeless, "schedule": {"warmup": 0.0}})
    listener = Listener(tmp_path / "run")
    train_trial(replace(trial_spec, recipe=recipe, run=RunDirectory(tmp_path / "run")), listener)
    assert listener.heard[-1]["ended"] == "failed" and "loss" in listener.heard[-1]["reason"]


def test_what_every_trial_would_meet_is_told_apart(trial_spec: TrialSpec, tmp_path: Path) -> None:
    missing = trial_spec.recipe.data.model_copy(update={"source": str(tmp_path / "gone.csv")})
    recipe = trial_spec.recipe.model_copy(update={"data": missing})
    listener = Listener(tmp_path / "run")
    train_trial(replace(trial_spec, recipe=recipe, run=RunDirectory(tmp_path / "run")), listener)
    assert listener.heard[-1]["ended"] == "refused" and "gone.csv" in listener.heard[-1]["reason"]


def test_a_trial_may_begin_with_anothers_checkpoint(
    trial_spec: TrialSpec, whole: Listener, tmp_path: Path
) -> None:
    parent, other = tmp_path / "parent", trial_spec.recipe.model_dump(mode="json")
    train_trial(replace(trial_spec, run=RunDirectory(parent)), Listener(parent, most=1))
    other["optimizer"]["learning_rate"] = 1e-3
    tokens = next(RunDirectory(parent).metric_rows("evaluation"))["tokens"]
    child = replace(
        trial_spec,
        recipe=recipes.parse_recipe(other),
        run=RunDirectory(tmp_path / "child"),
        parent=(RunDirectory(parent), tokens),
    )
    listener = Listener(child.run.path)
    train_trial(child, listener)
    rows = list(child.run.metric_rows("step"))
    assert [row["step"] for row in rows] == list(range(7, 25))
    assert listener.curve[0][0] == whole.curve[1][0], "tokens are counted from the beginning"
    same = next(r for r in trial_spec.run.metric_rows("step") if r["step"] == 7)
    assert rows[0]["loss"] == same["loss"], "the weights are the parent's"
    assert rows[0]["learning_rate"] == pytest.approx(same["learning_rate"] / 2)
    with pytest.raises(WarmStartError, match="gone or damaged"):
        copy_parent_checkpoint(RunDirectory(tmp_path / "orphan"), RunDirectory(parent), tokens + 1)
