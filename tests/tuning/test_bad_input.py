"""What a user can get wrong is one clear error, before any trial starts."""

import os
from pathlib import Path

import pytest
import yaml

from tests.support.searches import prepared_search, write_search
from trainers.storage.directory import SyncedDirectory
from tuning.__main__ import main
from tuning.store.config import build_search_config, load_search_config
from tuning.store.lease import hold_search
from tuning.study import create_search


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path) -> list[str]:
    """A search that would do, on a cluster of one device."""
    place = tmp_path_factory.mktemp("place")
    metadata = {"devices_per_node": 1, "cache": str(place / "cache")}
    cluster = place / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    tiny = [f"model.name={tiny_bert}", f"data.source={corpus}", "batch.max_length=32"]
    return ["csv", *tiny, "--cluster", str(cluster)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["tune.optimizer.learning_rate=log 1e-3..1e-6"], "upside down; write 1e-6..1e-3"),
        (["tune.optimizer.learning_rte=1e-6..1e-3"], "did you mean optimizer.learning_rate"),
        (["evaluation.metric=f2"], "evaluation.metric = 'f2'"),
        (["evaluation.metric=perplexity"], "'perplexity' does not exist for classification"),
        (["--sampler", "grid", "--trials", "9"], "the grid has 21 points"),
        (["--sampler", "pbt"], "tune.batch.global_size cannot change"),
        (["--sampler", "pbt", "tune.model.dropout=0..0.5"], "give --trials 3 or more"),
        (["--budget", "soon"], "2h, 50USD, 3kWh"),
        (["--budget", "5USD"], "names no metadata.price_usd_per_hour"),
        (["data.validation=0", "stopping.patience=null"], "a search decides by validation rows"),
        (["data.source=nowhere.csv"], "nowhere.csv"),
        (["layout.pp=3"], "not one trial fits on the 1 device"),
        (["--run", "gs://bucket/search"], "gs://bucket/search: cannot be reached"),
        (["tune.model.layers=[null, [[0]]]"], "a list of such"),
        (["tune.model.layers=[null, [1, 0]]"], "kept once each, in their order"),
        (["--register", "Best Of All"], "'Best Of All' is no name of a model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_error_and_nothing_begun(
    words: list[str],
    wrong: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "search"
    status = main([*words, "--run", str(run), *wrong])
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and said in error
    assert error.count("error:") == 1 and not run.exists()


def test_storage_that_cannot_be_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    status = main([*words, "--run", str(tmp_path / "file" / "search")])
    assert status == 2 and "cannot be written" in capsys.readouterr().err


def test_a_directory_that_holds_a_search_or_none(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "holds no search" in capsys.readouterr().err
    assert main(["resume"]) == 2
    assert capsys.readouterr().out.startswith("usage: python -m tuning resume RUN\n")
    (tmp_path / "plan.yaml").touch()
    assert main([*words, "--run", str(tmp_path)]) == 2
    assert "`bertha tune resume" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_starts_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "search"
    assert main([*words, "--run", str(run), "--budget", "2h", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in ("learning_rate", "global_size", "square root", "f1", "16 by gp", "1 trial(s)"):
        assert part in said
    assert "asha" in said and "tokens" in said and "2h00m" in said and not run.exists()


def test_a_search_in_a_job_reads_nothing_that_is_not_shared_with_it(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {}}')
    for more in ([], ["--dry-run"]):
        asked = [*words, "data.source=/etc/shadow.csv", "--run", str(tmp_path / "run"), *more]
        assert main(asked) == 2
        assert "leads to" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_search_that_another_process_holds_keeps_its_plan(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, *overrides, _, cluster = words
    config = build_search_config(recipe, overrides, cluster=cluster, trials=2)
    run = SyncedDirectory(tmp_path / "search")
    create_search(config, run)
    (tmp_path / "other.yaml").write_text(Path(cluster).read_text())
    with hold_search(run):
        command = ["resume", str(run.path), "--cluster", str(tmp_path / "other.yaml")]
        assert main(command) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert load_search_config(run.path, run.address).cluster == cluster


def test_fewer_trials_than_a_search_has_are_refused_before_any_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_search(tmp_path, prepared_search(), max_evals=3)
    assert main(["resume", str(tmp_path), "--trials", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --trials 3: the search has 12; a search can only grow: give 12")
