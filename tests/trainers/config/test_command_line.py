"""Flags of other trainers on a command line that takes settings, and a command without a recipe."""

import argparse

import pytest

from cluster.settings import find_settings
from trainers.__main__ import main, parse_arguments
from trainers.config import trainer_names
from trainers.config.command_line import describe_recipes, parse_with_settings
from trainers.config.recipe import SHIPPED, Recipe


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--epochs", "3"], "stopping.epochs=3"),
        (["--epochs=3"], "stopping.epochs=3"),
        (["--num-train-epochs", "3"], "stopping.epochs=3"),
        (["--lr", "1e-4"], "optimizer.learning_rate=1e-4"),
        (["-lr", "1e-4"], "optimizer.learning_rate=1e-4"),
        (["--learning_rate=1e-4"], "optimizer.learning_rate=1e-4"),
        (["--batch-size", "16"], "batch.global_size=16"),
        (["--per_device_train_batch_size", "16"], "batch.global_size=16"),
        (["--max-seq-length", "64"], "batch.max_length=64"),
        (["--model", "bert-base-uncased"], "model.name=bert-base-uncased"),
        (["--source", "mine.csv"], "data.source=mine.csv"),
        (["--label", "stars"], "data.label=stars"),
        (["--stopping.epochs", "3"], "stopping.epochs=3"),
        (["--seed", "7"], "seed=7"),
        (["--fp16"], "precision=fp16"),
        (["--lr"], "optimizer.learning_rate=..."),
        (["--lr", "data.label=stars"], "optimizer.learning_rate=..."),
        (["--output-dir", "out"], "--run DIRECTORY"),
        (["epochs", "3"], "stopping.epochs=3"),
        (["lr", "1e-4"], "optimizer.learning_rate=1e-4"),
    ],
)
def test_a_flag_that_is_a_setting_is_answered_with_it(
    words: list[str], written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["csv.yaml", *words], "bertha")
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    flag = words[0].partition("=")[0]
    assert said.startswith(f"error: {flag}: ") and said.endswith(written)


def test_every_flag_at_fault_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["csv.yaml", "--lr", "1e-4", "--epochs", "3", "--nonsense"]
    with pytest.raises(SystemExit):
        parse_arguments(words, "bertha")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("write optimizer.learning_rate=1e-4")
    assert second.endswith("write stopping.epochs=3") and third == "  --nonsense: no such option"


def test_a_flag_that_nobody_knows_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["csv.yaml", "--nonsense"], "bertha")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("usage: bertha train ")
    assert (
        "unrecognized arguments: --nonsense; settings of the recipe are written key=value" in said
    )


def test_options_and_settings_mix_as_before() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--run")
    found = parse_with_settings(parser, ["csv", "a=1", "--run", "here", "b=2"])
    assert (found.recipe, found.overrides, found.run) == ("csv", ["a=1", "b=2"], "here")


def test_the_other_names_stand_for_settings_that_exist() -> None:
    for name, written in trainer_names.SETTINGS.items():
        key = written.partition("=")[0]
        assert key in find_settings(Recipe, key.rpartition(".")[2]), name
        assert not set(trainer_names.OPTIONS) & {name}


def test_without_a_recipe_the_shipped_ones_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], "bertha") == 2
    said = capsys.readouterr().out
    assert said.startswith("usage: bertha train RECIPE")
    assert all(f"\n  {path.stem} " in said for path in SHIPPED.glob("*.yaml"))
    assert "as in   bertha train csv.yaml data.source=reviews.csv" in said
    assert "`bertha tune --help`" in describe_recipes("bertha tune", "csv.yaml")
