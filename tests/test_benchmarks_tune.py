"""The tuning benchmark over a made-up surface."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import tune

RATES, SIZES = (1e-5, 1e-4, 1e-3, 1e-2), (16, 32, 64)


def final(rate: float, size: int) -> float:
    return 0.9 - 0.04 * (math.log10(rate) + 3 - 0.5 * math.log10(size / 32)) ** 2


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as `tune.py table` writes it, from the result of a grid search."""
    place = tmp_path_factory.mktemp("grid")
    trials = [
        {
            "number": number,
            "settings": {"optimizer.learning_rate": rate, "batch.global_size": size},
            "state": "complete",
            "repeats": None,
            "curve": [[100 * i, final(rate, size) * (1 - 0.2 / i)] for i in (1, 2, 3, 4)],
        }
        for number, (rate, size) in enumerate((r, s) for r in RATES for s in SIZES)
    ]
    space = {
        "optimizer.learning_rate": f"one of {', '.join(map(str, RATES))}",
        "batch.global_size": f"one of {', '.join(map(str, SIZES))}",
    }
    result = {"lower_is_better": False, "space": space, "trials": trials}
    (place / "result.json").write_text(json.dumps(result))
    tune.table([place, place], place / "surface.csv")
    return place / "surface.csv"


def test_a_grid_becomes_a_surface(table: Path) -> None:
    surface = tune.Surface.read(table)
    assert (surface.rates, surface.sizes, surface.looks) == (list(RATES), list(SIZES), 4)
    assert surface.whole == 400 and surface.work == 12 * 400
    assert surface.best == pytest.approx(0.95 * 0.9), "the peak is on the grid"
    middle = list(surface.curve(math.sqrt(1e-4 * 1e-3), 32))[-1].score
    assert middle == pytest.approx(0.95 * (final(1e-4, 32) + final(1e-3, 32)) / 2)
    assert list(surface.curve(1e-9, 16)) == list(surface.curves[1e-5, 16])


def test_a_grid_that_was_stopped_early_is_no_surface(tmp_path: Path, table: Path) -> None:
    result = json.loads((table.parent / "result.json").read_text())
    result["trials"][3]["state"] = "stopped"
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="not a grid"):
        tune.table([tmp_path], tmp_path / "surface.csv")


def test_work_is_counted_until_the_goal(table: Path) -> None:
    surface = tune.Surface.read(table)
    meter = tune.Meter(goal=0.8)
    assert meter.train(surface.curve(1e-5, 16), lambda look: True) and meter.work == 400
    assert not meter.train(surface.curve(1e-5, 16), lambda look: False) and meter.work == 500
    with pytest.raises(tune.Reached):
        meter.train(surface.curve(1e-3, 32), lambda look: True)
    assert meter.work == 500 + 200, "0.9 x (1 - 0.1) is the first above 0.8"


def test_every_search_gets_there_and_ours_in_less_than_drawing(table: Path) -> None:
    surface = tune.Surface.read(table)
    lines = list(tune.play(surface, range(3)))
    rows = list(csv.reader(lines[4:], delimiter="|"))
    assert [row[1].strip() for row in rows] == list(tune.SEARCHES)
    assert all(row[5].strip() == "0 of 3" for row in rows)
    poor = tune.SEARCHES["ours, from a poor recipe"]
    found = tune.shares(surface, poor, range(9))
    drawn = tune.shares(surface, tune.SEARCHES["random"], range(9))
    assert sorted(found)[4] < sorted(drawn)[4]


def test_a_live_search_is_measured_by_the_same_rule(table: Path) -> None:
    said = tune.live(table.parent, tune.Surface.read(table))
    assert "of the grid's work, at trial" in said
