"""The tuning benchmark over a made-up surface."""

import csv
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import record
import tune
from surface import Surface, read_curves

RATES, SIZES = (1e-5, 1e-4, 1e-3, 1e-2), (16, 32, 64)


def final_score(rate: float, size: int) -> float:
    return 0.9 - 0.04 * (math.log10(rate) + 3 - 0.5 * math.log10(size / 32)) ** 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A surface of two seeds, one a little luckier than the other."""
    directory = tmp_path_factory.mktemp("surface")
    for seed, luck in enumerate((-0.01, 0.01)):
        with (directory / f"seed-{seed}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(record.COLUMNS)
            for rate, size in itertools.product(RATES, SIZES):
                for i in (1, 2, 3, 4):
                    score = final_score(rate, size) * (1 - 0.2 / i) + luck
                    writer.writerow([rate, size, 100 * i, f"{score:.6f}"])
    return directory


def test_a_surface_is_the_mean_of_its_seeds(place: Path) -> None:
    surface = Surface.from_directory(place)
    assert (surface.rates, surface.sizes, surface.num_evals) == (list(RATES), list(SIZES), 4)
    assert surface.run_tokens == 400 and surface.total_tokens == 12 * 400
    assert surface.best == pytest.approx(0.95 * 0.9), "the peak is on the grid"
    middle = list(surface.curve_at(math.sqrt(1e-4 * 1e-3), 32))[-1].score
    assert middle == pytest.approx(0.95 * (final_score(1e-4, 32) + final_score(1e-3, 32)) / 2)
    assert list(surface.curve_at(1e-9, 16)) == list(surface.curves[1e-5, 16])


def test_a_seed_that_is_not_done_is_no_surface(tmp_path: Path, place: Path) -> None:
    shutil.copytree(place, tmp_path / "surface")
    table = tmp_path / "surface" / "seed-1.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-4]))
    with pytest.raises(SystemExit, match="not of one grid"):
        Surface.from_directory(tmp_path / "surface")


@pytest.mark.slow
def test_a_recording_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points of a linear model; the process ends between them."""
    recipe = tmp_path / "tiny.yaml"
    rows = [f"{i % 7} {i % 3},{i % 7 + 2 * (i % 3)}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    settings = {
        "task": "regression",
        "model": {"name": "linear"},
        "data": {"source": str(tmp_path / "rows.csv"), "cleaning": "none"},
        "stopping": {"epochs": 1},
    }
    recipe.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(record, "RECIPE", str(recipe))
    grid = record.Grid((1e-3,), (4, 8))
    record.record_surface(0, tmp_path / "whole.csv", 1, grid)
    lines = (tmp_path / "whole.csv").read_text().splitlines()
    assert len(lines) > 4 and set(read_curves(tmp_path / "whole.csv")) == {(1e-3, 4), (1e-3, 8)}
    part = [line for line in lines if not line.startswith("0.001,8")]
    (tmp_path / "part.csv").write_text("\n".join(part) + "\n")
    record.record_surface(0, tmp_path / "part.csv", 1, grid)
    assert sorted((tmp_path / "part.csv").read_text().splitlines()) == sorted(lines)


def test_work_is_counted_until_the_goal(place: Path) -> None:
    surface = Surface.from_directory(place)
    meter = tune.WorkMeter(goal=0.8)
    assert meter.train(surface.curve_at(1e-5, 16), lambda evaluation: True) and meter.work == 400
    assert (
        not meter.train(surface.curve_at(1e-5, 16), lambda evaluation: False) and meter.work == 500
    )
    with pytest.raises(tune.GoalReached):
        meter.train(surface.curve_at(1e-3, 32), lambda evaluation: True)
    assert meter.work == 500 + 200, "0.9 x (1 - 0.1) is the first above 0.8"


def test_every_search_gets_there_and_ours_in_less_than_drawing(place: Path) -> None:
    surface = Surface.from_directory(place)
    lines = list(tune.format_table(surface, tune.play_searches(surface, range(3))))
    rows = list(csv.reader(lines[4:], delimiter="|"))
    assert [row[1].strip() for row in rows] == list(tune.SEARCHES)
    assert all(row[5].strip() == "0 of 3" for row in rows)
    poor = tune.SEARCHES["ours, from a poor recipe"]
    found = tune.work_shares(surface, poor, range(9))
    drawn = tune.work_shares(surface, tune.SEARCHES["random"], range(9))
    assert sorted(found)[4] < sorted(drawn)[4]


def test_a_live_search_is_measured_by_the_same_rule(tmp_path: Path, place: Path) -> None:
    curve = [[100 * i, final_score(1e-3, 32) * (1 - 0.2 / i)] for i in (1, 2, 3, 4)]
    trials = [{"number": 0, "curve": curve[:2]}, {"number": 1, "curve": curve}]
    result = {"lower_is_better": False, "trials": trials}
    (tmp_path / "result.json").write_text(json.dumps(result))
    result_line = tune.measure_live_search(tmp_path, Surface.from_directory(place))
    assert f"{600 / 4800:.1%} of the grid's work, at trial 1" in result_line
