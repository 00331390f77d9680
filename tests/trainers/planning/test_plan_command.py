"""`bertha plan`: how its options are understood, and what they change."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainers.planning import plan_command

REGION = ("--region", "us-east-1")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = plan_command.main(["imdb", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, err = run(capsys, *REGION, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_overrides_may_stand_anywhere() -> None:
    options = plan_command.parse_arguments(
        ["imdb", "a=1", "--pick", "2", "b=2", "--serve", "10", "c=3"], "plan"
    )
    assert (options.recipe, options.overrides) == ("imdb", ["a=1", "b=2", "c=3"])
    assert (options.pick, options.serve, options.objective, options.p95) == (2, 10, "money", "50ms")


@pytest.mark.parametrize(
    ("option", "value", "same"),
    [
        ("--deadline", "10m", ["10min", " 600 s "]),
        ("--budget", "2USD", ["2", "$ 2.0", "2$"]),
        ("--power-limit", "3kW", ["3000W", "0.003MW"]),
    ],
)
def test_limits_have_units(
    capsys: pytest.CaptureFixture[str], option: str, value: str, same: list[str]
) -> None:
    offers = plan(capsys, option, value)["offers"]
    assert offers, "some hardware meets the limit"
    assert offers != plan(capsys)["offers"], "and some does not"
    for other in same:
        assert plan(capsys, option, other)["offers"] == offers


@pytest.mark.parametrize("value", ["0h", "-1h", "1.2.3h", "2H", "h", ""])
def test_a_limit_that_is_no_positive_number_with_a_unit_is_refused(
    capsys: pytest.CaptureFixture[str], value: str
) -> None:
    status, out, err = run(capsys, f"--deadline={value}")
    assert (status, out) == (2, "")
    assert err == (f"error: --deadline '{value}': a number and one of s, m, min, h, d, as in 2h\n")


def test_a_picked_row_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, *REGION, "--pick", "99999")
    found = re.fullmatch(r"error: --pick 99999: there are (\d+) rows, counted from 1\n", err)
    assert status == 2 and found
    rows = int(found[1])
    chosen = [plan(capsys, "--pick", str(row))["chosen"]["usd"] for row in (1, 2, rows)]
    assert chosen == sorted(chosen), "the cheapest first"
    assert run(capsys, *REGION, "--pick", str(rows + 1))[0] == 2


def test_serving_is_priced_in_the_region_the_cheapest_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, *REGION, "--serve", "500", "--p95", "0.02s")
    serving = out[out.index("serving ") :]
    assert serving.startswith("serving   500 texts/s, p95 within 20 ms")
    assert "us-east-1" in serving and "ap-southeast-4" not in serving
    *rows, unserved = serving.splitlines()[2:]
    assert unserved.startswith("  not offered: serving has no engine for ")
    prices = [line.split()[-1] for line in rows]
    known = [float(price) for price in prices if price != "?"]
    assert known == sorted(known) and prices[len(known) :] == ["?"] * (len(prices) - len(known))
    _, slower, _ = run(capsys, *REGION, "--serve", "500", "--p95", "2s")
    assert slower[slower.index("serving ") :] != serving
    status, _, err = run(capsys, *REGION, "--serve", "500", "--p95", "20")
    assert status == 2 and "--p95 '20': a number and one of ms, s, as in 50ms" in err


def test_a_file_that_is_written_is_told_aside(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    status, out, err = run(capsys, *REGION, "--write", str(path), "--pick", "2", "--json")
    assert status == 0 and json.loads(out)["chosen"]["machine"] in path.read_text()
    assert err == f"wrote {path}; `bertha check {path}`\n"


@pytest.mark.slow
def test_plots_are_drawn_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, _, err = run(capsys, *REGION, "--plots", str(tmp_path / "plots"))
    assert status == 0
    assert set(err.splitlines()) == {f"wrote {each}" for each in (tmp_path / "plots").iterdir()}


def test_a_probe_that_dies_says_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(seconds: float) -> None:
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr("trainers.planning.probe.run_probe", die)
    status, _, err = run(capsys, *REGION, "--probe")
    assert status == 2
    assert err == "error: --probe: a worker was killed; try bertha probe --out FILE\n"


def test_a_small_run_begins_with_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "mine.csv"
    rows.write_text("text,label\n" + "a warm film,good\n" * 60)
    words = ["csv", f"data.source={rows}", "stopping.epochs=2", "batch.global_size=16"]
    assert plan_command.main([*words, *REGION]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("first     this machine: a minute, $0 (")
    assert first.endswith(f": bertha train {' '.join(words)}") and "assumed" in first
    assert second.startswith("recipe    csv:")


def test_a_large_run_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_command.main(["bert-large-pretrain", *REGION]) == 0
    assert capsys.readouterr().out.startswith("recipe    bert-large-pretrain:")


def test_without_a_recipe_the_shipped_ones_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_command.main([], "bertha plan") == 2
    said = capsys.readouterr().out
    assert said.startswith("usage: bertha plan RECIPE") and "\n  imdb " in said


def test_a_trainer_s_flag_is_answered_with_the_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan_command.main(["imdb", "--num-train-epochs", "2"], "bertha plan")
    assert ended.value.code == 2 and "write stopping.epochs=2" in capsys.readouterr().err
