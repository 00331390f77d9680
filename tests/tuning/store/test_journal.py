"""Journals that were cut or damaged, and disks that are full: nothing decided is lost."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.searches import (
    FakeCluster,
    as_dicts,
    open_journal,
    prepared_search,
    write_search,
)
from trainers.storage.directory import SyncedDirectory
from trainers.storage.lease import LeaseError
from tuning import study
from tuning.algorithms.trial import Trial
from tuning.execution import stop_signal
from tuning.execution.controller import SearchController
from tuning.results import dashboard, report
from tuning.store import reader
from tuning.store.journal import Journal
from tuning.store.reader import JOURNAL, RESULT, JournalError

PREPARED = prepared_search(sampler="random")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search of which 20 evaluations are written down."""
    write_search(tmp_path / "search", PREPARED, max_evals=20)
    return tmp_path / "search"


def search(journal: Journal, max_evals: int = 10**9) -> list[Trial]:
    cluster = FakeCluster(SearchController(PREPARED, journal, lambda _: None), max_evals)
    cluster.run()
    return journal.trials()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    return write_search(tmp_path_factory.mktemp("place") / "undisturbed", PREPARED)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.62, 0.9, 0.999])
def test_a_journal_cut_anywhere_ends_the_same(
    run: Path, undisturbed: list[Trial], share: float
) -> None:
    path = run / JOURNAL
    os.truncate(path, int(path.stat().st_size * share))
    assert as_dicts(search(open_journal(run, PREPARED))) == as_dicts(undisturbed)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"5", b"[]", bytes(range(128, 256)), b"\x00" * 300, b"[" * 500_000],
    ids=["empty", "cut", "a number", "a list", "bytes", "nulls", "too deep"],
)
def test_a_damaged_line_is_named_and_can_be_cut_off(
    run: Path, undisturbed: list[Trial], line: bytes
) -> None:
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:9], line + b"\n", *lines[9:]])
    (run / JOURNAL).write_bytes(damaged)
    named = f"{JOURNAL}, line 10: is no line of a journal; cut the file before it, and"
    for reading in (
        lambda: open_journal(run, PREPARED),
        lambda: reader.read_snapshot(run),
    ):
        with pytest.raises(JournalError, match=named):
            reading()
    with pytest.raises(JournalError, match=named):
        dashboard.Dashboard(run)
    assert (run / JOURNAL).read_bytes() == damaged
    (run / JOURNAL).write_bytes(b"".join(lines[:9]))
    assert as_dicts(search(open_journal(run, PREPARED))) == as_dicts(undisturbed)


def test_a_journal_without_its_beginning_is_one_sentence(run: Path) -> None:
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join(lines[5:]))
    with pytest.raises(JournalError, match=r"study.journal: its beginning is missing; put back"):
        open_journal(run, PREPARED)


def test_lines_that_say_nothing_are_one_sentence(run: Path) -> None:
    with (run / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 9, "worker_id": "a"}\n')
    with pytest.raises(JournalError, match=r"study.journal: its lines contradict each other"):
        open_journal(run, PREPARED)


def test_a_trial_that_lacks_something_is_one_sentence(run: Path) -> None:
    text = (run / JOURNAL).read_text().replace('"seed"', '"seat"')
    (run / JOURNAL).write_text(text)
    with pytest.raises(JournalError, match=r"study.journal: a trial lacks 'seed'; put back"):
        open_journal(run, PREPARED)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files that cannot grow beyond `size`, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_no_half_line(run: Path, undisturbed: list[Trial]) -> None:
    journal, path = open_journal(run, PREPARED), run / JOURNAL
    with (
        file_size_limit(path.stat().st_size + 700),
        pytest.raises(JournalError, match=r"study.journal: cannot be written: .*; make room, then"),
    ):
        search(journal)
    assert path.read_bytes().endswith(b"\n")
    assert as_dicts(search(open_journal(run, PREPARED))) == as_dicts(undisturbed)


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    run, prepared = SyncedDirectory(tmp_path), PREPARED
    with study.open_search(run, prepared) as first:
        with pytest.raises(LeaseError, match=rf"{tmp_path}: .*process {os.getpid()}, since .*end"):
            study.open_search(run, prepared).__enter__()
        first.controller.next_trial()
    with study.open_search(run, prepared) as again:
        assert len(again.controller.trials) == 1


def test_a_search_that_was_taken_over_writes_nothing(tmp_path: Path) -> None:
    run, prepared = SyncedDirectory(tmp_path), PREPARED
    with study.open_search(run, prepared) as first:
        trial = first.controller.next_trial()
        assert trial is not None
        evaluation = {"tokens": 10, "value": 0.5, "seconds": 1.0}
        first.on_report("0 0", trial.number, evaluation)
        decision = first.trial_directory(trial.number).path / stop_signal.DECISION
        decision.unlink()
        before = (tmp_path / JOURNAL).read_bytes()
        (tmp_path / "lease" / "holder").write_text("another's")
        with pytest.raises(LeaseError, match="another process has taken it over"):
            first.controller.next_trial()
        with pytest.raises(LeaseError):
            first.on_report("0 0", trial.number, evaluation)  # which is known, and no new line
        assert (tmp_path / JOURNAL).read_bytes() == before and not decision.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b'{"metric": "f1"', b"[]", b"{}", bytes(range(128, 256)), b"[" * 500_000],
    ids=["empty", "cut", "a list", "lacking all", "bytes", "too deep"],
)
def test_a_damaged_result_is_not_believed(run: Path, content: bytes) -> None:
    (run / RESULT).write_bytes(content)
    with (
        pytest.warns(UserWarning, match=f"skipping {run}/{RESULT}: it is damaged; `bertha tun"),
        pytest.raises(JournalError, match=f"holds no {RESULT} that is whole, which"),
    ):
        report.write_report(SyncedDirectory(run))
    assert (run / RESULT).read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'{"tokens": 5}', b'{"tokens": [], "goes_on": true}']
)
def test_a_damaged_decision_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    """A trial that took it for none would wait for ever: the search has decided."""
    (tmp_path / stop_signal.DECISION).write_bytes(content)
    with pytest.raises(stop_signal.StopSignalError, match=r"verdict.json: is no decision of a sea"):
        stop_signal.StopSignal(SyncedDirectory(tmp_path))({"tokens": 5.0})
