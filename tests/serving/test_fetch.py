"""Bundles by path or URL: a verified copy for as long as it is used, and its engines put back."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.fetch import local_copy, resolve_bundle, upload_engines
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import CARD_FILE, BundleError, EngineRecord, read_card, serialize_card
from trainers.storage.filesystem import StoreError
from trainers.storage.store import open_store


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_linear_bundle(tmp_path / "numbers" / "bundle", [2.0, -3.0])


@pytest.fixture
def url(bundle: Path) -> Iterator[str]:
    """The same bundle in a file system in memory."""
    home = f"memory://{uuid.uuid4().hex}"
    open_store(home).upload_directory(bundle, "numbers/bundle")
    yield f"{home}/numbers/bundle"
    open_store(home).remove("numbers")


def with_engine(bundle: Path, file: str) -> Path:
    """The bundle, its card naming an engine of that file."""
    engine = EngineRecord(
        name="onnxruntime fp32", files={file: "0" * 64}, agreement=1, max_logit_difference=0, rows=1
    )
    card = read_card(bundle).model_copy(update={"engines": (engine,)})
    (bundle / CARD_FILE).write_text(serialize_card(card))
    return bundle


def test_a_path_is_the_directory_itself(bundle: Path) -> None:
    with local_copy(str(bundle)) as directory:
        assert directory == bundle
    assert bundle.exists()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_url_is_a_copy_under_the_name_of_its_run_that_goes_again(
    url: str, bundle: Path, end: str
) -> None:
    with local_copy(url + end) as directory:
        assert directory != bundle
        assert directory.parts[-2:] == ("numbers", "bundle")
        assert read_card(directory) == read_card(bundle)
        assert {p.name for p in directory.iterdir()} == {p.name for p in bundle.iterdir()} - {
            "README.md"
        }
    assert not directory.parent.exists()


def test_a_run_stands_for_its_bundle(bundle: Path) -> None:
    (bundle.parent / "recipe.yaml").write_text("task: regression\n")
    with local_copy(str(bundle.parent)) as directory:
        assert directory == bundle
    assert resolve_bundle(str(bundle)) == str(bundle)


def test_a_run_at_a_url_stands_for_its_bundle_under_its_name(url: str, bundle: Path) -> None:
    with local_copy(url.removesuffix("bundle")) as directory:
        assert directory.parts[-2:] == ("numbers", "bundle")
        assert read_card(directory) == read_card(bundle)


def test_a_run_that_left_no_bundle_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: regression\n")
    with (
        pytest.raises(BundleError, match=r"a run that has left no bundle"),
        local_copy(str(tmp_path)),
    ):
        raise AssertionError


def test_engines_of_a_run_at_a_url_are_put_into_its_bundle(url: str, bundle: Path) -> None:
    (with_engine(bundle, "onnx/model.onnx") / "onnx").mkdir()
    (bundle / "onnx" / "model.onnx").write_bytes(b"graph")
    upload_engines(bundle, url.removesuffix("/bundle"))
    assert open_store(url).read_bytes("onnx/model.onnx") == b"graph"


def test_a_url_without_a_card_says_what_leaves_one(url: str) -> None:
    with (
        pytest.raises(BundleError, match=rf"^{url}x: no bundle\.json; .* leaves RUN/bundle$"),
        local_copy(f"{url}x"),
    ):
        raise AssertionError


def test_a_damaged_file_is_named_at_its_url(url: str) -> None:
    open_store(url).write_bytes("config.json", b"{}")
    with (
        pytest.raises(BundleError, match=rf"^{url}: config\.json is not the file that was written"),
        local_copy(url),
    ):
        raise AssertionError


def test_what_the_card_does_not_list_is_not_fetched(url: str) -> None:
    store = open_store(url)
    for name in ("pytorch_model.bin", "added_tokens.json", "deep/er"):
        store.write_bytes(name, b"of a stranger")
    with local_copy(url) as directory:
        assert {path.name for path in directory.iterdir()} == {
            "bundle.json",
            "config.json",
            "model.safetensors",
        }


@pytest.mark.parametrize("name", ["../escaped", "/escaped"])
def test_a_name_that_leads_out_is_not_fetched(url: str, bundle: Path, name: str) -> None:
    card = json.loads((bundle / CARD_FILE).read_text())
    card["files"][name] = "0" * 64
    open_store(url).write_bytes(CARD_FILE, json.dumps(card).encode())
    with pytest.raises(BundleError, match=rf"{name}' leads out"), local_copy(url):
        raise AssertionError


def test_a_file_url_is_a_bundle_too(bundle: Path) -> None:
    with local_copy(f"file://{bundle}") as directory:
        assert directory != bundle
        assert read_card(directory) == read_card(bundle)


def test_a_file_that_is_missing_at_a_url_is_named(url: str) -> None:
    open_store(url).remove("model.safetensors")
    with (
        pytest.raises(BundleError, match=rf"^{url}: model\.safetensors is missing"),
        local_copy(url),
    ):
        raise AssertionError


def test_engines_are_put_back_with_the_card_that_names_them(url: str, bundle: Path) -> None:
    (with_engine(bundle, "onnx/model.onnx") / "onnx").mkdir()
    (bundle / "onnx" / "model.onnx").write_bytes(b"graph")
    (bundle / "README.md").write_text("for people")
    upload_engines(bundle, f"{url}/")
    store = open_store(url)
    assert store.read_bytes("onnx/model.onnx") == b"graph"
    assert store.read_bytes(CARD_FILE) == (bundle / CARD_FILE).read_bytes()
    assert store.read_bytes("README.md") != b"for people"


def test_an_upload_that_breaks_off_leaves_the_old_card(url: str, bundle: Path) -> None:
    before = (bundle / CARD_FILE).read_bytes()
    with pytest.raises(StoreError):
        upload_engines(with_engine(bundle, "onnx/missing.onnx"), url)
    assert open_store(url).read_bytes(CARD_FILE) == before


def test_engines_of_a_path_stay_where_they_were_built(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    upload_engines(with_engine(bundle, "onnx/missing.onnx"), str(other))
    assert read_card(other).engines == ()
