"""The data sets of the first hour: what they hold, and the table that is printed of them."""

from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("accelerate")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import first_hour
    import first_hour_data

    return first_hour, first_hour_data


@pytest.mark.parametrize("kind", ["tickets", "hotel", "cars"])
def test_rows_are_drawn_by_seed_and_learnt_from_none_that_judge(
    modules: tuple[object, object], tmp_path: Path, kind: str
) -> None:
    first_hour, data = modules
    task, make = data.MADE[kind]  # type: ignore[attr-defined]
    assert list(make(20, 1)) == list(make(20, 1)) != list(make(20, 2))
    case = first_hour.write_case(kind, 60, 0, tmp_path)  # type: ignore[attr-defined]
    parts = [set(path.read_text().splitlines()[1:]) for path in (case.train, case.test)]
    assert len(parts[0]) == 60 and parts[0].isdisjoint(parts[1])
    assert case.task == task and case.recipe().data.test == str(case.test)


def test_the_surface_moves_one_setting_at_a_time(modules: tuple[object, object]) -> None:
    first_hour, _ = modules
    middle = tuple(first_hour.MIDDLE.values())  # type: ignore[attr-defined]
    points = first_hour.surface_points()  # type: ignore[attr-defined]
    assert len(points) == len(set(points))
    for _, *settings in points:
        assert sum(a != b for a, b in zip(settings, middle, strict=True)) <= 1


def test_the_table_has_a_line_a_case(
    modules: tuple[object, object], capsys: pytest.CaptureFixture[str]
) -> None:
    first_hour, _ = modules

    def record(value: float) -> dict[str, object]:
        rival = {"value": 0.5, "seconds": 3.0}
        own = {"value": value, "seconds": 60.0}
        return {"case": "cars-300", "ours": own, "bag of words": rival, "trainer": rival}

    first_hour.print_table([record(0.7), record(0.9), record(0.8)])  # type: ignore[attr-defined]
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| cars-300 | 0.800 | 0.500 | 0.500 | 60, 3 |"
    )
