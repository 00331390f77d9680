"""Bundles in a store: numbered once, kept in a cache by their digest, and read before fetching."""

import shutil
from pathlib import Path

import pytest

from serving.registry.artifacts import ArtifactStore, bundle_digest
from tests.support.registries import KINDS, empty_store, memory_s3_store
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import CARD_FILE, BundleError, EngineRecord, read_card, serialize_card
from trainers.storage.atomic import file_sha256
from trainers.storage.filesystem import StoreError
from trainers.storage.store import LocalStore, Store


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -3.0])


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, tmp_path)


def test_a_bundle_gets_the_number_after_the_highest_claim(store: Store, bundle: Path) -> None:
    for name in ("2", "10", "notes"):
        store.create_file(f"numbers/claims/{name}", b"somebody's")
    store.create_file("numbers-2/claims/99", b"of another name")
    assert ArtifactStore(store).add_bundle(bundle, "numbers", b"mine") == "11"
    assert store.read_bytes("numbers/claims/11") == b"mine"
    card = (bundle / CARD_FILE).read_bytes()
    assert store.read_bytes(f"numbers/versions/11/{CARD_FILE}") == card


class StaleListing(LocalStore):
    """A store in which others claim numbers after the listing."""

    def list_files(self, folder: str) -> list[str]:
        return []


def test_a_number_that_another_claimed_meanwhile_is_passed_over(
    bundle: Path, tmp_path: Path
) -> None:
    store = StaleListing(tmp_path)
    for name in ("1", "2", "3"):
        store.create_file(f"numbers/claims/{name}", b"somebody's")
    assert ArtifactStore(store).add_bundle(bundle, "numbers", b"mine") == "4"


def test_the_number_of_a_deleted_bundle_stays_taken(store: Store, bundle: Path) -> None:
    artifacts = ArtifactStore(store)
    for claim in (b"one", b"two"):
        artifacts.add_bundle(bundle, "numbers", claim)
    artifacts.delete_bundle("numbers", "2")
    assert store.list_files("numbers/versions/2") == []
    assert artifacts.read_card("numbers", "1") == read_card(bundle)
    assert artifacts.add_bundle(bundle, "numbers", b"three") == "3"


def test_a_bundle_is_cached_by_its_digest_alone(bundle: Path, tmp_path: Path) -> None:
    store, digest = memory_s3_store(), bundle_digest(bundle)
    artifacts = ArtifactStore(store)
    artifacts.add_bundle(bundle, "numbers", b"one")
    fetched = artifacts.fetch_bundle("numbers", "1", digest, tmp_path)
    assert fetched == tmp_path / digest[:16] and read_card(fetched) == read_card(bundle)
    artifacts.delete_bundle("numbers", "1")
    assert artifacts.fetch_bundle("sums", "7", digest, tmp_path) == fetched


def test_a_bundle_of_another_digest_says_to_register_it_again(bundle: Path, tmp_path: Path) -> None:
    store = memory_s3_store()
    ArtifactStore(store).add_bundle(bundle, "numbers", b"one")
    with pytest.raises(BundleError) as refused:
        ArtifactStore(store).fetch_bundle("numbers", "1", "0" * 64, tmp_path)
    place = f"{store.address}/numbers/versions/1"
    assert str(refused.value) == (
        f"{place} is not the bundle that was registered: bundle.json has another SHA-256; put its "
        "files back, or register the bundle again and deploy that"
    )
    assert not (tmp_path / ("0" * 16)).exists()


def test_a_sound_bundle_in_the_place_of_another_is_refused(
    store: Store, bundle: Path, tmp_path: Path
) -> None:
    artifacts, digest = ArtifactStore(store), bundle_digest(bundle)
    artifacts.add_bundle(bundle, "numbers", b"one")
    other = write_linear_bundle(tmp_path / "other", [1.0, 1.0])
    store.upload_directory(other, "numbers/versions/1")
    for read in (
        lambda: artifacts.fetch_bundle("numbers", "1", digest, tmp_path / "cache"),
        lambda: artifacts.read_card("numbers", "1", digest),
        lambda: artifacts.verify_bundle("numbers", "1", digest),
    ):
        with pytest.raises(BundleError, match=r"versions/1 is not .* has another SHA-256; put its"):
            read()
    assert artifacts.read_card("numbers", "1", bundle_digest(other)) == read_card(other)
    store.upload_directory(bundle, "numbers/versions/1")
    fetched = artifacts.fetch_bundle("numbers", "1", digest, tmp_path / "cache")
    assert bundle_digest(fetched) == digest


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("model.safetensors", "model.safetensors is not the file that was written"),
        ("config.json", "config.json is missing"),
        (CARD_FILE, "bundle.json is missing"),
        ("", "bundle.json is missing"),
    ],
)
def test_a_version_is_verified_file_by_file(
    store: Store, bundle: Path, tmp_path: Path, file: str, reason: str
) -> None:
    artifacts, digest = ArtifactStore(store), bundle_digest(bundle)
    artifacts.add_bundle(bundle, "numbers", b"one")
    artifacts.verify_bundle("numbers", "1", digest)
    path = f"numbers/versions/1/{file}".rstrip("/")
    if file == "model.safetensors":
        weights = store.read_bytes(path)
        store.write_bytes(path, weights[:-1] + bytes([weights[-1] ^ 1]))
    else:
        store.remove(path)
    with pytest.raises(BundleError) as refused:
        artifacts.verify_bundle("numbers", "1", digest)
    place = f"{store.address}/numbers/versions/1"
    assert str(refused.value).startswith(f"{place} is not the bundle that was registered: {reason}")
    assert "bertha-" not in str(refused.value), "the place of a copy that is gone"


class FullDisk(LocalStore):
    """A store with space for all but the weights."""

    def put_file(self, source: Path, path: str) -> None:
        if source.name == "model.safetensors":
            raise StoreError(f"{path}: cannot be written: No space left on device")
        super().put_file(source, path)


def test_a_copy_that_fails_leaves_nothing_but_its_number(bundle: Path, tmp_path: Path) -> None:
    full, store = FullDisk(tmp_path), LocalStore(tmp_path)
    with pytest.raises(StoreError, match="No space left"):
        ArtifactStore(full).add_bundle(bundle, "numbers", b"one")
    assert store.list_files("numbers") == ["numbers/claims/1"]
    assert not (tmp_path / "numbers" / "versions" / "1").exists()
    assert ArtifactStore(store).add_bundle(bundle, "numbers", b"two") == "2"


def test_a_card_that_is_unreadable_is_named_at_its_address(store: Store) -> None:
    store.create_file(f"numbers/versions/1/{CARD_FILE}", b"{}")
    with pytest.raises(BundleError) as refused:
        ArtifactStore(store).read_card("numbers", "1")
    assert str(refused.value).startswith(f"{store.address}/numbers/versions/1/{CARD_FILE} is not")


def test_a_digest_is_that_of_the_card_once_all_files_are_verified(
    bundle: Path, tmp_path: Path
) -> None:
    assert bundle_digest(bundle) == file_sha256(bundle / CARD_FILE)
    built = shutil.copytree(bundle, tmp_path / "built")
    engine = EngineRecord(
        name="onnxruntime fp32",
        files={"onnx/model.onnx": "0" * 64},
        agreement=1,
        max_logit_difference=0,
        rows=1,
    )
    card = read_card(built).model_copy(update={"engines": (engine,)})
    (built / CARD_FILE).write_text(serialize_card(card))
    with pytest.raises(BundleError) as refused:
        bundle_digest(built)
    assert str(refused.value) == (
        f"{built}: onnxruntime fp32: onnx/model.onnx is missing; build it again"
    )
