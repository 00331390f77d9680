"""The README is true: its tree is the tree, its commands run."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import __main__ as cluster_line
from tests.support.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    " ".join(line.split("#")[0].split())
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]
# What makes a run short: a few steps on a few rows. The command itself stays as it is written.
SHORT = "stopping.max_steps=2 data.max_rows=400 batch.max_length=32 batch.global_size=8"


def commands(start: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(start)]


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    known = ("make ", "curl ", "python benchmarks/")
    known += tuple(
        f"python -m {package} " for package in ("cluster", "trainers", "tuning", "serving")
    )
    assert [command for command in COMMANDS if not command.startswith(known)] == []
    assert all(commands(kind) for kind in known)


def test_make_knows_the_targets() -> None:
    for command in commands("make "):
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_benchmarks_know_their_options() -> None:
    for command in commands("python benchmarks/"):
        _, script, *words = command.split()
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert all(f'add_argument("{option}"' in source for option in options), command


def test_planning_commands(tmp_path: Path) -> None:
    for command in commands("python -m cluster plan "):
        said = run(command, tmp_path)
        assert "  =>* " in said and "why " in said, command
    assert (tmp_path / "my-cluster.yaml").is_file()


def test_cluster_commands(tmp_path: Path) -> None:
    """All can be read; those that need a cluster or an account run in tests of their own."""
    told = [c for c in commands("python -m cluster ") if c.split()[3] != "plan"]
    kinds = {cluster_line._parse(shlex.split(command)[3:]).command for command in told}
    assert kinds == {"check", "up", "doctor", "offers", "spent", "down"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the user's own file that the README speaks of."""
    directory = tmp_path_factory.mktemp("readme")
    rows = ["body,stars"]
    for row in range(120):
        mood, stars = (("dreadful", 1), ("wonderful", 5))[row % 2]
        rows.append(f'"A {mood} film, number {row} of its kind.",{stars}')
    (directory / "reviews.csv").write_text("\n".join(rows))
    return directory


def run(command: str, place: Path) -> str:
    """What `command` prints, run in `place` with this environment's Python first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=place,
        env=os.environ | {"PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


Run = Callable[[str, Path], str]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `run`, in this process, which has paid for its imports already."""

    def run_here(command: str, place: Path) -> str:
        package, *arguments = shlex.split(command.removeprefix("python -m "))
        monkeypatch.chdir(place)
        status = importlib.import_module(f"{package}.__main__").main(arguments)
        said = "".join(capsys.readouterr())
        assert not status, f"{command}\n{said}"
        return said

    return run_here


@pytest.mark.slow
def test_training_commands(place: Path, here: Run) -> None:
    """The first training command as it is; the others in this process, without Ray's start."""
    metadata = "metadata: {devices_per_node: 0}"
    (place / "here.yaml").write_text(f"provider: {{type: local}}\n{metadata}\n")
    asked = commands("python -m trainers ")
    told = [command for command in asked if "--dry-run" in command or "--schema" in command]
    first, *others = (command for command in asked if command not in told)
    assert "bundle: " in run(f"{first} {SHORT}", place)
    for command in others:
        said = here(f"{command} {SHORT} --cluster here.yaml", place)
        assert "held out" in said and "bundle: " in said
    for command in told:
        assert len(here(command, place).splitlines()) > 5


@pytest.mark.slow
def test_tuning_commands(tmp_path: Path, here: Run) -> None:
    """What they would do; what they do, `tests/integration/test_search.py` shows on tiny models."""
    asked = commands("python -m tuning ")
    searches = [command for command in asked if command.split()[3].endswith(".yaml")]
    others = {command.split()[3]: command.split()[4:] for command in asked[len(searches) :]}
    assert searches == asked[: len(searches)] and len(searches) == 2
    for command in searches:
        said = here(f"{command.removesuffix(' --dry-run')} --dry-run", tmp_path)
        assert "optimizer.learning_rate" in said and "batch.global_size" in said
    assert others.keys() == {"resume", "dashboard", "report"}
    assert all(f"--run {run}" in searches[-1] for (run,) in others.values())


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[None]:
    """The README's `python -m serving run`, as a process of its own."""
    (command,) = commands("python -m serving run")
    arguments = command.split()[1:]
    assert (place / arguments[3]).is_dir(), "training made the bundle that is served"
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=place, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if "docs" in line or time.monotonic() > deadline:
            break
    yield
    process.terminate()
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_asking_commands(place: Path, served: None, here: Run) -> None:
    for command in commands("python -m serving predict"):
        assert "%" in here(command, place)
    for command in commands("curl "):
        said = run(command, place)
        assert "label" in said or "max_input_length" in said or "film" in said, said


@pytest.mark.slow
def test_building_and_deploying_commands(place: Path, served: None, here: Run) -> None:
    for build in commands("python -m serving build"):
        assert "would be measured" in here(f"{build} --dry-run", place)
    kinds = ("deploy", "promote", "rollback", "list", "history", "key")
    told = [c for c in commands("python -m serving ") if c.split()[3] in kinds]
    assert [command.split()[3] for command in told] == [kinds[0], *kinds]
    said = [here(command, place) for command in told]
    assert "canary 2 on 10.0%" in said[1] and "live 2" in said[2] and "live 1" in said[3]
