"""The report of a search over a made-up surface, and what its figures rest on."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from tests.support.searches import SPACE, as_dicts, open_journal, prepared_search, write_search
from trainers.storage.directory import SyncedDirectory
from tuning.__main__ import main
from tuning.algorithms import repeats
from tuning.algorithms.trial import Trial, TrialEvaluation, rank_completed
from tuning.execution.controller import SearchController
from tuning.execution.tuner import Search
from tuning.results import figures, report
from tuning.results.figures import MAX_ROWS, build_heat_map
from tuning.results.importance import MIN_TRIALS, compute_importances
from tuning.results.outcome import build_result
from tuning.results.render import THEME
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
    assert "bertha tune resume" in said and "bertha tune dashboard" in said


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


def test_a_cell_says_its_trials_own_values(run: Path, trials: tuple[Trial, ...]) -> None:
    found, snapshot = build_heat_map(trials), reader.read_snapshot(run)
    figure = figures.plot_heat_map(snapshot)
    assert found is not None and figure is not None
    told = re.findall(r">([^<>]+)</text>", figure)
    shown = [trial for row in found.trials for trial in row if trial is not None]
    assert len(shown) == np.isfinite(found.scores).sum() > 4
    for trial in shown:
        rate = float(trial.settings[RATE] or 0)
        place = told.index(f"trial {trial.number}, {rate:.2e}".replace("e-0", "e-"))
        state = "" if trial.state == "complete" else f" {trial.state}"
        assert told[place - 1] == f"{trial.score:.4f}{state}"
    for (low, high), row in zip(found.spans, found.trials, strict=True):
        rates = [float(trial.settings[RATE] or 0) for trial in row if trial is not None]
        assert all(low <= rate <= high for rate in rates)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_drawn_stands_out_in_light_and_in_dark(page: str, scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", THEME.read_text(), flags=re.DOTALL)
    colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", dark if scheme == "dark" else light))
    drawn = set(re.findall(r"var\(--([a-z]+), #", page))
    assert {"ink", "edge", "winner", "own", "stopped", "complete"} <= drawn <= colors.keys()
    for name in drawn - {"sheet"}:
        assert contrast(colors[name], colors["sheet"]) >= 3, name
    for name in ("ink", "quiet", "accent", "wrong"):
        for ground in ("sheet", "ground"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


def test_no_figure_brings_a_colour_of_its_own(page: str) -> None:
    """All but the text within the cells of the heat map, which is black or white."""
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        own = set(re.findall(r"(?<!, )(#[0-9a-f]{6})\b", svg)) - {"#ffffff"}
        assert own == set()


def test_text_in_a_cell_can_be_read_on_any_shade() -> None:
    for share in np.linspace(0, 1, 101):
        color = mpl.colormaps["viridis"](share)
        shade = "#" + "".join(f"{round(255 * part):02x}" for part in color[:3])
        ink = {"white": "#ffffff", "black": "#000000"}[figures._readable_ink(color)]
        assert contrast(ink, shade) >= 4.4, (share, shade)


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


def test_an_even_chance_is_told_in_trials_and_the_time_once(run: Path) -> None:
    result, snapshot = json.loads((run / "result.json").read_text()), reader.read_snapshot(run)
    said = "\n".join(report.summary_lines(result, snapshot.cluster))
    own = sum(trial["repeats"] is None for trial in result["trials"])
    assert f"something better: expected after as many trials again, {own}, for as much" in said
    assert said.count(str(snapshot.spent)) <= 1 and said.count("spent ") == 1
    assert re.findall(r"\b\d+m\d\ds\b|\b\d+h\d\dm\b", said.replace(str(snapshot.spent), "")) == []


def test_nothing_better_than_a_perfect_score_is_offered(run: Path) -> None:
    result, snapshot = json.loads((run / "result.json").read_text()), reader.read_snapshot(run)
    assert snapshot.next_improvement is not None
    for standing in result["standings"]:
        standing["mean"] = 1.0
    said = list(report.summary_lines(result, snapshot.cluster))
    assert "an even chance of something better: there is none, f1 is 1.0000" in said
    first, *others = snapshot.trials
    perfect = replace(first, curve=(TrialEvaluation(1000, 1.0),))
    assert replace(snapshot, trials=(perfect, *others)).next_improvement is None
