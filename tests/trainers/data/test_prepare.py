"""The data path from a recipe to encoded splits, through `prepare`, on files of a few lines."""

import json
import multiprocessing
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.blank_texts import BLANK, MARKUP_ONLY, VISIBLE
from tests.support.tiny import BAD, GOOD
from trainers.config import recipe as recipes
from trainers.config import sections
from trainers.config.data_section import DataConfig
from trainers.config.recipe import Recipe
from trainers.data.corpus import gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.files import DataError
from trainers.data.prepare import estimate_dataset, prepare_dataset
from trainers.data.rows import spilled_texts
from trainers.data.rows.spilled_texts import iter_blocks
from trainers.data.splits import TEST, TRAIN, VALIDATION, assign_splits, spread_indices, text_hash
from trainers.data.tokenizer import load_encoder

WORDS = [*GOOD[:6], *BAD[:6], "the", "film", "plot"]


def texts(count: int, start: int = 0) -> list[str]:
    """Distinct texts of known words."""
    numbers = range(start, start + count)
    return [" ".join(WORDS[n // 15**i % 15] for i in range(3)) + " film" * (n % 5) for n in numbers]


@pytest.fixture
def make(tiny_bert: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over rows of (text, label) written to a JSONL file."""

    def write(
        rows: Any, name: str = "train.jsonl", task: str = "classification", **data: Any
    ) -> Recipe:
        path = tmp_path / name
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        settings = {
            "task": task,
            "model": {"name": str(tiny_bert)},
            "data": {"source": str(path)} | data,
            "batch": {"max_length": 16},
        }
        return recipes.parse_recipe(settings)

    return write


def classes(count: int = 300) -> list[tuple[str, str]]:
    return [(text, ("bad", "good")[n % 2]) for n, text in enumerate(texts(count))]


def split_texts(data: PreparedDataset, recipe: Recipe) -> dict[str, list[tuple[int, ...]]]:
    """The token ids of every row, by split."""
    found = {}
    for name in ("train", "validation", "test"):
        samples = getattr(data, name).samples
        found[name] = [tuple(samples[row]) for row in range(len(samples))]
    return found


# --- splits


@given(st.lists(st.text(), max_size=50), st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_text_falls_on_one_side_whatever_is_around_it(
    rows: list[str], v: float, t: float
) -> None:
    parts = assign_splits([text_hash(text) for text in rows], v, t)
    alone = [assign_splits([text_hash(text)], v, t)[0] for text in rows]
    assert list(parts) == alone


def test_shares_are_about_kept_and_a_test_text_stays_one() -> None:
    digests = [text_hash(str(n)) for n in range(20_000)]
    parts = assign_splits(digests, validation=0.1, test=0.2)
    shares = np.bincount(parts, minlength=3) / len(parts)
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert (TRAIN, VALIDATION, TEST) == (0, 1, 2)
    assert np.array_equal(parts == TEST, assign_splits(digests, validation=0.5, test=0.2) == TEST)


@given(st.integers(0, 500), st.integers(1, 500))
def test_spread_takes_one_of_each_stretch(total: int, count: int) -> None:
    rows = spread_indices(total, count)
    assert len(rows) == min(total, count)
    assert len(set(rows)) == len(rows) and (np.diff(rows) > 0).all()
    stretches = [int(row) * len(rows) // total for row in rows]
    assert all(abs(stretch - n) <= 1 for n, stretch in enumerate(stretches))


# --- prepare


def test_every_row_is_somewhere(make: Any, tmp_path: Path) -> None:
    rows = [*classes(), ("", "good"), ("<br />", "bad"), ("no label", None), ("list", ["x"])]
    recipe = make(rows, validation=0.2, test=0.2)
    data = prepare_dataset(recipe, tmp_path / "cache")
    report = data.report
    assert report.rows_read == 304
    assert sum(report.rows.values()) == 300
    assert {s.reason: (s.rows, s.first) for s in report.skipped} == {
        "no text": (2, "line 301"),
        "no label": (1, "line 303"),
        "label is a list (task: multi-label?)": (1, "line 304"),
    }
    assert data.labels == ("bad", "good")
    assert {name: sum(n.values()) for name, n in report.label_counts.items()} == report.rows
    assert report.rows == {n: len(getattr(data, n)) for n in ("train", "validation", "test")}
    assert 0.1 < report.rows["test"] / 300 < 0.3
    for split in (data.train, data.validation, data.test):
        assert split.targets.dtype == np.int64
        assert split.samples.lengths.min() > 0
        assert {split.samples[row][0] for row in range(len(split))} == {2}


def test_targets_follow_their_texts(make: Any, tmp_path: Path) -> None:
    recipe = make([(text, text.split()[0]) for text in texts(400)])
    data = prepare_dataset(recipe, tmp_path / "cache")
    encoder = load_encoder(recipe.model.name, "text-v1", 16)
    for split in (data.train, data.validation, data.test):
        first = [split.samples[row][1] for row in range(len(split))]
        words = encoder.encode([data.labels[target] for target in split.targets])[0]
        assert first == [words[row][1] for row in range(len(split))]


def test_the_order_of_the_rows_and_the_seed_change_no_side(make: Any, tmp_path: Path) -> None:
    one = make(classes())
    two = make(classes()[::-1], "other.jsonl").model_copy(update={"seed": 7})
    first, second = (split_texts(prepare_dataset(r, tmp_path / "cache"), r) for r in (one, two))
    assert {k: sorted(v) for k, v in first.items()} == {k: sorted(v) for k, v in second.items()}
    assert first["train"] == second["train"][::-1]


def test_duplicates_never_sit_on_both_sides(make: Any, tmp_path: Path) -> None:
    rows = classes(100)
    again = [(f"<b>{text}</b> <br />", "good") for text, _ in rows]
    recipe = make([*rows, *again], validation=0.3, test=0.3)
    data = prepare_dataset(recipe, tmp_path / "cache")
    found = split_texts(data, recipe)
    sides = {name: set(each) for name, each in found.items()}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values()))
    assert (data.report.duplicates, data.report.conflicting) == (100, 50)


def test_held_out_sources_take_their_texts_from_the_training_rows(
    make: Any, tmp_path: Path
) -> None:
    rows = classes(100)
    test = make(rows[:20], "test.jsonl").data.source
    validation = make(rows[10:40], "validation.jsonl").data.source
    recipe = make(rows, validation=validation, test=test)
    data = prepare_dataset(recipe, tmp_path / "cache")
    assert data.report.rows == {"train": 60, "validation": 20, "test": 20}
    assert (data.report.held_out, data.report.rows_read) == (50, 150)
    found = split_texts(data, recipe)
    assert not set(found["train"]) & {*found["validation"], *found["test"]}


def test_a_test_source_without_news_leaves_nothing_to_train_on(make: Any, tmp_path: Path) -> None:
    source = make(classes(), "test.jsonl").data.source
    with pytest.raises(DataError, match="no row is left to train on"):
        prepare_dataset(make(classes(), test=source, validation=0), tmp_path / "cache")


def test_a_validation_source_that_the_test_source_holds(make: Any, tmp_path: Path) -> None:
    test = make(classes(20), "test.jsonl").data.source
    validation = make(classes(10), "validation.jsonl").data.source
    with pytest.raises(DataError, match=r"holds out no row; every text of it is in data\.test"):
        prepare_dataset(make(classes(), test=test, validation=validation), tmp_path / "cache")


def test_what_is_left_out_of_a_test_source_says_so(make: Any, tmp_path: Path) -> None:
    source = make([*classes(9), ("no label", None)], "test.jsonl").data.source
    report = prepare_dataset(make(classes(), test=source), tmp_path / "cache").report
    assert [skip.reason for skip in report.skipped] == ["test: no label"]
    assert report.rows_read == 310


# --- rare classes


def rare_rows(singles: int = 10, common: int = 200) -> list[tuple[str, str]]:
    """Two common classes, and classes of one row each."""
    rare = [(f"odd {text}", f"rare {n}") for n, text in enumerate(texts(singles, 1000))]
    return [*classes(common), *rare]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_row_trains_and_refuses_no_file(
    make: Any, tmp_path: Path, seed: int
) -> None:
    rows = [(f"{text} {'film ' * seed}", label) for text, label in rare_rows(30)]
    data = prepare_dataset(make(rows), tmp_path / "cache")
    counts = data.report.label_counts
    assert len(data.labels) == 32
    assert all(counts["train"][name] == 1 for name in data.labels if name.startswith("rare"))
    assert counts["test"]["good"] == counts["test"]["bad"] == 10
    assert counts["validation"]["good"] == counts["validation"]["bad"] == 10
    said = "\n".join(data.report.to_lines())
    assert "only 20 test rows" in said and "raise data.test" in said
    assert "30 of 32 classes have fewer than 2 test rows (30 have none), as 'rare 0'" in said
    assert "and 27 more" in said and "training row" not in said


def test_500_classes_of_four_rows(make: Any, tmp_path: Path) -> None:
    rows = [(text, f"class {n % 500}") for n, text in enumerate(texts(2000))]
    data = prepare_dataset(make(rows), tmp_path / "cache")
    counts = data.report.label_counts
    assert len(data.labels) == 500 and min(counts["train"].values()) >= 3
    assert data.report.rows["test"] == pytest.approx(200, abs=50)
    assert data.report.rows["validation"] == pytest.approx(200, abs=50)


def test_classes_and_sides_that_are_large_enough_are_not_warned_of(
    make: Any, tmp_path: Path
) -> None:
    report = prepare_dataset(make(classes(400)), tmp_path / "cache").report
    assert report.list_warnings() == []
    assert report.rows == {"train": 320, "validation": 40, "test": 40}


def test_a_text_with_several_labels_falls_on_one_side(make: Any, tmp_path: Path) -> None:
    rows = [*classes(200), *[(text, "other") for text in texts(200)]]
    recipe = make(rows, validation=0.3, test=0.3)
    data = prepare_dataset(recipe, tmp_path / "cache")
    sides = {name: set(each) for name, each in split_texts(data, recipe).items()}
    assert sum(map(len, sides.values())) == 200 and data.report.conflicting == 200


def test_an_id_in_place_of_classes_does_not_fill_the_memory(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.data.rows.source_rows.MAX_CLASSES", 500)
    rows = [(text, f"id {n}") for n, text in enumerate(texts(1500))]
    with pytest.raises(DataError, match=r"holds over 500 different values up to line 1000.*an id"):
        prepare_dataset(make(rows), tmp_path / "cache")


# --- blocks


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression", "masked-lm"])
def test_the_size_of_blocks_decides_nothing(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    values = [1.5, 2] if task == "regression" else ["a", "b"]
    recipe = make(labelled(values, 500), task=task)
    whole = prepare_dataset(recipe, tmp_path / "whole")
    small = partial(iter_blocks, most_rows=7, most_bytes=100)
    monkeypatch.setattr(spilled_texts, "_BUFFER", 10)
    monkeypatch.setattr("trainers.data.prepare.iter_blocks", small)
    parts = prepare_dataset(recipe, tmp_path / "parts")
    assert same(whole, parts)
    one, two = (tmp_path / name / whole.fingerprint for name in ("whole", "parts"))
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 10
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_rows_that_are_read_need_few_bytes_each(make: Any, tmp_path: Path) -> None:
    recipe = make([(f"{text} {'film ' * 2000}", "ab"[n % 2]) for n, text in enumerate(texts(2000))])
    tracemalloc.start()
    corpus = gather_corpus(recipe, str, tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, corpus.splits["train"].texts)) > 15_000_000
    assert most < 6_000_000


# --- labels


def labelled(values: list[Any], count: int = 300) -> list[tuple[str, Any]]:
    return [(text, values[n % len(values)]) for n, text in enumerate(texts(count))]


@pytest.mark.parametrize(
    ("values", "given_labels", "expected"),
    [
        (["b", "a"], None, {"a": 150, "b": 150}),
        ([10, 9.0, 2], None, {"2": 100, "9": 100, "10": 100}),
        (["1.0", "0.0"], None, {"0": 150, "1": 150}),
        (["1.0", "0.5"], None, {"0.5": 150, "1.0": 150}),
        ([True, False], None, {"False": 150, "True": 150}),
        ([0, 1, 1], ["no", "yes"], {"no": 100, "yes": 200}),
        (["0.0", "1.0", "1.0"], ["no", "yes"], {"no": 100, "yes": 200}),
        (["yes", "no", "no"], ["no", "yes"], {"no": 200, "yes": 100}),
        (["0", "1", "1"], ["1", "0"], {"1": 200, "0": 100}),
        ([" yes", "no"], ["yes", "no", "maybe"], {"yes": 150, "no": 150, "maybe": 0}),
    ],
)
def test_class_names(
    make: Any, tmp_path: Path, values: Any, given_labels: Any, expected: Any
) -> None:
    recipe = make(labelled(values), validation=0, test=0, labels=given_labels)
    data = prepare_dataset(recipe, tmp_path / "cache")
    assert data.report.label_counts["train"] == expected
    assert list(data.labels) == list(expected)
    counted = Counter(data.labels[target] for target in data.train.targets)
    assert counted == {name: number for name, number in expected.items() if number}


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (["a"], {}, "all training rows have the label 'a'; a classifier needs two"),
        (["a", "b"], {"labels": ["a", "c"]}, r"line 2: label 'b' is not one of 'a', 'c'"),
        ([0, 1, 2], {"labels": ["a", "c"]}, r"line 3: label '2' is not one of 'a', 'c'"),
        ([None], {}, "no row can be used; no label: 300 rows"),
        (["1" * 5000], {}, "all training rows have the label"),
    ],
)
def test_labels_that_cannot_be(
    make: Any, tmp_path: Path, values: Any, settings: Any, message: str
) -> None:
    recipe = make(labelled(values), **settings)
    with pytest.raises(DataError, match=message):
        prepare_dataset(recipe, tmp_path / "cache")
    with pytest.raises(DataError, match=message):
        estimate_dataset(recipe, tmp_path / "cache")


def test_a_label_that_training_never_met_is_warned_of(make: Any, tmp_path: Path) -> None:
    source = make([("a film", "bad"), ("b film", "mixed")], "test.jsonl").data.source
    data = prepare_dataset(make(classes(), test=source), tmp_path / "cache")
    assert data.labels == ("bad", "good", "mixed")
    said = "\n".join(data.report.to_lines())
    assert "1 of 3 classes have no training row, as 'mixed'; no model learns them" in said
    assert "only 2 test rows" in said and "raise data.test" in said
    message = r"test.jsonl line 2: label 'mixed' is not one of 'bad', 'good'.*in data.labels"
    with pytest.raises(DataError, match=message):
        named = make(classes(), test=source, labels=["bad", "good"])
        prepare_dataset(named, tmp_path / "cache")


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (["red|big", "big", ""], {}),
        ([["red", "big"], ["big"], []], {}),
        (['["red", "big"]', '["big"]', "[]"], {}),
        ([" red ; big;big", "big", " "], {"label_separator": ";"}),
        ([[1, 0], [0.0], []], {"labels": ["big", "red"]}),
    ],
)
def test_several_labels(make: Any, tmp_path: Path, values: Any, settings: Any) -> None:
    recipe = make(labelled(values), task="multi-label", validation=0, test=0, **settings)
    data = prepare_dataset(recipe, tmp_path / "cache")
    assert data.labels == ("big", "red")
    assert data.train.targets.dtype == np.uint8
    assert data.train.take_targets(np.arange(2)).dtype == np.float32
    assert data.train.targets.tolist() == [[1, 1], [1, 0], [0, 0]] * 100
    assert data.report.label_counts["train"] == {"big": 200, "red": 100}


def test_several_labels_that_are_none(make: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training row has a label"):
        prepare_dataset(make(labelled([[]]), task="multi-label"), tmp_path / "cache")
    rows = labelled(["[a, b]", None, "a"])
    report = prepare_dataset(make(rows, task="multi-label"), tmp_path / "cache").report
    assert {s.reason: s.rows for s in report.skipped} == {
        "label is no list of JSON or Python": 100,
        "no label": 100,
    }


def test_numbers_to_predict(make: Any, tmp_path: Path) -> None:
    rows = labelled(["1.5", 2, True, float("nan"), "1e39", "inf", "many", None, 10**400, [1]])
    data = prepare_dataset(make(rows, task="regression", validation=0, test=0), tmp_path / "cache")
    assert data.labels == ()
    assert data.train.targets.dtype == np.float32
    assert data.train.targets.tolist() == [1.5, 2.0, 1.0] * 30
    assert {s.reason: s.rows for s in data.report.skipped} == {
        "no label": 60,
        "label is not a finite number": 150,
    }
    assert data.report.numbers["max"] == 2
    assert any(line.startswith("targets") for line in data.report.to_lines())


def test_indices_that_a_hub_data_set_names(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    directory = tmp_path / "reviews"
    directory.mkdir()
    (directory / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n"
        "    dtype: {class_label: {names: {'0': neg, '1': pos}}}\n---\n"
    )
    rows = [{"text": text, "label": n % 3 - 1} for n, text in enumerate(texts(300))]
    pd.DataFrame(rows).to_json(directory / "train.jsonl", orient="records", lines=True)
    recipe = make([]).model_copy(update={"data": DataConfig(source=str(directory))})
    data = prepare_dataset(recipe, tmp_path / "cache")
    assert data.labels == ("neg", "pos")
    assert [(s.reason, s.rows) for s in data.report.skipped] == [("no label", 100)]
    named = DataConfig(source=str(directory), labels=("negative", "positive"))
    data = prepare_dataset(recipe.model_copy(update={"data": named}), tmp_path / "cache")
    assert sum(data.report.label_counts["train"].values()) == data.report.rows["train"]
    assert data.labels == ("negative", "positive")


# --- empty sides, and the linear model


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_share_too_small_to_hold_out_anything(make: Any, tmp_path: Path, side: str) -> None:
    shares = {"validation": 0, "test": 0} | {side: 0.0001}
    with pytest.raises(DataError, match=rf"data.{side} = 0.0001 holds out no row.*data.{side}=0"):
        prepare_dataset(make(classes(20), **shares), tmp_path / "cache")
    data = prepare_dataset(make(classes(20), validation=0, test=0), tmp_path / "cache")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 0, 0)


def test_house_prices(tmp_path: Path) -> None:
    data = prepare_dataset(recipes.load_recipe("house-prices.yaml"), tmp_path)
    assert sum(data.report.rows.values()) == 400
    areas = data.train.samples.take(range(len(data.train))).reshape(-1, 1)
    assert areas.shape == (len(data.train), 1)
    slope, intercept = np.polyfit(areas[:, 0], data.train.targets, 1)
    assert (slope, intercept) == (pytest.approx(1.8, abs=0.05), pytest.approx(0.5, abs=0.05))


def test_a_linear_model_reads_as_many_numbers_everywhere(make: Any, tmp_path: Path) -> None:
    test = make([("1 2", 1)], "test.jsonl").data.source
    recipe = make([(str(n), n) for n in range(50)], task="regression", test=test, cleaning="none")
    recipe = recipe.model_copy(update={"model": sections.ModelConfig(name="linear")})
    with pytest.raises(DataError, match="texts hold from 1 to 2 numbers"):
        prepare_dataset(recipe, tmp_path / "cache")


# --- the cache


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def same(one: PreparedDataset, two: PreparedDataset) -> bool:
    return (
        (one.labels, one.report, one.fingerprint) == (two.labels, two.report, two.fingerprint)
    ) and all(
        np.array_equal(a.samples.values, b.samples.values)
        and np.array_equal(a.samples.offsets, b.samples.offsets)
        and np.array_equal(a.targets, b.targets)
        for a, b in [(getattr(one, n), getattr(two, n)) for n in ("train", "validation", "test")]
    )


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_a_second_call_maps_what_the_first_wrote(make: Any, tmp_path: Path, task: str) -> None:
    rows = labelled([0, 1]) if task == "regression" else labelled(["a", "b"])
    recipe, cache = make(rows, task=task), tmp_path / "cache"
    told: list[tuple[int, int]] = []
    first = prepare_dataset(recipe, cache, lambda done, total: told.append((done, total)))
    read = [done for done, total in told if not total]
    assert read and told[: len(read)] == [(done, 0) for done in sorted(read)] and read[-1] == 300
    encoded = told[len(read) :]
    assert encoded[-1] == (300, 300) and sorted(encoded) == encoded and len(encoded) >= 3
    again = prepare_dataset(recipe, cache, lambda done, total: pytest.fail("encoded twice"))
    assert same(first, again)
    assert not again.train.samples.values.flags.owndata
    assert entries(cache) == {first.fingerprint}


def test_whatever_changes_the_result_makes_another_entry(make: Any, tmp_path: Path) -> None:
    cache, recipe = tmp_path / "cache", make(classes())
    fingerprints = [prepare_dataset(recipe, cache).fingerprint]
    for settings in ({"validation": 0.2}, {"max_rows": 200}, {"cleaning": "none"}):
        fingerprints.append(prepare_dataset(make(classes(), **settings), cache).fingerprint)
    longer = recipe.model_copy(update={"batch": sections.BatchConfig(max_length=17)})
    fingerprints.append(prepare_dataset(longer, cache).fingerprint)
    fingerprints.append(prepare_dataset(make(classes(299)), cache).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    moved = make(classes(), "moved.jsonl").model_copy(update={"seed": 5})
    assert prepare_dataset(moved, cache).fingerprint == fingerprints[0]


def _flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


@pytest.mark.parametrize("name", ["train.samples.values.npy", "test.targets.npy", "prepared.json"])
@pytest.mark.parametrize(
    "damage", [_flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])]
)
def test_a_damaged_entry_is_built_again(make: Any, tmp_path: Path, name: str, damage: Any) -> None:
    cache, recipe = tmp_path / "cache", make(classes())
    first = prepare_dataset(recipe, cache)
    whole = {path.name: path.read_bytes() for path in (cache / first.fingerprint).iterdir()}
    damage(cache / first.fingerprint / name)
    told: list[int] = []
    again = prepare_dataset(recipe, cache, lambda done, total: told.append(done))
    assert told
    assert {path.name: path.read_bytes() for path in (cache / first.fingerprint).iterdir()} == whole
    assert again.labels == first.labels


def test_what_a_killed_process_left_is_cleared(make: Any, tmp_path: Path) -> None:
    cache, recipe = tmp_path / "cache", make(classes())
    key = prepare_dataset(recipe, cache).fingerprint
    (cache / key).rename(cache / f".{key}.1.tmp")
    prepare_dataset(recipe, cache)
    assert entries(cache) == {key}


def test_an_error_while_encoding_leaves_nothing(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("trainers.data.dataset_cache._ArrayFile.append", refuse)
    with pytest.raises(DataError, match="cannot keep encoded data there: No space left"):
        prepare_dataset(make(classes()), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_cache_that_cannot_be_written_is_named(make: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cannot keep encoded data there"):
        prepare_dataset(make(classes()), tmp_path / "cache")


def _prepare_in_a_process(recipe: Recipe, cache: Path, log: Path) -> None:
    def tell(done: int, total: int) -> None:
        time.sleep(0.3)
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    prepare_dataset(recipe, cache, tell)


@pytest.mark.multiprocess
def test_of_several_processes_one_builds(make: Any, tmp_path: Path) -> None:
    recipe, log = make(classes()), tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    arguments = (recipe, tmp_path / "cache", log)
    workers = [spawn.Process(target=_prepare_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(set(log.read_text().split())) == 1


# --- the report and the sketch


def test_the_report_survives_json_and_reads_well(make: Any, tmp_path: Path) -> None:
    recipe = make([*classes(), ("a film", None), ("good film " * 20, "good")])
    report = prepare_dataset(recipe, tmp_path / "cache").report
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report
    said = "\n".join(report.to_lines())
    assert "302 rows read, 1 left out" in said
    assert "1 by no label (first: line 301)" in said
    assert f"{report.rows['train']:,}" in said
    assert "good" in said and "tokens" in said
    assert report.lengths["max"] <= 16


def test_many_labels_do_not_flood_the_report(make: Any, tmp_path: Path) -> None:
    recipe = make(labelled([f"label {n}" for n in range(60)], 600), validation=0, test=0)
    lines = prepare_dataset(recipe, tmp_path / "cache").report.to_lines()
    assert len(lines) < 30
    assert "and 40 labels more" in "\n".join(lines)


def test_a_sketch_samples_what_is_not_encoded_yet(make: Any, tmp_path: Path) -> None:
    recipe, cache = make(classes(2000)), tmp_path / "cache"
    rough = estimate_dataset(recipe, cache)
    assert not cache.exists()
    assert (len(rough.lengths), rough.report.sampled) == (1000, 1000)
    assert "of 1,000 training texts" in rough.report.to_lines()[-1]
    data = prepare_dataset(recipe, cache)
    exact = estimate_dataset(recipe, cache)
    assert (rough.num_train, rough.labels) == (exact.num_train, exact.labels)
    assert rough.report.rows == exact.report.rows == data.report.rows
    assert exact.report == data.report and len(exact.lengths) == exact.num_train == len(data.train)
    assert rough.lengths.mean() == pytest.approx(exact.lengths.mean(), rel=0.05)


def test_a_row_of_which_the_cleaning_leaves_nothing_is_left_out(
    tmp_path: Path, tiny_bert: Path, corpus: Path
) -> None:
    frame, nothing = pd.read_csv(corpus), [*BLANK, *MARKUP_ONLY]
    more = pd.DataFrame({"text": [*nothing, *VISIBLE], "label": "positive"})
    path = tmp_path / "rows.jsonl"
    pd.concat([frame, more]).to_json(path, orient="records", lines=True)
    settings = [f"data.source={path}", f"model.name={tiny_bert}"]
    report = prepare_dataset(recipes.load_recipe("csv", settings), tmp_path / "cache").report
    assert {skip.reason: skip.rows for skip in report.skipped} == {"no text": len(nothing)}
    assert sum(report.rows.values()) == len(frame) + len(VISIBLE)


def test_a_row_without_text_and_label_is_counted_once(
    tmp_path: Path, tiny_bert: Path, corpus: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(corpus.read_text() + "<br/>,\n<br/>,positive\n")
    recipe = recipes.load_recipe("csv", [f"data.source={path}", f"model.name={tiny_bert}"])
    report = prepare_dataset(recipe, tmp_path / "cache").report
    assert {skip.reason: skip.rows for skip in report.skipped} == {"no label": 1, "no text": 1}
