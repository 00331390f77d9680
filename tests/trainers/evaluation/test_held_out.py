"""Test rows are read once, kept beside the dataset, and made again where they are damaged."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.tickets import ticket_recipe, write_tickets
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.dataset_cache import PreparedDataset
from trainers.evaluation import held_out
from trainers.evaluation.held_out import HeldOut, load_held_out


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.csv")


def load(recipe: Recipe, cache: Path) -> tuple[HeldOut, PreparedDataset]:
    prepared = prepare.prepare_dataset(recipe, cache)
    return load_held_out(recipe, prepared, str, cache), prepared


def test_rows_are_those_of_the_dataset(tickets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = ticket_recipe(tickets, tiny_bert, "classification", "data.cleaning=none")
    rows, prepared = load(recipe, tmp_path / "cache")
    lines = tickets.read_text().splitlines()
    assert len(rows) == len(prepared.test) > 20 and not rows.reason
    for text, number, target in zip(rows.texts, rows.numbers, prepared.test.targets, strict=True):
        assert lines[number - 1] == f"{text},{prepared.labels[target]}"
    assert rows.origin == f"{tickets} line"
    assert len(set(rows.digests.tolist())) == len(set(rows.texts))
    assert rows.baseline is not None and len(rows.baseline.words) == len(rows)


def test_the_source_is_read_once(tickets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = ticket_recipe(tickets, tiny_bert)
    rows, prepared = load(recipe, tmp_path / "cache")
    tickets.unlink()
    again = load_held_out(recipe, prepared, str, tmp_path / "cache")
    assert again.texts == rows.texts and np.array_equal(again.digests, rows.digests)
    assert again.baseline is not None and rows.baseline is not None
    assert np.array_equal(again.baseline.words, rows.baseline.words)
    assert again.baseline.seconds == rows.baseline.seconds


def test_damage_is_made_good(tickets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    recipe = ticket_recipe(tickets, tiny_bert, "classification", "baseline=false")
    rows, prepared = load(recipe, tmp_path / "cache")
    assert rows.baseline is None and len(rows)
    for name in (held_out.ARRAYS, held_out.INDEX):
        (path,) = (tmp_path / "cache").glob(f"*/{name}")
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
        again = load_held_out(recipe, prepared, str, tmp_path / "cache")
        assert again.texts == rows.texts and np.array_equal(again.digests, rows.digests)


def test_a_source_that_is_gone_or_changed_is_a_reason(
    tickets: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    recipe = ticket_recipe(tickets, tiny_bert)
    prepared = prepare.prepare_dataset(recipe, tmp_path / "cache")
    write_tickets(tickets, rows=120)
    rows = load_held_out(recipe, prepared, str, tmp_path / "cache")
    assert not len(rows) and "has changed since it was encoded" in rows.reason
    tickets.unlink()
    rows = load_held_out(recipe, prepared, str, tmp_path / "cache")
    assert not len(rows) and "could not be read again" in rows.reason


def test_large_sources_are_not_read_twice(
    tickets: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "MAX_SOURCE_ROWS", 149)
    rows, _ = load(ticket_recipe(tickets, tiny_bert), tmp_path / "cache")
    assert rows.reason == "more than 149 rows are not read a second time"


def test_a_digest_is_of_text_and_label(tiny_bert: Path, tmp_path: Path) -> None:
    digests = []
    for name, label in (("one.csv", "x"), ("other.csv", "z")):
        path = tmp_path / name
        lines = [f"word{row} good,{label if row % 2 else 'y'}" for row in range(80)]
        path.write_text("\n".join(["text,label", *lines]) + "\n")
        recipe = ticket_recipe(path, tiny_bert, "classification", "baseline=false")
        rows, prepared = load(recipe, tmp_path / "cache")
        digests.append((rows.digests, [prepared.labels[each] for each in prepared.test.targets]))
    (one, labels), (other, _) = digests
    assert [a == b for a, b in zip(one, other, strict=True)] == [label == "y" for label in labels]
