"""What is refused before data are read, and without importing torch or Ray."""

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
