"""From which code and on which machine a run was made."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from trainers.tracking import provenance


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source file, in a directory of its own that no repository is around."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "provenance.py"
    path.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(path))
    return path


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_is_the_commit_and_says_when_files_differ(source: Path) -> None:
    git(source.parent, "init", "-q")
    git(source.parent, "add", ".")
    git(source.parent, "commit", "-qm", "first")
    commit = git(source.parent, "rev-parse", "HEAD")
    assert provenance.code_revision() == commit and len(commit) == 40
    source.write_text("x = 2\n")
    assert provenance.code_revision() == f"{commit}+changes"


def test_code_outside_of_a_repository_has_no_revision(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.code_revision() == "unknown"
    git(source.parent, "init", "-q")
    assert provenance.code_revision() == "unknown", "nothing is committed yet"
    monkeypatch.setenv("PATH", "")
    assert provenance.code_revision() == "unknown", "git is not installed"


def test_versions_and_hardware_are_plain_values() -> None:
    facts = provenance.describe_environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert (facts["torch"].split("+")[0], facts["ray"]) == (
        torch.__version__.split("+")[0],
        ray.__version__,
    )
    assert facts["cores"] == os.cpu_count() and facts["processor"]
    assert (facts["accelerator"] is None) == (torch.accelerator.current_accelerator() is None)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor : 0\nmodel name\t: Fast CPU: 3 GHz\nmodel name\t: another\n",
            "Fast CPU: 3 GHz",
        ),
        ("processor : 0\n", "as python says"),
        (None, "as python says"),
    ],
)
def test_a_processor_is_named_by_the_kernel_or_else_by_python(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, name: str
) -> None:
    read = Path.read_text

    def read_text(path: Path, *options: Any, **named: Any) -> str:
        if str(path) != "/proc/cpuinfo":
            return read(path, *options, **named)
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "as python says")
    assert provenance.describe_environment()["processor"] == name


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert provenance.find_version("torch") is not None
    assert provenance.find_version("no-such-package-at-all") is None
