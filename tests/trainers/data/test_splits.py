"""Stratified splits: a function of texts and labels alone, fair to every class, and steady."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    assign_splits,
    mask_unseen,
    stratify_splits,
    text_hash,
)

Row = tuple[str, tuple[str, ...]]  # a text and its labels
ROWS = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.sampled_from("abcde"), max_size=3, unique=True)),
    max_size=60,
)


def split(rows: list[Row], v: float = 0.1, t: float = 0.1) -> list[int]:
    """The side of each row of (text, labels)."""
    labels = list(dict.fromkeys(label for _, label in rows))
    codes = np.array([labels.index(label) for _, label in rows], dtype=np.int32)
    hashes = np.array([text_hash(text) for text, _ in rows], dtype=np.uint64)
    sides: list[int] = stratify_splits(hashes, labels, codes, v, t).tolist()
    return sides


def of_class(name: str, count: int) -> list[Row]:
    return [(f"{name} {number}", (name,)) for number in range(count)]


@given(ROWS, st.floats(0, 0.5), st.floats(0, 0.49), st.randoms(use_true_random=False))
def test_a_text_has_one_side_whatever_the_order(rows, v, t, random) -> None:  # type: ignore[no-untyped-def]
    named = [(str(text), tuple(labels)) for text, labels in rows]
    sides: dict[str, int] = {}
    for (text, _), side in zip(named, split(named, v, t), strict=True):
        assert sides.setdefault(text, side) == side
    random.shuffle(named)
    assert all(
        sides[text] == side for (text, _), side in zip(named, split(named, v, t), strict=True)
    )


@pytest.mark.parametrize("count", [300, 1000, 20_000])
def test_a_large_class_gives_its_shares_to_one_text(count: int) -> None:
    rows = [*of_class("common", count), *of_class("rare", 200)]
    sides = np.array(split(rows, 0.15, 0.1))
    for part in (sides[:count], sides[count:]):
        assert abs((part == TEST).sum() - 0.1 * len(part)) < 1
        assert abs((part == VALIDATION).sum() - 0.15 * len(part)) < 2


def test_large_balanced_classes_stay_where_the_hash_alone_puts_them() -> None:
    rows = [*of_class("a", 5000), *of_class("b", 5000)]
    plain = assign_splits([text_hash(text) for text, _ in rows], 0.1, 0.1)
    assert (np.array(split(rows)) != plain).mean() < 0.03


def test_one_text_of_a_class_always_trains() -> None:
    rows = [row for number in range(500) for row in of_class(f"class {number}", 1 + number % 4)]
    sides = split(rows, 0.4, 0.4)
    trained = {label for (_, (label,)), side in zip(rows, sides, strict=True) if side == TRAIN}
    assert len(trained) == 500


def test_small_classes_give_their_shares_on_average() -> None:
    rows = [row for number in range(2000) for row in of_class(f"class {number}", 4)]
    counts = np.bincount(split(rows), minlength=3)
    # Of 2,000 lots of probability 0.4 each, the deviation is 22.
    assert counts[TEST] == pytest.approx(800, abs=90)
    assert counts[VALIDATION] == pytest.approx(800, abs=90)


def test_a_row_of_several_labels_counts_for_the_rarest() -> None:
    rows: list[Row] = [(f"text {number}", ("common",)) for number in range(100)]
    rows += [("both", ("common", "single")), ("no label", ())]
    sides = split(rows, 0.3, 0.3)
    assert sides[-2:] == [TRAIN, TRAIN]
    assert split([*rows, ("both", ("common",))], 0.3, 0.3)[-1] == TRAIN


def test_the_rarest_label_decides_which_rows_are_held_out() -> None:
    both: list[Row] = [(f"both {number}", ("common", "rare")) for number in range(40)]
    sides = np.array(split([*of_class("common", 2000), *both], 0.2, 0.1)[-40:])
    assert ((sides == TEST).sum(), (sides == VALIDATION).sum()) == (4, 8)


def test_an_added_text_moves_at_most_one_text_at_each_border_of_its_class() -> None:
    rows = [*of_class("a", 120), *of_class("b", 90)]
    for number in range(50):
        before = split(rows, 0.2, 0.1)
        rows.append((f"later {number}", ("a",)))
        after = split(rows, 0.2, 0.1)
        moved = [
            (row[1], sorted((old, new)))
            for row, old, new in zip(rows, before, after, strict=False)
            if old != new
        ]
        assert all(label == ("a",) for label, _ in moved)
        assert all(len(list(group)) == 1 for _, group in itertools.groupby(sorted(moved)))


def test_texts_that_are_held_out_elsewhere_are_seen() -> None:
    hashes = np.array([text_hash(text) for text in "abcd"], dtype=np.uint64)
    assert mask_unseen(hashes, hashes[1:3]).tolist() == [True, False, False, True]
    assert mask_unseen(hashes[:0], hashes).tolist() == []
