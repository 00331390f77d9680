"""Bundles of runs that live in S3, where the command line takes a directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.__main__ import main
from tests.support.s3 import emulated_s3
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.models import card
from trainers.storage.store import open_store

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with emulated_s3("runs") as address:
        yield address


@pytest.fixture
def far(bucket: str, tiny_bert: Path, tmp_path: Path) -> Iterator[str]:
    """A bundle of a run in the bucket; the same lies at tmp_path / "bundle"."""
    open_store(bucket).upload_directory(
        write_tiny_bundle(tmp_path / "bundle", tiny_bert), "reviews/bundle"
    )
    yield f"{bucket}/reviews/bundle"
    open_store(bucket).remove("reviews")


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_it_answers_as_the_directory_does(
    far: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = said_by(capsys, "predict", tmp_path / "bundle", "a warm film")
    assert said_by(capsys, "predict", far, "a warm film") == near
    assert said_by(capsys, "run", f"{far}/", "--dry-run").startswith("reviews: classification")


def test_it_is_deployed_and_registered_under_the_name_of_its_run(
    far: str, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--registry", tmp_path / "registry")
    assert said_by(capsys, "deploy", far, *place) == "reviews  live 1  versions 1@live\n"
    assert said_by(capsys, "register", far, *place, "--as", "other") == "other:1\n"
    there = ("--registry", f"{bucket}/registry")
    assert said_by(capsys, "deploy", far, *there) == "reviews  live 1  versions 1@live\n"
    assert said_by(capsys, "predict", f"{bucket}/registry/reviews/versions/1", "a film")


def test_what_is_built_of_it_is_put_back(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_store(bucket).upload_directory(
        write_linear_bundle(tmp_path / "bundle", [2.0, -3.0]), "numbers/bundle"
    )
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("text,label\n" + "".join(f"{n} {-n},{5 * n}\n" for n in range(40)))
    said = said_by(capsys, "build", f"{bucket}/numbers/bundle", "--texts", numbers, "--rounds", 1)
    assert said.startswith(f"{bucket}/numbers/bundle: regression")
    open_store(bucket).download_directory("numbers/bundle", tmp_path / "fetched")
    assert [each.chosen for each in card.read_card(tmp_path / "fetched").engines] == [True]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model.safetensors", "model.safetensors is not the file that was written"),
        ("bundle.json", "no bundle.json; a training run leaves"),
    ],
)
def test_one_that_is_not_whole_is_one_line(
    far: str, bucket: str, capsys: pytest.CaptureFixture[str], file: str, line: str
) -> None:
    if file == "bundle.json":
        open_store(bucket).remove(f"reviews/bundle/{file}")
    else:
        open_store(bucket).write_bytes(f"reviews/bundle/{file}", b"something else")
    capsys.readouterr()
    assert main(["predict", far, "a film"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {far}: {line}")
