"""The house keeps its measures: folders, names, the README."""

import sys
from pathlib import Path

from tests.support.paths import BENCHMARKS, ROOT

sys.path.insert(0, str(BENCHMARKS))

import codebase

PATHS = codebase.sources([ROOT / name for name in codebase.PRODUCT])


def test_no_folder_is_wider_than_twenty_files() -> None:
    assert codebase.widest_folder(PATHS)[1] <= 20


def test_most_function_names_say_verb_and_object() -> None:
    assert codebase.share_of_one_word(codebase.function_names(PATHS)) <= 0.45


def test_a_public_class_name_means_one_thing() -> None:
    assert codebase.repeated_classes(PATHS) == {}


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 200


def test_counts_are_of_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "class Row:\n    def read(self): ...\n    def __len__(self): ...\n"
    )
    (tmp_path / "b.py").write_text("class Row: ...\nclass _Row: ...\ndef _read_row(): ...\n")
    paths = codebase.sources([tmp_path])
    assert codebase.num_lines(paths) == 6
    assert codebase.widest_folder(paths) == (tmp_path, 2)
    assert sorted(codebase.function_names(paths)) == ["_read_row", "read"]
    assert codebase.share_of_one_word(["_read_row", "read", "_close"]) == 2 / 3
    assert list(codebase.repeated_classes(paths)) == ["Row"]
