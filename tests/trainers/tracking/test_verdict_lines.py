"""The end of a run on a terminal: figures beside their baselines, and what to do next."""

from pathlib import Path
from typing import Any

from trainers.tracking.progress import summarize_run
from trainers.tracking.verdict_lines import format_number

CLASS = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 12}


def result_of(run: Path, labels: int = 2, **verdict: Any) -> dict[str, Any]:
    per_class = {f"label{place}": CLASS | {"f1": place / 100} for place in range(labels)}
    figures = {
        "f1": {"value": 0.932, "low": 0.8512, "high": 0.98},
        "accuracy": {"value": 0.94, "low": 0.86, "high": 0.985},
    }
    words = {"name": "TF-IDF", "f1": 0.974, "accuracy": 0.971, "seconds": 1.2}
    test = {"rows": 35, "loss": 0.31, "accuracy": 0.94, "f1": 0.932, "per_class": per_class}
    judged = {
        "figures": figures,
        "baselines": {"majority": {"f1": 0.1, "accuracy": 0.3}, "bag-of-words": words},
        "sentences": ["A sentence of many words. " * 6, "Another."],
        "next": f"bertha train {run}/recipe.yaml stopping.epochs=9 --run {run} --resume",
    }
    ended = {"steps": 9, "best_step": 6, "stopped_early": False, "test": test}
    return ended | {"verdict": judged | verdict}


def test_figures_stand_beside_the_baselines(tmp_path: Path) -> None:
    lines = summarize_run(result_of(tmp_path), 3.0, str(tmp_path))
    assert lines[1] == "held out, 35 rows never trained on:"
    assert lines[2].endswith("value (95% interval)  commonest answer      bag of words")
    assert lines[3].split() == ["f1", "0.932", "(0.85", "to", "0.98)", "0.100", "0.974"]
    assert lines[4].split() == ["accuracy", "0.940", "(0.86", "to", "0.98)", "0.300", "0.971"]
    assert lines[5].split() == ["loss", "0.310"]
    ends = [line.rindex("0.") + 5 for line in lines[3:5]] + [len(lines[2])]
    assert len(set(ends)) == 1  # the columns are aligned
    assert lines[-1] == f"bundle: {tmp_path}/bundle"


def test_sentences_are_wrapped_and_marked(tmp_path: Path) -> None:
    lines = summarize_run(result_of(tmp_path), 3.0, str(tmp_path))
    marked = [line for line in lines if line.startswith("- ")]
    assert [line[:11] for line in marked] == ["- A sentenc", "- Another."]
    assert max(map(len, lines[:-2])) <= 100  # the last two hold paths


def test_the_run_is_named_as_its_user_named_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lines = summarize_run(result_of(tmp_path / "runs" / "mine"), 3.0, "runs/mine")
    assert lines[-2] == (
        "next: bertha train runs/mine/recipe.yaml stopping.epochs=9 --run runs/mine --resume"
    )
    stored = result_of(Path("x"), next="bertha serve s3://bucket/run")
    assert summarize_run(stored, 3.0, "s3://bucket/run")[-2] == "next: bertha serve s3://bucket/run"


def test_figures_that_few_want_share_a_line_unless_the_run_is_judged_by_one(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    result["test"] |= {"mcc": 0.5, "auroc": 0.75}
    lines = summarize_run(result, 3.0, str(tmp_path))
    assert "  also mcc 0.500  auroc 0.750" in lines
    judged = result_of(tmp_path, metric="mcc")
    judged["test"] |= {"mcc": 0.5, "auroc": 0.75}
    judged["verdict"]["figures"]["mcc"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    lines = summarize_run(judged, 3.0, str(tmp_path))
    assert "  also auroc 0.750" in lines
    assert [line.split()[:2] for line in lines if "mcc" in line] == [["mcc", "0.500"]]


def test_classes_without_a_row_do_not_hide_the_worst(tmp_path: Path) -> None:
    result = result_of(tmp_path, labels=40)
    for place in range(20):
        result["test"]["per_class"][f"label{place}"] |= {"f1": 0.0, "support": 0}
    shown = [
        line.split()[0] for line in summarize_run(result, 3.0, str(tmp_path)) if "  label" in line
    ]
    assert shown == [f"label{place}" for place in range(20, 32)]


def test_of_many_classes_the_worst_are_shown(tmp_path: Path) -> None:
    lines = summarize_run(result_of(tmp_path, labels=30), 3.0, str(tmp_path))
    shown = [line.split()[0] for line in lines if line.startswith("  label")]
    assert shown == [f"label{place}" for place in range(12)]
    assert "  and 18 labels with a higher f1" in lines
    assert len(lines) < 30


def test_a_result_without_a_verdict_is_read(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    del result["verdict"]
    lines = summarize_run(result, 3.0, str(tmp_path))
    assert "  f1        0.9320" in lines and not any("next:" in line for line in lines)


def test_numbers_show_their_size() -> None:
    shown = [format_number(value) for value in (0.9321, -4.86, 15.23, 152_000.4)]
    assert shown == ["0.932", "-4.860", "15.2", "152,000"]
