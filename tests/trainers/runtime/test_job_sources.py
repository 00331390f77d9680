"""Sources that a job may read: what it brought along and what the cluster's file shares."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.spec import ClusterMetadata, ClusterSpec, load_cluster_spec
from trainers.__main__ import main
from trainers.config.recipe import parse_recipe
from trainers.data.files import DataError, match_pattern
from trainers.runtime.fit import fit
from trainers.runtime.job_sources import check_job_sources


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterSpec:
    """A cluster, and this process in the working directory of a job on it."""
    for name in ("job", "runs", "cache", "shared", "home"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.csv").write_text("text,label\na,b\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "job")
    start_job(monkeypatch, {"working_dir": "gcs://_ray_pkg_0123.zip"})
    metadata = ClusterMetadata(storage=str(tmp_path / "runs"), cache=str(tmp_path / "cache"))
    mounts = (str(tmp_path / "shared"), "~/.ray/auth_token")
    return ClusterSpec("c", "local", 1, metadata, mounts=mounts)


def start_job(monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any]) -> None:
    config = {"runtime_env": runtime_env, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))


def check(cluster: ClusterSpec, **changes: Any) -> None:
    settings: dict[str, Any] = {"model": {"name": "bert"}, "data": {"source": "imdb"}}
    for setting, value in changes.items():
        section, _, key = setting.partition("_")
        settings.setdefault(section, {})[key] = str(value)
    check_job_sources(parse_recipe(settings), cluster)


@pytest.mark.parametrize("place", ["job", "runs", "cache", "shared"])
def test_a_job_reads_what_it_brought_and_what_is_shared(
    job: ClusterSpec, tmp_path: Path, place: str
) -> None:
    for source in (tmp_path / place / "data.csv", f"file://{tmp_path / place}/data.csv"):
        check(job, data_source=source)
    check(job, data_source="data.csv", model_name="package:all-minilm-l6-v2")
    check(job, data_source="s3://bucket/a.csv", data_test="https://host/a.csv")
    check(job, model_name=tmp_path / place, distillation_teacher=tmp_path / place)


@pytest.mark.parametrize(
    "source",
    [
        *("/etc/shadow", "/proc/self/environ", "~/.aws/credentials", "~/.ray/auth_token"),
        *("file:///etc/shadow.csv", "../home/data.csv", "../absent.csv", "link.csv", "linked"),
    ],
)
@pytest.mark.parametrize("setting", ["data_source", "data_test", "model_name", "model_tokenizer"])
def test_a_job_reads_nothing_else(
    job: ClusterSpec, tmp_path: Path, source: str, setting: str
) -> None:
    Path("link.csv").symlink_to(tmp_path / "home" / "data.csv")
    Path("linked").symlink_to(tmp_path / "home")
    name = setting.replace("_", ".")
    with pytest.raises(
        DataError, match=rf"^{name} = .*{source}.*: leads to /.* file_mounts, or S3$"
    ):
        check(job, **{setting: source})
    with pytest.raises(DataError, match=r"^distillation\.teacher = "):
        check(job, distillation_teacher=source)


def test_a_job_follows_no_pattern_and_no_link_in_a_folder(job: ClusterSpec, tmp_path: Path) -> None:
    Path("tables").mkdir()
    Path("tables/a.csv").write_text("text,label\na,b\n")
    for source in ("tables", "tables/*.csv", "*/a.csv", str(tmp_path / "shared" / "*")):
        check(job, data_source=source, data_test=source)
    for source in (str(tmp_path / "home" / "*"), "../home/*.csv", "*/../../home/*", "~/*.csv"):
        with pytest.raises(DataError, match=r"leads to /.*home"):
            check(job, data_source=source)
    Path("tables/deep").mkdir()
    Path("tables/deep/b.csv").symlink_to(tmp_path / "home" / "data.csv")
    for source in ("tables", "tables/*/*.csv", "tables/deep/?.csv"):
        with pytest.raises(DataError, match=r"leads to /.*home/data\.csv, which a job may not"):
            check(job, data_source=source)
    Path("linked").symlink_to(tmp_path / "home")
    with pytest.raises(DataError, match=r"leads to /.*home"):
        check(job, data_source="linked/*.csv")
    assert match_pattern("link*/*.csv") == [], "a link to a folder is not followed"


def test_a_job_without_a_working_directory_does_not_own_where_it_starts(
    job: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_job(monkeypatch, {})
    with pytest.raises(DataError, match=r"data\.source = 'data\.csv'"):
        check(job, data_source="data.csv")


def test_a_name_that_fsspec_would_take_for_another_path_is_a_name(job: ClusterSpec) -> None:
    """`file:` without slashes is a path to fsspec, and a job would read it past the check."""
    from trainers.data.files import file_fingerprint, open_binary

    for source in ("file:../home/data.csv", "local:../home/data.csv"):
        with pytest.raises(DataError, match="no such file"), open_binary(source):
            pass
        with pytest.raises(DataError, match="no such file"):
            file_fingerprint(source)


def test_outside_of_a_job_every_path_is_read(
    job: ClusterSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    check(job, data_source=tmp_path / "home" / "data.csv", model_name="/etc")


def test_the_command_refuses_before_it_reads(
    job: ClusterSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = {
        "provider": {"type": "local"},
        "file_mounts": {str(tmp_path / "shared"): "/somewhere"},
        "metadata": {"devices_per_node": 0, "cache": str(tmp_path / "c"), "storage": "runs"},
    }
    Path("cluster.yaml").write_text(json.dumps(cluster))
    spec = load_cluster_spec("cluster.yaml")
    assert spec.mounts == (str(tmp_path / "shared"),)
    command = ["csv", "data.source=/etc/shadow.csv", "--cluster", "cluster.yaml"]
    assert main(command) == 2
    assert main([*command, "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("leads to /etc/shadow.csv" in line for line in lines)
    assert not (tmp_path / "c").exists() and not Path("runs").exists()


def test_a_run_of_python_code_refuses_before_it_reads(job: ClusterSpec, tmp_path: Path) -> None:
    recipe = parse_recipe({"data": {"source": "/etc/shadow.csv"}, "model": {"name": "linear"}})
    with pytest.raises(DataError, match="leads to /etc/shadow"):
        fit(recipe, job, tmp_path / "runs" / "run")
