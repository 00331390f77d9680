"""The faults that an endpoint is measured under: their table, and what is counted of each."""

import sys
from typing import Any

import pytest

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from faults import FAULTS, Fault, format_faults, group_faults, summarize_fault
from outcomes import Outcome, Tally, describe_outage, summarize_load
from places import PLACES
from upheaval import parse_arguments
from upheavals import UPHEAVALS

ASKED_FOR = {
    "haproxy-killed",
    "busy-replica-killed",
    "all-replicas-killed",
    "front-killed",
    "controller-killed",
    "gcs-killed",
    "raylet-killed",
    "out-of-memory",
    "registry-removed",
    "registry-corrupted",
    "disk-full",
    "disk-read-only",
    "s3-503",
    "s3-429",
    "s3-slow",
    "s3-silent",
    "clock-forward",
    "clock-back",
}


def test_every_fault_is_there_once_at_a_place_that_can_be_made() -> None:
    names = [each.name for each in FAULTS]
    assert set(names) == ASKED_FOR and len(names) == len(ASKED_FOR)
    assert not set(names) & {*UPHEAVALS, "flooded", "scaled"}
    assert {each.place for each in FAULTS} == set(PLACES)
    assert {each.name for each in FAULTS if each.is_fatal} >= {"gcs-killed", "raylet-killed"}


def test_faults_of_a_place_share_an_endpoint_and_fatal_ones_have_their_own() -> None:
    faults = [
        Fault("a", _nothing),
        Fault("b", _nothing, "s3"),
        Fault("c", _nothing, is_fatal=True),
        Fault("d", _nothing),
        Fault("e", _nothing, "s3", is_fatal=True),
    ]
    groups = [[each.name for each in group] for group in group_faults(faults)]
    assert groups == [["a", "d"], ["b"], ["c"], ["e"]]


def _nothing(*_: object) -> str:
    return ""


def test_the_command_line_takes_all_cases_or_some() -> None:
    everything = parse_arguments([])
    assert {*UPHEAVALS, "flooded", "scaled", *ASKED_FOR} == set(everything.only)
    assert (everything.rate, everything.seconds) == (20.0, 60.0)
    assert everything.out == ROOT / "benchmarks" / "results" / "upheaval.json"
    some = parse_arguments(["--only", "s3-503", "calm", "--seconds", "10", "--rate", "5"])
    assert (some.only, some.seconds, some.rate) == (["s3-503", "calm"], 10.0, 5.0)


def test_a_case_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "meteorite"])
    assert "'meteorite' (choose from" in capsys.readouterr().err


def _answered(due: float, took: float = 0.1) -> Outcome:
    return Outcome(due, due, due + took, 200)


def test_seconds_out_are_from_the_first_failure_to_the_last() -> None:
    # In the order of their ends, which is not that in which they were due.
    outcomes = [_answered(0.0), Outcome(4.5, 4.5, 4.5, 0), Outcome(1.0, 1.0, 9.0, 503)]
    outage = describe_outage([*outcomes, _answered(2.0), _answered(6.0, took=0.5)], seconds=8.0)
    assert outage == {"first_failure": 1.0, "seconds_out": 3.5, "longest_gap_seconds": 4.4}


def test_the_longest_gap_counts_the_start_and_the_end() -> None:
    assert describe_outage([_answered(5.0)], seconds=6.0)["longest_gap_seconds"] == 5.1
    assert describe_outage([_answered(0.5)], seconds=6.0)["longest_gap_seconds"] == 5.4
    none = describe_outage([], seconds=6.0)
    assert none == {"first_failure": 0.0, "seconds_out": 0.0, "longest_gap_seconds": 6.0}


def test_slow_answers_are_no_failures() -> None:
    outage = describe_outage([_answered(0.0), _answered(1.0, took=2.0), _answered(3.0)], 3.1)
    assert outage["seconds_out"] == 0.0 and outage["longest_gap_seconds"] == 2.9


def _record() -> dict[str, Any]:
    tally = Tally([_answered(0.0), _answered(0.5), Outcome(1.0, 1.0, 1.2, 503)])
    tally.outcomes += [Outcome(2.0, 2.0, 2.0, 0), Outcome(2.5, 0.0, 9.0, 0), Outcome(3, 3, 3, 429)]
    tally.failures.update({"no connection: OSError": 1, "never answered": 1})
    results = summarize_load(tally, 4.0, by_second=False)
    seen = summarize_fault("s3-503", 20.0, results)
    return seen | {"happened": "it | went on", "came_back": True}


def test_a_record_counts_what_was_sent_and_how_it_failed() -> None:
    record = _record()
    assert (record["sent"], record["answered"]) == (6, 2)
    assert record["failed"] == {
        "503": 1,
        "429": 1,
        "no connection: OSError": 1,
        "never answered": 1,
    }
    assert (record["first_failure"], record["seconds_out"]) == (1.0, 2.0)
    assert record["longest_gap_seconds"] == 3.4
    assert (record["case"], record["rate"], record["seconds"]) == ("s3-503", 20.0, 4.0)


def test_the_table_has_a_line_for_each_fault_and_says_why_one_was_not_tried() -> None:
    skipped = {"case": "disk-full", "skipped": "mount: not permitted"}
    text = format_faults([_record(), _record() | {"came_back": False}, skipped])
    first, gone, second = text.splitlines()[2:]
    assert first.startswith("| s3-503 | 6 | 4 | 1 x 503, 1 x 429, 1 x no connection: OSError, ")
    assert first.endswith("| 2.0 | 3.4 | 100 | 100 | it / went on |")
    assert "| did not come back | 3.4 |" in gone
    assert second == "| disk-full | | | | | | | | not tried: mount: not permitted |"
