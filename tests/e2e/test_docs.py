"""The README and the pages are true: generated ones are current, commands run as written."""

import json
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

import bertha
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What makes a run short: a few steps on a few rows. The command itself stays as it is written.
SHORT = "stopping.max_steps=2 data.max_rows=400 batch.max_length=32 batch.global_size=8"


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page's `sh` blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.split(" #")[0].strip()]


ALL = {(page.name, command): None for page in PAGES for command in commands_of(page)}
COMMANDS = list(dict.fromkeys(command for _, command in ALL))


def starting(*starts: str) -> list[str]:
    """Return the commands of all pages that begin so, but for those that need a GPU."""
    return [
        command
        for command in COMMANDS
        if command.startswith(starts) and "--device cuda" not in command
    ]


def in_our_words(command: str) -> list[str]:
    """Return the arguments of `bertha` in a command: its own, or what a job runs."""
    words = shlex.split(command.partition(" -- ")[2] or command)
    return words[1:] if words[0] == "bertha" else words[3:]


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    ours = ("bertha ", "ray job submit --working-dir . -- python -m bertha ", "make ", "curl ")
    others = ("python benchmarks/", "python docs/", "ray dashboard ", "export ", "aws ")
    assert [each for each in COMMANDS if not each.startswith(ours + others)] == []
    assert all(starting(kind) for kind in ours)


def test_no_command_of_the_readme_stands_alone() -> None:
    """Whatever the first page shows is run below, on what kind of command it is."""
    readme = commands_of(ROOT / "README.md")
    assert len(readme) > 20 and set(readme) <= set(COMMANDS)


@pytest.mark.parametrize("command", starting("bertha ", "ray job submit "))
def test_commands_are_what_the_parsers_take(command: str) -> None:
    bertha.parse(in_our_words(command))


def test_a_command_that_does_not_exist_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bertha.parse(in_our_words("bertha train reviews.yaml --no-such-option"))
    assert "--no-such-option" in capsys.readouterr().err


def test_make_knows_the_targets() -> None:
    for command in starting("make "):
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_scripts_know_their_options() -> None:
    for command in starting("python benchmarks/", "python docs/"):
        _, script, *words = command.split()
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert all(f'add_argument("{option}"' in source for option in options), command


def test_generated_pages_are_current() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    import generate

    for name, text in generate.pages().items():
        current = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert current == text, f"docs/{name} is out of date; python docs/generate.py"


def test_plans_of_the_readme(tmp_path: Path) -> None:
    plans = [each for each in commands_of(ROOT / "README.md") if each.startswith("bertha plan ")]
    assert len(plans) == 4
    for command in plans:
        said = run(command, tmp_path)
        assert "  =>* " in said and "why " in said, command
    assert (tmp_path / "my-cluster.yaml").is_file()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with the user's own file that the pages speak of."""
    directory = tmp_path_factory.mktemp("pages")
    rows = ["body,stars"]
    for row in range(120):
        mood, stars = (("dreadful", 1), ("wonderful", 5))[row % 2]
        rows.append(f'"A {mood} film, number {row} of its kind.",{stars}')
    (directory / "reviews.csv").write_text("\n".join(rows))
    return directory


def run(command: str, place: Path) -> str:
    """Run a command in `place` as a shell does, with this environment's programs first."""
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
    """Run a command in this process, which has paid for its imports already."""

    def run_here(command: str, place: Path) -> str:
        monkeypatch.chdir(place)
        status = bertha.main(in_our_words(command))
        said = "".join(capsys.readouterr())
        assert not status, f"{command}\n{said}"
        return said

    return run_here


@pytest.mark.ray
def test_training_commands(place: Path, here: Run) -> None:
    """The first run as a shell has it; the others in this process, without Ray's start."""
    metadata = "metadata: {devices_per_node: 0}"
    (place / "here.yaml").write_text(f"provider: {{type: local}}\n{metadata}\n")
    asked = [each for each in starting("bertha train ") if "csv.yaml" in each or "--schema" in each]
    told = [each for each in asked if "--dry-run" in each or "--schema" in each]
    first, *others = (each for each in asked if each not in told)
    assert len(others) == 2 and len(told) >= 3
    assert "bundle: " in run(f"{first} {SHORT}", place)
    for command in others:
        said = here(f"{command} {SHORT} --cluster here.yaml", place)
        assert "held out" in said and "bundle: " in said
    for command in told:
        assert len(here(command, place).splitlines()) > 5


@pytest.mark.ray
def test_tuning_commands(tmp_path: Path, here: Run) -> None:
    """Dry runs of the searches; what searches do, `test_search.py` shows on tiny models."""
    searches = [each for each in starting("bertha tune reviews.yaml") if "--probed" not in each]
    assert len(searches) == 2
    for command in searches:
        said = here(f"{command.removesuffix(' --dry-run')} --dry-run", tmp_path)
        assert "optimizer.learning_rate" in said and "batch.global_size" in said


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[None]:
    """The documented `bertha serve`, as a process of its own."""
    command, *others = starting("bertha serve ")
    for other in others:
        assert "would be served at" in run(f"{other} --dry-run", place), other
    words = in_our_words(command)
    assert (place / words[1]).is_dir(), "training made the bundle that is served"
    process = subprocess.Popen(
        [sys.executable, "-m", "bertha", *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if "docs" in line or time.monotonic() > deadline:
            break
    yield
    process.terminate()
    process.communicate(timeout=60)


@pytest.mark.ray
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_requests(place: Path, served: None, here: Run) -> None:
    for command in starting("bertha predict "):
        said = here(command, place)
        if "--out " not in command:
            assert "%" in said
            continue
        answers_file = place / command.partition("--out ")[2]
        given = (place / "reviews.csv").read_text().splitlines()
        found = answers_file.read_text().splitlines()
        assert found[0].startswith(f"{given[0]},label,probability_")
        assert all(row.startswith(f"{old},") for row, old in zip(found, given, strict=True))
    for command in starting("bertha evaluate "):
        assert "accuracy" in here(command, place)
    for command in starting("bertha export "):
        assert "README.md" in here(command, place)
    for command in starting("bertha push "):
        assert "model.safetensors" in here(command, place)
    answers = {command: json.loads(run(command, place)) for command in starting("curl ")}
    assert len(answers) >= 5
    single, *_ = (a for c, a in answers.items() if '"inputs": "' in c)
    assert {each["label"] for each in single} == {"1", "5"}
    (batch,) = (a for c, a in answers.items() if '"inputs": [' in c)
    assert len(batch) == 2
    (explained,) = (a for c, a in answers.items() if "explanations" in c)
    assert "wonderful" in json.dumps(explained) and "data" not in json.dumps(explained)
    (info,) = (a for c, a in answers.items() if "/info" in c)
    assert info["max_input_length"] > 0


@pytest.mark.ray
def test_building_and_deploying_commands(place: Path, served: None, here: Run) -> None:
    for build in starting("bertha build "):
        assert "would be measured" in here(f"{build} --dry-run", place)
    kinds = ("deploy", "promote", "rollback", "list", "history", "key")
    asked = [each for each in commands_of(ROOT / "docs/registry.md") if each.startswith("bertha ")]
    assert [command.split()[1] for command in asked] == [kinds[0], *kinds]
    said = [here(command, place) for command in asked]
    assert "canary 2 on 10.0%" in said[1] and "live 2" in said[2] and "live 1" in said[3]


@pytest.mark.ray
def test_the_example_from_csv_to_endpoint(place: Path) -> None:
    script = ROOT / "examples/csv_to_endpoint.sh"
    said = run(f"PORT=8013 bash {script} reviews.csv body stars {SHORT}", place)
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("[{")]
    assert [{each["label"] for each in answer} for answer in answers] == [{"1", "5"}]
    assert "Aborted" not in said, "the server is ended by a signal, in order"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.sh")), ids=lambda p: p.name)
def test_examples_use_commands_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    used = re.findall(r"^\s*bertha (\w+)", script.read_text("utf-8"), flags=re.M)
    assert used and set(used) <= bertha.COMMANDS.keys()
