"""What is refused before data are read, and without importing torch or Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.costmodel.layout import LayoutError
from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.paths import ROOT
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.runtime.early_checks import check_run, check_settings, open_run
from trainers.tracking.run_directory import RunError
from trainers.tracking.sinks import trackers

SIZES = {
    "name": "random",
    "vocabulary_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def recipe_of(**settings: Any) -> Recipe:
    return recipes.parse_recipe(
        {"model": SIZES, "data": {"source": "absent.csv"}, "batch": {"global_size": 8}, **settings}
    )


def here(**metadata: Any) -> ClusterSpec:
    return ClusterSpec("here", "local", 1, ClusterMetadata(devices_per_node=2, **metadata))


def test_a_run_that_exists_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", here())
    check_run(recipe_of(), here(), run, resume=False)
    assert list(tmp_path.iterdir()) == [], "a check writes nothing"
    run.acquire(recipe_of(), resume=False)
    with pytest.raises(RunError, match="holds a run already; resume it with --resume"):
        check_run(recipe_of(), here(), run, resume=False)
    check_run(recipe_of(), here(), run, resume=True)
    with pytest.raises(RunError, match="its recipe differs in seed; resume with the same"):
        check_run(recipe_of(seed=1), here(), run, resume=True)
    check_run(recipe_of(tracking=["mlflow"]), here(), run, resume=True)


def test_a_run_to_resume_that_is_not_there_is_said_with_those_beside_it(tmp_path: Path) -> None:
    absent = open_run(tmp_path / "mine", here())
    with pytest.raises(RunError, match=r"/mine: no run to resume is there; name the directory"):
        check_run(recipe_of(), here(), absent, resume=True)
    open_run(tmp_path / "my-run", here()).acquire(recipe_of(), resume=False)
    with pytest.raises(RunError, match=r"is there; did you mean .*/my-run\?; name"):
        check_run(recipe_of(), here(), open_run(tmp_path / "my-rnu", here()), resume=True)
    with pytest.raises(RunError, match=r"is there; beside it is my-run; name"):
        check_run(recipe_of(), here(), open_run(tmp_path / "zzz", here()), resume=True)
    check_run(recipe_of(), here(), absent, resume=False)
    assert main(["csv.yaml", "data.source=x.csv", "--resume"]) == 2


def test_a_run_may_grow_and_never_shrinks(tmp_path: Path) -> None:
    run = open_run(tmp_path, here())
    begun = recipe_of(stopping={"epochs": 3, "patience": 2})
    run.acquire(begun, resume=False)
    result = {"steps": 9, "best_step": 9, "stopped_early": False, "test": None}
    run.write_file(run.result_path, json.dumps(result))
    longer = recipe_of(stopping={"epochs": 6, "patience": 2})
    assert run.check_recipe(longer, resume=True).longer == {"stopping.epochs": (3, 6)}
    assert run.read_result() is not None, "a check changes nothing"
    for stopping, said in [
        (
            {"epochs": 2, "patience": 2},
            r"stopping\.epochs = 2, but the run has 3; .*: give stopping\.epochs=3 or more,",
        ),
        ({"epochs": 3, "patience": 1}, r"stopping\.patience = 1, but the run has 2"),
        (
            {"epochs": 3, "patience": 2, "max_steps": 5},
            "max_steps = 5, but the run has null; .* give stopping.max_steps=null, or",
        ),
        ({"epochs": "auto", "patience": 2}, r"its recipe differs in stopping\.epochs"),
    ]:
        with pytest.raises(RunError, match=said):
            run.check_recipe(recipe_of(stopping=stopping), resume=True)
    with pytest.raises(RunError, match=r"its recipe differs in seed"):
        run.check_recipe(recipe_of(stopping={"epochs": 6, "patience": 2}, seed=1), resume=True)
    line = run.acquire(longer, resume=True).to_line()
    assert line.startswith("longer    stopping.epochs 3 -> 6: training goes on")
    assert run.read_result() is None and recipes.load_recipe(run.recipe_path) == longer
    assert run.read_record()["longer"] == [{"settings": {"stopping.epochs": [3, 6]}}]
    assert run.acquire(longer, resume=True).to_line() == ""


def test_a_run_that_stopped_early_needs_more_patience_to_grow(tmp_path: Path) -> None:
    run = open_run(tmp_path, here())
    run.acquire(recipe_of(stopping={"epochs": 3, "patience": 2}), resume=False)
    result = {"steps": 9, "best_step": 3, "stopped_early": True, "test": None}
    run.write_file(run.result_path, json.dumps(result))
    with pytest.raises(RunError, match=r"stopped early, after 2 .*raise stopping\.patience, too"):
        run.acquire(recipe_of(stopping={"epochs": 6, "patience": 2}), resume=True)
    change = run.acquire(recipe_of(stopping={"epochs": 6, "patience": None}), resume=True)
    assert change.longer == {"stopping.epochs": (3, 6), "stopping.patience": (2, None)}


def test_what_was_chosen_for_auto_may_grow(tmp_path: Path) -> None:
    run = open_run(tmp_path, here())
    run.acquire(recipe_of(), resume=False)
    with pytest.raises(RunError, match=r"its recipe differs in stopping\.epochs"):
        run.check_recipe(recipe_of(stopping={"epochs": 6}), resume=True)
    run.write_file(run.record_path, json.dumps({"settings": {"stopping.epochs": 4}}))
    assert not run.check_recipe(recipe_of(stopping={"epochs": 4}), resume=True).longer
    change = run.check_recipe(recipe_of(stopping={"epochs": 6}), resume=True)
    assert change.longer == {"stopping.epochs": (4, 6)}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: cannot be written: .*/file: .*with --run$"):
        open_run(tmp_path / "file" / "run", here())
    with pytest.raises(RunError, match=r"^/proc/bertha/run: cannot be written: /proc: "):
        open_run("/proc/bertha/run", here())


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"layout": {"tp": 3}}, "tp 3 = 3 does not divide the 2 devices"),
        ({"layout": {"pp": 2, "stages_per_rank": 2}}, "4 stages, but the model has 2 layers"),
        ({"layout": {}, "batch": {"global_size": 1}}, "batch.global_size is 1"),
        ({"layout": {"tp": 2}, "model": {"name": "linear"}}, "a linear model is only replicated"),
    ],
    ids=str,
)
def test_a_layout_that_cannot_run_is_refused(settings: dict[str, Any], mistake: str) -> None:
    with pytest.raises(LayoutError, match=mistake):
        check_settings(recipe_of(**settings), here())


def test_what_only_the_model_or_the_data_decide_is_left_to_the_run() -> None:
    check_settings(recipe_of(layout={"tp": 3}, model={"name": "somebody/unknown"}), here())
    check_settings(recipe_of(layout={"tp": 2}, batch={"global_size": "auto"}), here())
    check_settings(recipe_of(layout={"pp": 2}), here(min_workers=1))


def test_a_missing_tracker_is_one_line_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    words = ["csv", "data.source=absent.csv", "tracking=[wandb]", "--run", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith('error: tracking: wandb is not installed; pip install "bertha-ray[')
    assert len(said.err.splitlines()) == 1 and said.out == f"run: {tmp_path}/run\n"
    assert not (tmp_path / "run").exists()


LIGHT = """
import sys
from trainers.__main__ import main
status = main(sys.argv[1:])
assert not {"torch", "ray", "transformers", "pandas"} & sys.modules.keys(), sys.modules.keys()
raise SystemExit(status)
"""


@pytest.mark.multiprocess
def test_a_conflict_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_of().to_yaml())
    words = ["csv", "data.source=absent.csv", "--run", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == f"run: {tmp_path}\n"
    assert done.stderr.startswith(f"error: {tmp_path} holds a run already; resume it with --resume")
