"""Leases: who holds one, who is refused, and who notices that it is gone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.paths import ROOT
from trainers.storage import lease as leases
from trainers.storage.directory import SyncedDirectory
from trainers.storage.filesystem import StoreError
from trainers.storage.lease import HOLDER, Holder, LeaseError, hold_lease

# Holds the lease on argv[1], a directory, or argv[2], its home, says so, and waits for a line.
HOLD = """
import sys
from pathlib import Path
from trainers.storage.directory import SyncedDirectory
from trainers.storage.lease import hold_lease
with hold_lease(SyncedDirectory(Path(sys.argv[1]), sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def home() -> Iterator[str]:
    """The URL of a store that several machines see."""
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    MemoryFileSystem.store.clear()


@contextmanager
def another_process(path: Path, home: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process of this machine that holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def nobody(line: str) -> None:
    raise AssertionError(f"it waited: {line}")


class TestOneMachine:
    @pytest.mark.multiprocess
    def test_the_second_is_refused_by_the_name_of_the_first(self, tmp_path: Path) -> None:
        with another_process(tmp_path) as first:
            named = rf"{tmp_path}: \S+@\S+, process {first.pid}, since \d{{4}}-.* UTC, goes on with"
            with (
                pytest.raises(LeaseError, match=named),
                hold_lease(SyncedDirectory(tmp_path), say=nobody),
            ):
                raise AssertionError("two hold it")
            first.send_signal(signal.SIGSTOP)  # here a paused one holds it all the same
            with (
                pytest.raises(LeaseError, match=named),
                hold_lease(SyncedDirectory(tmp_path), say=nobody, take_over=True),
            ):
                raise AssertionError("two hold it")

    @pytest.mark.multiprocess
    @pytest.mark.parametrize("is_store", [False, True], ids=["a directory", "a store"])
    def test_a_killed_one_blocks_nobody(self, tmp_path: Path, is_store: bool) -> None:
        # Each has its own copy of what is in the store, which here is a directory, too.
        home = f"file://{tmp_path}/home" if is_store else ""
        path = tmp_path / "first"
        with another_process(path, home) as first:
            first.kill()
            first.wait()
            second = tmp_path / "second" if is_store else path
            with hold_lease(SyncedDirectory(second, home), say=nobody) as lease:
                assert lease.is_held

    @pytest.mark.multiprocess
    def test_a_dying_one_is_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, refused = fcntl.flock, list[int]()
        with another_process(tmp_path) as first:

            def lock_or_kill(handle: int, operation: int) -> None:
                try:
                    lock(handle, operation)
                except BlockingIOError:
                    refused.append(first.pid)
                    first.kill()
                    raise

            monkeypatch.setattr(fcntl, "flock", lock_or_kill)
            with hold_lease(SyncedDirectory(tmp_path), wait_seconds=60, say=nobody) as lease:
                assert lease.is_held and refused

    def test_it_ends_with_its_block(self, tmp_path: Path) -> None:
        directory = SyncedDirectory(tmp_path)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), hold_lease(directory, say=nobody) as lease:
                assert lease.is_held
                _ = 1 / 0
        assert sorted(path.name for path in (tmp_path / "lease").iterdir()) == ["holder", "lock"]

    def test_a_number_of_a_process_that_another_has_now_is_no_life(self, tmp_path: Path) -> None:
        own = Holder.from_this_process()
        assert own.machine and not own.is_gone
        assert replace(own, started="1").is_gone, "this process is older than the holder was"
        assert not replace(own, started="1", machine="another").is_gone, "nobody knows from here"
        assert not replace(own, started="1", machine="").is_gone

    def test_a_disk_without_locks_has_the_signs_of_life(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
        with (
            hold_lease(SyncedDirectory(tmp_path), say=nobody),
            pytest.raises(LeaseError, match=f"process {os.getpid()}"),
            hold_lease(SyncedDirectory(tmp_path), say=lambda line: None),
        ):
            raise AssertionError("two hold it")

    def test_a_place_that_cannot_be_written_is_one_sentence(self) -> None:
        with (
            pytest.raises(StoreError, match=r"lease/lock: cannot be written: .* --run"),
            hold_lease(SyncedDirectory(Path("/proc/self/none"))),
        ):
            pass

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"5", bytes(range(128, 256)), b'{"owner": "a", "pid": []}']
    )
    def test_a_damaged_name_is_nobody(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "lease").mkdir()
        (tmp_path / HOLDER).write_bytes(content)
        with hold_lease(SyncedDirectory(tmp_path), say=nobody) as lease:
            assert lease.is_held
            (tmp_path / HOLDER).write_bytes(content)
            with pytest.raises(LeaseError, match="another process has taken it over"):
                lease.check_held()


class TestTwoMachines:
    """Each with a disk of its own, and no lock in common."""

    def test_one_that_lives_is_not_disturbed(
        self, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
        said: list[str] = []
        with hold_lease(SyncedDirectory(tmp_path / "first", home), say=nobody) as lease:
            with (
                pytest.raises(LeaseError, match=rf"{home}: .*process {os.getpid()}, since"),
                hold_lease(SyncedDirectory(tmp_path / "second", home), say=said.append),
            ):
                raise AssertionError("two hold it")
            lease.check_held()
        assert len(said) == 1 and said[0].startswith(f"{home}: waiting 30s for a sign of life of")

    def test_one_that_is_silent_loses_it_and_notices(
        self, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "BEAT_SECONDS", 1000.0)  # as if it were paused
        monkeypatch.setattr(leases, "TERM_SECONDS", 0.3)
        first, second = (SyncedDirectory(tmp_path / name, home) for name in ("first", "second"))
        with hold_lease(first, say=nobody) as early:
            early.check_held()
            with hold_lease(second, say=lambda line: None) as late:
                late.check_held()
                with pytest.raises(LeaseError, match=rf"{home}: .* has taken it over from this"):
                    early.check_held()
                assert not early.is_held
            with pytest.raises(LeaseError):
                early.check_held()  # nor does it come back when the second has ended
        with hold_lease(first, say=nobody) as again:
            again.check_held()

    def test_one_that_has_ended_is_not_waited_for(self, home: str, tmp_path: Path) -> None:
        for name in ("first", "second"):
            with hold_lease(SyncedDirectory(tmp_path / name, home), say=nobody) as lease:
                lease.check_held()

    def test_the_dead_of_another_machine_are_waited_for_one_term(
        self, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "TERM_SECONDS", 0.2)
        dead = replace(Holder.from_this_process(), machine="another", host="gone", pid=1 << 22)
        directory, said = SyncedDirectory(tmp_path, home), list[str]()
        directory.write_shared(dead.beat_file, "7\n")
        directory.write_shared(HOLDER, json.dumps(asdict(dead)))
        with hold_lease(directory, say=said.append) as lease:
            lease.check_held()
        assert len(said) == 1 and f"@gone, process {1 << 22}, since" in said[0]
        assert directory.store.list_files("lease") == [HOLDER]

    def test_who_has_the_right_takes_it_at_once(self, home: str, tmp_path: Path) -> None:
        first, second = (SyncedDirectory(tmp_path / name, home) for name in ("first", "second"))
        with hold_lease(first) as early, hold_lease(second, say=nobody, take_over=True) as late:
            late.check_held()
            with pytest.raises(LeaseError):
                early.check_held()
