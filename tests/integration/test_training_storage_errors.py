"""Stores that a run cannot live in: one line each, before anything is trained."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.s3 import emulated_s3
from trainers.__main__ import main

s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with emulated_s3("runs") as address:
        yield address


class Refusing(BaseHTTPRequestHandler):
    """S3 as it answers who may not write."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of an endpoint where nothing may be written."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(tiny_bert: Path, corpus: Path) -> list[str]:
    return [f"model.name={tiny_bert}", f"data.source={corpus}"]


def told_of(run: str, settings: list[str], disk: Path, capsys: pytest.CaptureFixture[str]) -> str:
    cluster = disk / "cluster.yaml"
    metadata = {"devices_per_node": 0, "cache": str(disk / "cache")}
    cluster.write_text(json.dumps({"provider": {"type": "local"}, "metadata": metadata}))
    s3fs.S3FileSystem.clear_instance_cache()
    assert main(["csv", *settings, "--cluster", str(cluster), "--run", run]) == 2
    assert not (disk / "cache").exists(), "not even the data has been read"
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("run", "changes", "line"),
    [
        ("s3://nowhere/run", {}, r"s3://nowhere/run/.*: no such bucket; create it"),
        ("gs://runs/run", {}, r"gs://runs/run: cannot be reached: .*gcsfs"),
        ("s3://runs/run", {"KEY": ""}, r"Unable to locate credentials; run `aws configure`"),
        (
            "s3://runs/run",
            {"URL": "http://127.0.0.1:9"},
            r"Could not connect .*are AWS_ENDPOINT",
        ),
        ("s3://runs/run", {"URL": "refusing"}, r"Access Denied; .*PutObject and DeleteObject"),
    ],
    ids=["bucket", "kind", "credentials", "endpoint", "permission"],
)
def test_a_store_that_cannot_be_used(
    bucket: str,
    refusing: str,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    changes: dict[str, str],
    line: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if "KEY" in changes:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if "URL" in changes:
        monkeypatch.setenv("AWS_ENDPOINT_URL", changes["URL"].replace("refusing", refusing))
    assert re.search(f"^error: .*{line}", told_of(run, settings, tmp_path, capsys))


def test_without_the_extra(
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]._registry  # `fsspec.registry` is another thing
    monkeypatch.delitem(known, "s3", raising=False)
    told = told_of("s3://runs/run", settings, tmp_path, capsys)
    assert re.search(r'^error: s3://runs/run: .*pip install "bertha-ray\[aws\]"$', told)
