"""A run through the front door ends with a verdict, in all places where one is looked for."""

import json
from pathlib import Path

import pytest
import yaml

from cluster import spec
from cluster.spec import ClusterSpec
from tests.support.s3 import emulated_s3
from tests.support.tickets import ticket_recipe, write_tickets
from trainers.__main__ import main
from trainers.config.recipe import Recipe
from trainers.evaluation.compare import compare_runs
from trainers.models.card import read_card
from trainers.runtime import fit
from trainers.storage.store import open_store
from trainers.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def cluster_path(place: Path) -> Path:
    """This machine, training in the calling process."""
    path = place / "cluster.yaml"
    metadata = {"devices_per_node": 0, "cache": str(place / "cache")}
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    return path


@pytest.fixture(scope="module")
def here(cluster_path: Path) -> ClusterSpec:
    return spec.load_cluster_spec(cluster_path)


@pytest.fixture(scope="module")
def recipe(place: Path, tiny_bert: Path) -> Recipe:
    source = write_tickets(place / "tickets.csv", "multi-label")
    return ticket_recipe(source, tiny_bert, "multi-label")


@pytest.fixture(scope="module")
def run(place: Path, here: ClusterSpec, recipe: Recipe) -> RunDirectory:
    fit.fit(recipe, here, place / "run")
    return RunDirectory(place / "run")


def test_result_and_bundle_hold_the_same_verdict(run: RunDirectory) -> None:
    result, card = run.read_result(), read_card(run.bundle_path)
    assert result is not None and result["verdict"] == card.verdict
    assert card.verdict["next"].startswith("bertha ") and card.verdict["sentences"]
    words = card.verdict["baselines"]["bag-of-words"]
    assert words["f1"] > 0.8 and words["difference"]["low"] <= words["difference"]["value"]
    assert set(card.thresholds) <= set(card.labels)
    texts = (run.path / "errors.csv").read_text()
    assert len(card.examples) == 3 and all(text in texts for text in card.examples)


def test_a_run_of_an_older_version_is_read_and_not_repeated(
    run: RunDirectory, here: ClusterSpec, recipe: Recipe, place: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    fit.fit(recipe, here, old)
    result = json.loads((old / "result.json").read_text())
    del result["verdict"]
    (old / "result.json").write_text(json.dumps(result))
    settings = yaml.safe_load((old / "recipe.yaml").read_text())
    del settings["baseline"]
    (old / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (old / "predictions.npz").unlink()
    rows = (old / "metrics.jsonl").read_bytes()
    assert fit.fit(recipe, here, old, resume=True).result == result
    assert (old / "metrics.jsonl").read_bytes() == rows
    (old / "result.json").unlink()  # and what it lacks is made where the end is made again
    again = fit.fit(recipe, here, old, resume=True).result
    expected = run.read_result()
    assert expected is not None
    assert again["verdict"]["figures"] == expected["verdict"]["figures"]
    assert (old / "predictions.npz").is_file()


def test_the_baseline_may_be_turned_off_on_the_way(
    here: ClusterSpec, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.fit(recipe, here, tmp_path / "run", write_bundle=False)
    assert "bag of words" not in capsys.readouterr().out
    off = recipe.model_copy(update={"baseline": False})
    result = fit.fit(off, here, tmp_path / "run", resume=True).result
    assert "bag of words" not in capsys.readouterr().out
    assert result["verdict"]["baselines"] == {} and result["verdict"]["figures"]


def test_the_terminal_says_the_bar_the_figures_and_the_next_command(
    place: Path,
    cluster_path: Path,
    recipe: Recipe,
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    Path("mine.yaml").write_text(recipe.to_yaml())
    settings = ["seed=1", "--cluster", str(cluster_path), "--run", "second"]
    assert main(["mine.yaml", *settings], prog="bertha") == 0
    said = capsys.readouterr().out.splitlines()
    (bar,) = [line for line in said if line.startswith("baseline ")]
    assert "by a bag of words (TF-IDF + logistic regression" in bar
    assert said.index(bar) < next(place for place, line in enumerate(said) if "held out" in line)
    assert any(line.endswith("commonest answer      bag of words") for line in said)
    assert said[-2].startswith("next: bertha ") and " second" in said[-2]
    assert str(place) not in said[-2] and said[-1] == "bundle: second/bundle"
    assert main(["compare", str(run.path), "second"], prog="bertha") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("f1 on the same ") and lines[-1].split() == ["seed", "0", "1"]


def test_a_source_that_is_gone_does_not_fail_a_run(
    here: ClusterSpec, tiny_bert: Path, tmp_path: Path
) -> None:
    source = write_tickets(tmp_path / "tickets.csv", rows=120)
    recipe = ticket_recipe(source, tiny_bert)
    prepared = fit.prepare.prepare_dataset(recipe, here.cache_dir)
    source.write_text("text,label\nonly one row,here\n")
    verdict = fit.fit(recipe, here, tmp_path / "run", prepared=prepared).result["verdict"]
    assert any("could not be read again" in each for each in verdict["sentences"])
    assert verdict["figures"]["f1"]["low"] <= verdict["figures"]["f1"]["high"]
    assert not (tmp_path / "run" / "errors.csv").exists()


@pytest.mark.multiprocess
def test_runs_in_a_store_are_compared(
    here: ClusterSpec, recipe: Recipe, run: RunDirectory, tmp_path: Path
) -> None:
    with emulated_s3("verdicts") as bucket:
        fit.fit(recipe, here, f"{bucket}/run")
        assert {"errors.csv", "predictions.npz"} <= set(open_store(f"{bucket}/run").list_files(""))
        lines = compare_runs([str(run.path), f"{bucket}/run"], tmp_path)
        assert "+0 (" in lines[2] and lines[-1] == "the settings are the same"
