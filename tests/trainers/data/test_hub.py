"""Data sets of the hub, from directories that they were downloaded to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.data.files import DataError
from trainers.data.hub import hub_fingerprint, read_hub_rows
from trainers.data.splits import SplitName

COLUMNS = {"label": "data.label", "text": "data.text"}
HEAD = "---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n"
NAMES = "class_label: {names: {'0': neg, '1': pos}}"
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Write a data set of splits with one row each, whose text is the name of the split."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, splits: list[str], card: str = "", label: Any = 1) -> str:
        directory = tmp_path / name
        directory.mkdir()
        for split in splits:
            row = {"text": split, "label": label}
            (directory / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        if card:
            (directory / "README.md").write_text(card)
        return str(directory)

    return write


def test_values_come_in_the_order_of_the_columns(make: Make) -> None:
    rows, names = read_hub_rows(make("plain", ["train"]), None, "train", COLUMNS)
    assert list(rows) == [(1, (1, "train"))] and names == ()


@pytest.mark.parametrize("validation", ["validation", "valid", "dev"])
def test_a_split_is_found_by_any_of_its_names(make: Make, validation: str) -> None:
    files = [f"  - {{split: {name}, path: {name}.jsonl}}" for name in (validation, "train")]
    configs = "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files])
    source = make("several", [validation, "train"], f"{configs}\n---\n")
    splits: dict[SplitName, str] = {"train": "train", "validation": validation}
    for part, split in splits.items():
        rows, _ = read_hub_rows(source, None, part, COLUMNS)
        assert [values[1] for _, values in rows] == [split]
    with pytest.raises(DataError, match=rf"no split for test; it has {validation}, train"):
        read_hub_rows(source, None, "test", COLUMNS)


def test_an_only_split_serves_every_part(make: Make) -> None:
    rows, _ = read_hub_rows(make("only", ["train"]), None, "test", COLUMNS)
    assert [values[1] for _, values in rows] == ["train"]


@pytest.mark.parametrize(
    ("dtype", "label"), [(f"    dtype: {{{NAMES}}}", 1), (f"    list: {{{NAMES}}}", [0, 1])]
)
def test_classes_have_names_for_one_label_and_for_several(
    make: Make, dtype: str, label: Any
) -> None:
    source = make("named", ["train"], f"{HEAD}{dtype}\n---\n", label)
    rows, names = read_hub_rows(source, None, "train", COLUMNS)
    assert names == ("neg", "pos") and next(rows)[1][0] == label
    _, names = read_hub_rows(source, None, "train", {"label": "data.filter.label"})
    assert names == (), "a column to filter by is no label"


def test_a_fingerprint_changes_with_the_data_and_the_split(make: Make) -> None:
    one, other = make("one", ["train"]), make("other", ["train"], label=0)
    first = hub_fingerprint(one, None, "train")
    assert first.startswith("hub:") and first.endswith("/train")
    assert first == hub_fingerprint(one, None, "train")
    assert (
        len({first, hub_fingerprint(one, None, "test"), hub_fingerprint(other, None, "train")}) == 3
    )


@pytest.mark.parametrize("subset", [None, "absent"])
def test_what_cannot_be_loaded_says_the_ways_out(make: Make, tmp_path: Path, subset: Any) -> None:
    source = make("there", ["train"]) if subset else str(tmp_path / "absent")
    for read in (
        lambda: read_hub_rows(source, subset, "train", COLUMNS),
        lambda: hub_fingerprint(source, subset, "train"),
    ):
        with pytest.raises(DataError) as raised:
            read()
        said = str(raised.value)
        assert said.startswith(f"{source}: no such file, and as a data set of the hub")
        assert "reach the hub once to fill its cache" in said and "data.source=FILE.csv" in said
