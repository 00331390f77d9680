"""The front door: one command line, and the Python API."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bertha
from tests.support.paths import ROOT


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert bertha.main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in bertha.COMMANDS)


@pytest.mark.parametrize("name", bertha.COMMANDS)
def test_every_command_has_help_under_its_own_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bertha.main([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith(f"usage: bertha {name} ")


@pytest.mark.parametrize("package", ["trainers", "tuning", "serving", "cluster"])
def test_the_forms_that_jobs_use_stay(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m {package} ")


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert bertha.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: no command 'trian'; did you mean train?\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [("run", "serve or train"), ("fit", "train"), ("eval", "evaluate"), ("stop", "down")],
)
def test_a_word_of_other_programs_names_the_command(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bertha.main([word]) == 2
    assert capsys.readouterr().err == f"error: no command {word!r}; did you mean {said}?\n"


def test_words_of_other_programs_stand_for_commands_that_exist() -> None:
    assert not bertha.OTHER_WORDS.keys() & bertha.COMMANDS.keys()
    named = {name for names in bertha.OTHER_WORDS.values() for name in names.split()}
    assert named <= bertha.COMMANDS.keys()


# What stays in the older form: the forms themselves, and a command that `bertha` does not have.
OLDER = re.compile(r"python -m (trainers|tuning|serving|cluster)\b")
STAYS = re.compile(r'prog: str = "|python -m cluster watch|trainers\|tuning\|serving\|cluster')


def test_what_people_read_says_bertha_and_a_command() -> None:
    kinds = ("*.py", "*.md", "*.yaml", "*.html", "*.csv")
    folders = [*bertha.EXTRAS, "docs", "examples", "benchmarks"]
    paths = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*paths, ROOT / "README.md", ROOT / "bertha.py"]
        if path.relative_to(ROOT).parts[:2] != ("benchmarks", "results")
        for line in path.read_text("utf-8").splitlines()
        if OLDER.search(line) and not STAYS.search(line) and "USER.check_command" not in line
    ]
    assert found == []


def test_a_role_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")

    monkeypatch.setattr(bertha.importlib, "import_module", missing)
    assert bertha.main(["tune", "reviews.yaml"]) == 2
    said = capsys.readouterr().err
    assert said == 'error: optuna is not installed; pip install "bertha-ray[tune]"\n'


def test_recipes_are_listed_with_what_they_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert bertha.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shipped = sorted(path.stem for path in (ROOT / "trainers/recipes").glob("*.yaml"))
    assert [line.split()[0] for line in lines] == shipped
    assert all(len(line.split()) > 3 for line in lines)


def test_the_installed_script_is_this_module() -> None:
    script = Path(sys.executable).parent / "bertha"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bertha 0.")


def test_a_plan_from_python() -> None:
    found = bertha.plan("bert-large-pretrain", region="us-east-1", objective="time")
    assert found.best and all(offer.machine.region == "us-east-1" for offer in found.best)
    fastest = min(offer.seconds for offer in found.best)
    assert found.best[0].seconds == fastest


def test_predictions_from_python(tiny_classifier: Path) -> None:
    first, second = bertha.predict(tiny_classifier, ["a warm film", "a dull film"])
    assert set(first) == set(second) and sum(first.values()) == pytest.approx(1, abs=1e-6)
    assert list(first.values()) == sorted(first.values(), reverse=True)
    engine = bertha.load(tiny_classifier)
    assert bertha.predict(engine, ["a warm film"]) == [first]


def test_files_from_python(tiny_classifier: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "answers.jsonl"
    rows.write_text("text,truth\na warm film,positive\n,negative\na dull film,negative\n")
    done = bertha.predict_file(tiny_classifier, rows, out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert (done.rows, done.empty, len(answers)) == (3, 1, 3)
    (alone,) = bertha.predict(tiny_classifier, ["a dull film"])
    assert answers[2]["label"] == next(iter(alone))
    assert answers[2]["probability_positive"] == pytest.approx(alone["positive"], abs=1e-6)
    engine = bertha.load(tiny_classifier)
    with pytest.raises(bertha.BerthaError, match="exists; add --overwrite"):
        bertha.predict_file(engine, rows, out)
    found = bertha.evaluate(engine, [rows], label="truth", out=tmp_path / "errors.csv")
    assert found.rows == 2 and found.figures["accuracy"].low < found.figures["accuracy"].high


def test_a_bundle_goes_out_from_python(tiny_classifier: Path, tmp_path: Path) -> None:
    bertha.export(tiny_classifier, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()
    with pytest.raises(bertha.BerthaError, match="the hub cannot be reached"):
        bertha.push(tiny_classifier, "acme/reviews")


def test_a_missing_bundle_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(bertha.BerthaError, match="nowhere"):
        bertha.load(tmp_path / "nowhere")


def test_training_from_python_takes_a_recipe_and_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.runtime import fit

    asked = []
    monkeypatch.setattr(fit, "fit", lambda *arguments: asked.append(arguments))
    bertha.train("reviews.yaml", ["stopping.epochs=1"], run=tmp_path / "run", resume=True)
    ((recipe, cluster, run, resume),) = asked
    assert recipe.stopping.epochs == 1 and cluster.name and resume is True
    assert run == tmp_path / "run"


def test_serving_from_python_yields_the_address(
    tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import __main__ as commands
    from serving.deployment import app

    started = []

    @contextmanager
    def running(endpoint: object) -> Iterator[None]:
        started.append(endpoint)
        yield

    monkeypatch.setattr(app, "serve_locally", running)
    monkeypatch.setattr(commands.client, "wait_until_healthy", lambda url: None)
    with bertha.serve(tiny_classifier, port=8099) as url:
        assert url == "http://127.0.0.1:8099"
    assert started[0].port == 8099 and started[0].host == "127.0.0.1"
