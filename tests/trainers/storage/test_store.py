"""Stores: a file is created once and whole, in a directory and as S3 answers."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.registries import KINDS, empty_store
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import LocalStore, S3Store, Store, open_store


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, tmp_path)


class TestStore:
    def test_a_file_is_created_once(self, store: Store) -> None:
        assert store.create_file("a/b/1", b"mine")
        assert not store.create_file("a/b/1", b"yours")
        assert store.create_file("a/b/1", b"mine"), "an answer that got lost is asked for again"
        assert store.read_bytes("a/b/1") == b"mine"
        assert store.list_files("a") == ["a/b/1"]
        assert store.list_files("nowhere") == []
        with pytest.raises(NotFound, match="no such file"):
            store.read_bytes("a/b/2")

    def test_a_directory_goes_up_and_comes_down(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "onnx").mkdir(parents=True)
        (source / "onnx" / "model.onnx").write_bytes(b"1")
        (source / "bundle.json").write_bytes(b"2")
        store.upload_directory(source, "name/versions/1")
        assert store.list_files("name") == [
            "name/versions/1/bundle.json",
            "name/versions/1/onnx/model.onnx",
        ]
        target = tmp_path / "target"
        target.mkdir()
        store.download_directory("name/versions/1", target)
        assert (target / "onnx" / "model.onnx").read_bytes() == b"1"
        store.remove("name/versions/1")
        store.remove("name/versions/1")
        assert store.list_files("name") == []

    def test_what_a_killed_write_left_is_not_there(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.create_file("a/1", b"whole")
        (tmp_path / "a" / ".2.0123.tmp").write_bytes(b"ha")
        (tmp_path / "versions" / ".3.77.tmp").mkdir(parents=True)
        (tmp_path / "versions" / ".3.77.tmp" / "config.json").write_bytes(b"{")
        assert store.list_files("a") == ["a/1"]
        assert store.list_files("versions") == []
        assert sorted(os.listdir(tmp_path / "a")) == [".2.0123.tmp", "1"], "nothing of our own"

    def test_a_directory_that_cannot_be_one_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=r"file/a: cannot be written: .* s3://BUCKET/PREFIX"):
            LocalStore(tmp_path / "file").create_file("a", b"")

    def test_addresses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_store("registry").address == str(tmp_path / "registry")
        assert open_store(f"file://{tmp_path}/r").address == str(tmp_path / "r")
        assert isinstance(open_store(f"file://{tmp_path}/r"), LocalStore)
        assert isinstance(open_store("memory://r"), S3Store)
        with pytest.raises(StoreError, match="nowhere://r: cannot be reached"):
            open_store("nowhere://r")


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Scripted(MemoryFileSystem):  # type: ignore[misc]
    """A file system whose writes fail in turn as S3 lets them, or not at all."""

    def __init__(self, codes: list[str], **settings: Any) -> None:
        super().__init__(global_store=False, **settings)
        self.codes = codes

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        assert mode == "create"
        code = self.codes.pop(0) if self.codes else ""
        if code == "lost answer":
            super().pipe_file(path, value, mode)
        if code:
            raise OSError(errno.EINVAL, "as s3fs has it") from ClientError(
                "PreconditionFailed" if code == "lost answer" else code
            )
        super().pipe_file(path, value, mode)


class TestConditionalWrites:
    """What S3 answers to a put with If-None-Match, as s3fs passes it on."""

    def make(self, *codes: str) -> S3Store:
        return S3Store(Scripted(list(codes), skip_instance_cache=True), "/r", "memory://r")

    def test_a_refused_write_lost(self) -> None:
        store = self.make("", "PreconditionFailed")
        assert store.create_file("a", b"theirs")
        assert not store.create_file("a", b"ours")

    def test_a_write_whose_answer_got_lost_won(self) -> None:
        assert self.make("lost answer").create_file("a", b"ours")

    def test_a_write_beside_another_is_tried_again(self) -> None:
        assert self.make("ConditionalRequestConflict", "ConditionalRequestConflict").create_file(
            "a", b""
        )

    def test_other_failures_are_told(self) -> None:
        with pytest.raises(StoreError, match=r"memory://r/a: .*as s3fs has it; .*s3:ListBucket"):
            self.make("AccessDenied").create_file("a", b"")


class TestNamesAndFiles:
    """What a name in a store may mean on this machine, and whose fault a missing file is."""

    @pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "/evil"])
    def test_a_key_that_leads_out_is_not_downloaded(self, tmp_path: Path, name: str) -> None:
        store = S3Store(KeyedByText([f"/r/folder/{name}", "/r/folder/fine"]), "/r", "memory://r")
        target = tmp_path / "deep" / "target"
        with pytest.raises(StoreError, match=r"memory://r/folder: holds .*evil'.* leads out"):
            store.download_directory("folder", target)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_is_found_under_its_own_name(self, store: Store) -> None:
        """As `bundle.json` is looked for at a URL."""
        store.create_file("run/bundle.json", b"{}")
        assert store.list_files("run/bundle.json") == ["run/bundle.json"]

    def test_a_file_that_is_missing_here_is_not_the_stores_fault(
        self, store: Store, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFound, match=rf"^{tmp_path}/absent: no such file on this machine$"):
            store.put_file(tmp_path / "absent", "a/1")
        assert store.list_files("a") == []


class KeyedByText(MemoryFileSystem):  # type: ignore[misc]
    """A file system that lists keys as S3 does: any text."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(global_store=False, skip_instance_cache=True)
        self.keys = keys

    def find(self, path: str, **_: Any) -> dict[str, dict[str, str]]:
        return {key: {"type": "file"} for key in self.keys}
