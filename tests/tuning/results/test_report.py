"""The report of a search over a made-up surface, and what its figures rest on."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.support.searches import SPACE, as_dicts, open_journal, prepared_search, write_search
from trainers.storage.directory import SyncedDirectory
from tuning.__main__ import main
from tuning.algorithms import repeats
from tuning.algorithms.trial import Trial, rank_completed
from tuning.execution.controller import SearchController
from tuning.execution.tuner import Search
from tuning.results import figures, report
from tuning.results.figures import MAX_ROWS, build_heat_map
from tuning.results.importance import MIN_TRIALS, compute_importances
from tuning.results.outcome import build_result
from tuning.space.scaling_rule import RATE, SIZE
from tuning.store import reader

VARIANTS = [
    {"trial": 3, "engine": "torch fp32", "metric": 0.9, "p95_seconds": 0.02, "cpu_seconds": 9e3},
    {"trial": 3, "engine": "int8 <fast>", "metric": 0.89, "p95_seconds": 0.01, "cpu_seconds": 3e3},
    {"trial": 3, "engine": "slow", "metric": 0.8, "p95_seconds": 0.03, "cpu_seconds": 1e4},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has ended, as it lies on the disk."""
    run = tmp_path_factory.mktemp("place") / "search"
    prepared = prepared_search()
    trials = write_search(run, prepared)
    journal = open_journal(run, prepared)
    search = Search(SearchController(prepared, journal, lambda line: None), SyncedDirectory(run))
    verdict = repeats.compare_finalists(trials)
    assert verdict is not None and verdict.winner != 0
    tested = {verdict.winner: {"f1": 0.91}, 0: {"f1": 0.77}}
    result = build_result(search, verdict, tested)
    result |= {"variants": VARIANTS, "registered": "sentiment:1"}
    (run / "result.json").write_text(json.dumps(result))
    return run


@pytest.fixture(scope="module")
def trials(run: Path) -> tuple[Trial, ...]:
    return reader.read_snapshot(run).trials


def test_who_does_not_hold_a_search_reads_what_it_knows(tmp_path: Path) -> None:
    known = write_search(tmp_path, prepared_search(budget="2h"), max_evals=25)
    before = (tmp_path / "study.journal").read_bytes()
    snapshot = reader.read_snapshot(tmp_path)
    assert as_dicts(list(snapshot.trials)) == as_dicts(known)
    assert snapshot.metric == "f1" and snapshot.slots == 1 and snapshot.total_tokens == 40_000
    assert any(trial.state == "running" for trial in snapshot.trials)
    with pytest.raises(reader.JournalError, match="only shows it"):
        reader.open_readonly(tmp_path).set_study_user_attr(0, "key", "value")
    assert (tmp_path / "study.journal").read_bytes() == before


def test_where_there_is_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("report", "dashboard"):
        assert main([command, str(tmp_path)]) == 2
        assert f"error: {tmp_path}: holds no" in capsys.readouterr().err
    write_search(tmp_path, prepared_search(), max_evals=5)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "python -m tuning resume" in said and "python -m tuning dashboard" in said


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    report.write_report(SyncedDirectory(run))
    return (run / "report.html").read_text()


def test_the_page_needs_nothing_else(run: Path, page: str) -> None:
    result = json.loads((run / "result.json").read_text())
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!#|data:)', page)
    loaded = [url for url in re.findall(r"url\(([^)]*)\)", page) if not url.startswith("#")]
    assert loaded == [] and "@import" not in page
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawn) == 4, "importance, curves, heat map, front"
    for svg in drawn:
        ElementTree.fromstring(svg)
    meant = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page))
    assert meant and all(page.count(f'id="{name}"') == 1 for name in meant)
    assert result["repeat"] in page and "int8 &lt;fast&gt;" in page


def test_the_report_says_what_happened(run: Path, page: str) -> None:
    text, result = (run / "report.md").read_text(), json.loads((run / "result.json").read_text())
    assert f"Trial {result['winner']} wins by {result['margin']:.4f}" in text
    assert f"standard error {result['margin_standard_error']:.4f}" in text
    assert f"```sh\n{result['repeat']}\n```" in text and "sentiment:1" in text
    table = text.partition("## Trials")[2].splitlines()
    for trial in result["trials"]:
        row = next(line for line in table if line.startswith(f"| {trial['number']} |"))
        assert trial["state"] in row and f"{trial['best']:.4f}" in row
        assert ("asha: behind others at " in row) == (trial["state"] == "stopped")
    fronts = [line for line in text.splitlines() if line.startswith("| * |")]
    assert len(fronts) == 2 and not any("slow" in line for line in fronts)
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(tables) > 2
    assert "0.9100" in text and "0.7700" in text, "what the test rows say"


def test_the_same_search_gives_the_same_report(
    run: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    assert (run / "report.html").read_text() == page


def test_the_setting_that_decides_is_the_most_important(run: Path) -> None:
    found = compute_importances(reader.read_snapshot(run))
    assert [each.key for each in found] == [RATE, SIZE], "the surface knows no batch size"
    assert sum(each.share for each in found) == pytest.approx(1)
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    assert found[0].share > 0.7


def test_a_few_trials_say_nothing(tmp_path: Path) -> None:
    write_search(tmp_path, prepared_search(trials=MIN_TRIALS - 1, seeds=1))
    assert compute_importances(reader.read_snapshot(tmp_path)) == []


def test_the_heat_map_holds_the_best_of_each_cell(trials: tuple[Trial, ...]) -> None:
    found = build_heat_map(trials)
    assert found is not None and found.sizes == (8, 16, 32)
    assert found.scores.shape == (len(found.rates), 3) and len(found.rates) <= MAX_ROWS
    assert list(found.rates) == sorted(found.rates)
    best = rank_completed(trials)[0]
    row, column = np.unravel_index(np.nanargmax(found.scores), found.scores.shape)
    assert found.scores[row, column] == best.score
    assert found.sizes[column] == best.settings[SIZE]
    near = [abs(math.log(rate / float(best.settings[RATE] or 1))) for rate in found.rates]
    assert row == int(np.argmin(near))


def test_no_heat_map_without_both(tmp_path: Path) -> None:
    write_search(tmp_path, prepared_search({RATE: SPACE[RATE]}, trials=3, seeds=1))
    snapshot = reader.read_snapshot(tmp_path)
    assert build_heat_map(snapshot.trials) is None and figures.plot_heat_map(snapshot) is None


def test_figures_of_a_search_that_has_just_begun(tmp_path: Path) -> None:
    write_search(tmp_path, prepared_search(), max_evals=0)
    snapshot = reader.read_snapshot(tmp_path)
    assert figures.plot_heat_map(snapshot) is None and figures.plot_curves(snapshot).startswith(
        "<svg"
    )
