"""A search that is killed again and again ends as one that nothing happened to."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import search_kills
from search_kills import Kill, KilledSearch, cut_last_line, draw_kills

# `bertha tune` whose trials train in the driver itself, one after another, without Ray: a kill
# then ends both, between any two of their writes.
SOLO = """
import sys
from tuning.execution.trainable import train_trial
from tuning.execution.tuner import Search
def run(search):
    while (spec := search.next_spec()) is not None:
        train_trial(spec, lambda facts: search.on_report(f"{spec.number}", spec.number, facts))
Search.run = run
from tuning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_kills_are_drawn_the_same_again_and_spare_nobody() -> None:
    kills = draw_kills(20, ["driver", "trial", "worker"], seed=7)
    assert kills == draw_kills(20, ["driver", "trial", "worker"], seed=7)
    assert kills != draw_kills(20, ["driver", "trial", "worker"], seed=8)
    assert [each.share for each in kills] == sorted(each.share for each in kills)
    assert {each.victim for each in kills} == {"driver", "trial", "worker"}
    assert any(each.cut for each in kills)
    assert all(each.cut == 0 for each in kills if each.victim != "driver")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_leaves_a_part_of_the_last_line(tmp_path: Path, share: float) -> None:
    lines = [json.dumps({"op_code": number, "name": "x" * 50}) for number in range(3)]
    (tmp_path / "journal").write_text("\n".join(lines) + "\n")
    cut_last_line(tmp_path / "journal", share)
    *whole, last = (tmp_path / "journal").read_text().split("\n")
    assert whole == lines[:2] and lines[2].startswith(last) and 0 < len(last) <= len(lines[2])


@pytest.mark.multiprocess
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    search = KilledSearch(tmp_path, 1, [sys.executable, "-c", SOLO], trials=3, seeds=1)
    whole = search.run_whole("whole")
    kills = [Kill("driver", 0.15), Kill("driver", 0.5, 0.05, cut=0.4), Kill("driver", 0.9, 0.01)]
    killed = search.run_killed("killed", kills, whole.steps)
    assert [each["killed"] for each in killed.kills] == ["driver"] * 3
    assert killed.trials == whole.trials and len(whole.trials) == 3
    assert (
        killed.steps
        == whole.steps
        == sum(len(search_kills.read_steps(tmp_path / "whole", number)) for number in range(3))
    )
    assert killed.repeated_trials == 0
