"""A Ray of this machine and this user: its directory, its address, its variables, its end."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import local_ray
from cluster.local_ray import LocalRayError, run_local_ray, temporary_env
from cluster.private_files import UnsafePathError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a name short enough for Ray's sockets, that RAY_TMPDIR names."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        monkeypatch.setenv("RAY_TMPDIR", directory)
        yield Path(directory)


class TestDirectory:
    def test_it_is_private_and_where_the_user_wants_it(self, place: Path) -> None:
        directory = local_ray.make_ray_directory()
        assert directory.parent == place
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        longest = directory / local_ray.LONGEST_SOCKET
        assert len(os.fsencode(longest)) <= local_ray.SOCKET_PATH_BYTES

    def test_without_ray_tmpdir_it_is_where_temporary_files_are(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_TMPDIR")
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        assert local_ray.make_ray_directory().parent == place

    def test_where_sockets_would_have_too_long_a_name_it_is_in_tmp(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 10)))
        directory = local_ray.make_ray_directory()
        try:
            assert directory.parent == Path("/tmp")
        finally:
            directory.rmdir()

    def test_a_place_that_is_none_is_named_with_the_way_out(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_TMPDIR", f"{place}/x")
        with pytest.raises(
            LocalRayError, match=f"^{place}/x: .*No such file .* at most [0-9]+ bytes in RAY_TMPDIR"
        ):
            local_ray.make_ray_directory()

    def test_one_where_others_could_replace_it_is_refused(self, place: Path) -> None:
        place.chmod(0o777)  # without the sticky bit
        with pytest.raises(UnsafePathError, match=f"everybody may write to {place}"):
            local_ray.make_ray_directory()
        assert list(place.iterdir()) == []


class TestTemporaryEnv:
    def test_what_the_user_has_set_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BERTHA_SET", "the user's")
        monkeypatch.delenv("BERTHA_UNSET", raising=False)
        values = {"BERTHA_SET": "a", "BERTHA_UNSET": "b"}
        with pytest.raises(ZeroDivisionError), temporary_env(values):
            assert (os.environ["BERTHA_SET"], os.environ["BERTHA_UNSET"]) == ("the user's", "b")
            _ = 1 / 0
        assert os.environ["BERTHA_SET"] == "the user's" and "BERTHA_UNSET" not in os.environ


def find_processes(argument: str, seconds: float) -> list[psutil.Process]:
    """Return the processes that have this in their command line still after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(argument in each for each in process.info["cmdline"] or [])
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


@pytest.mark.ray
def test_it_is_on_loopback_and_keeps_its_logs_where_the_block_fails(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray._private import ray_constants

    with pytest.raises(ZeroDivisionError), run_local_ray(object_store_bytes=128 << 20):
        assert ray.util.get_node_ip_address() == "127.0.0.1"
        assert ray_constants.ENABLE_RAY_CLUSTER and "AUTOSCALER_METRIC_PORT" not in os.environ
        (directory,) = place.iterdir()
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert session.parent == directory / "ray"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        _ = 1 / 0
    assert not ray.is_initialized()
    logs = directory / "ray" / "session_latest" / "logs"
    assert f"Ray's logs are kept in {logs}" in capfd.readouterr().err
    assert (logs / "raylet.out").is_file()
    shutil.rmtree(directory)


WATCHING = """
import ray, sys
from cluster.local_ray import run_local_ray
with run_local_ray(object_store_bytes=128 << 20) as local_ray:
    (server,) = ray._private.worker._global_node.all_processes[sys.argv[1]]
    server.process.kill()
    local_ray.watch()
"""


@pytest.mark.ray
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_the_end_of_a_server_ends_it_with_one_sentence(place: Path, server: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WATCHING, server], capture_output=True, text=True, timeout=90
    )
    assert ended.returncode == 1
    assert f"LocalRayError: Ray's {server} has ended" in ended.stderr.splitlines()[-1]
    (directory,) = place.iterdir()
    assert f"Ray's logs are kept in {directory}/ray" in ended.stderr
    assert find_processes(str(directory), seconds=30) == []
