"""Leases: one process at a time writes a directory, wherever the directory is kept.

    with hold_lease(directory) as lease:
        lease.check_held()  # before each write that others will see
        ...

Two guards, because each is blind where the other sees. A kernel lock on `lease/lock` refuses a
second process on the machine at once, and is free as soon as its holder dies; but a file system of
several machines may not share locks, and a store has none. There `lease/holder` names who wrote it
last, and a file beside it changes every few seconds for as long as that process lives. Who wants
the lease watches that file for a term: no two clocks are ever compared. A process that was only
paused, and comes back after another took the lease, finds the other's name at its next `check`.
"""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainers.storage.directory import SyncedDirectory
from trainers.storage.filesystem import StoreError

FOLDER = "lease"
HOLDER = f"{FOLDER}/holder"
BEAT_SECONDS = 5.0  # between two signs of life
TERM_SECONDS = 30.0  # without one, after which a holder counts as dead
LOCK_POLL_SECONDS, BEAT_POLL_SECONDS = 0.1, 0.5  # the second is a request to a store
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # by a file system without locks


class LeaseError(StoreError):
    """A directory that another process writes; the message names that process."""


@dataclass(frozen=True)
class Holder:
    """The process that took a lease last.

    owner: unique. since: UTC. machine: of the kernel and its process ids; "" where that is unknown.
    started: what the kernel says of the start of process `pid`, to tell it from a later one.
    """

    owner: str
    user: str
    host: str
    pid: int
    since: str
    machine: str
    started: str

    @classmethod
    def from_this_process(cls) -> "Holder":
        """Describe this process, with a new owner."""
        return cls(
            owner=uuid.uuid4().hex,
            user=_user_name(),
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            machine=_machine_id(),
            started=_process_start(os.getpid()) or "",
        )

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, process {self.pid}, since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether the process was of this machine and has died; False where that is unknown."""
        if not self.machine or self.machine != _machine_id():
            return False
        return _process_start(self.pid) not in (self.started, "")

    @property
    def beat_file(self) -> str:
        """The file that changes while the process lives."""
        return f"{FOLDER}/beat-{self.owner}"


@dataclass(frozen=True)
class Lease:
    """The right to write `directory`, of the process `owner` and of those it starts."""

    directory: SyncedDirectory
    owner: str

    @property
    def is_held(self) -> bool:
        """Whether no other process has taken it. Raises StoreError where that cannot be read."""
        holder = _read_holder(self.directory)
        return holder is not None and holder.owner == self.owner

    def check_held(self) -> None:
        """Raise LeaseError where another process has taken the lease."""
        if self.is_held:
            return
        raise LeaseError(
            f"{self.directory.address}: {_name_holder(self.directory)} has taken it over from "
            "this process, which stops; look at that one, or end it and resume"
        )


@contextmanager
def hold_lease(
    directory: SyncedDirectory,
    wait_seconds: float = 0.0,
    take_over: bool = False,
    say: Callable[[str], None] = print,
) -> Iterator[Lease]:
    """Hold the lease on `directory` while the block runs.

    wait_seconds: for a process of this machine that is about to end. take_over: from whoever holds
    it elsewhere, who then notices. say: told before the lease of a silent holder is waited for.
    Raises LeaseError where another process holds it, StoreError where it cannot be written.
    """
    with _kernel_lock(directory, wait_seconds):
        before = _read_holder(directory)
        if before is not None and not take_over:
            _wait_for_silence(directory, before, say)
        holder = Holder.from_this_process()
        # Its sign of life first: a holder without one counts as having ended.
        _write_file(directory, holder.beat_file, "0\n")
        _write_file(directory, HOLDER, json.dumps(asdict(holder), indent=1) + "\n")
        if before is not None:
            directory.store.remove(before.beat_file)
        with _heartbeat(directory, holder):
            yield Lease(SyncedDirectory(directory.path, directory.home), holder.owner)


@contextmanager
def _kernel_lock(directory: SyncedDirectory, wait_seconds: float) -> Iterator[None]:
    """Lock the directory, or this machine's copy of it, against other processes here."""
    path, deadline = directory.path / FOLDER / "lock", time.monotonic() + wait_seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _translate(path, error) from None
    try:
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                raise _refuse(directory)
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise StoreError(f"the lock of {FOLDER}/lock cannot be had: {error}") from None
    return True


def _wait_for_silence(
    directory: SyncedDirectory, holder: Holder, say: Callable[[str], None]
) -> None:
    """Return once `holder` has ended or gives no sign of life. Raises LeaseError at a sign."""
    beat, deadline = directory.read_file(holder.beat_file), time.monotonic() + TERM_SECONDS
    if beat is None or holder.is_gone:
        return
    say(f"{directory.address}: waiting {TERM_SECONDS:.0f}s for a sign of life of {holder}")
    while time.monotonic() < deadline:
        time.sleep(BEAT_POLL_SECONDS)
        now = directory.read_file(holder.beat_file)
        if now is None or holder.is_gone:
            return
        if now != beat:
            raise _refuse(directory)


@contextmanager
def _heartbeat(directory: SyncedDirectory, holder: Holder) -> Iterator[None]:
    """Give signs of life while the block runs, and take the last one away at its end."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(BEAT_SECONDS):
            count += 1
            # Whoever finds the store or the disk failing, too, cannot take the lease meanwhile.
            with contextlib.suppress(StoreError):
                _write_file(directory, holder.beat_file, f"{count}\n")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(StoreError, OSError):  # the disk may be gone, and the block over
            directory.store.remove(holder.beat_file)


def _read_holder(directory: SyncedDirectory) -> Holder | None:
    """Return who took the lease last; None where nobody did, or the file is damaged."""
    data = directory.read_file(HOLDER)
    try:
        fields = json.loads(data or b"")
        return Holder(**{**fields, "pid": int(fields["pid"]), "owner": str(fields["owner"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _write_file(directory: SyncedDirectory, name: str, text: str) -> None:
    try:
        directory.write_shared(name, text)
    except OSError as error:
        raise _translate(directory.path / name, error) from None


def _translate(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror or error}; a run needs a directory with free "
        "space and your permission: name another with --run"
    )


def _refuse(directory: SyncedDirectory) -> LeaseError:
    return LeaseError(
        f"{directory.address}: {_name_holder(directory)} goes on with it; wait until that has "
        "ended, or end it"
    )


def _name_holder(directory: SyncedDirectory) -> str:
    holder = _read_holder(directory)
    return "another process" if holder is None else f"{holder},"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user {os.getuid()}"


def _machine_id() -> str:
    """Return what process ids are unique within: the running kernel and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """Return when a process of this machine began; "" where that is unknown, None if it is dead."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return None
    except OSError:  # of another user, and hidden
        return ""
    state, *others = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else others[18]
