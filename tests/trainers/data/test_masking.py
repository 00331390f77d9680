"""Masking: the original's shares, and choices that belong to the sample and not to its batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.config.sections import MaskingConfig
from trainers.data.masking import MaskedBatch, MaskingVocabulary, mask_tokens

SIZE, PAD, CLS, SEP, MASK = 1000, 0, 1, 2, 3
SPECIAL = np.arange(SIZE) < 4
CONTINUATION = np.arange(SIZE) >= 600
WORDS = MaskingVocabulary(SIZE, MASK, SPECIAL, CONTINUATION)
PIECES, WHOLE = MaskingConfig(), MaskingConfig(whole_words=True)


def sequence(row: int, length: int) -> np.ndarray:
    """[CLS] tokens [SEP] of a row, a function of the row alone."""
    draw = np.random.default_rng(row)
    return np.array([CLS, *draw.integers(4, SIZE, length), SEP], dtype=np.int32)


def masked(rows: list[int], lengths: list[int], **settings: object) -> MaskedBatch:
    held = [sequence(row, lengths[row]) for row in rows]
    sizes = np.array([len(each) for each in held])
    chosen = {"epoch": 0, "seed": 0, "masking": PIECES} | settings
    return mask_tokens(np.concatenate(held), sizes, np.array(rows), vocabulary=WORDS, **chosen)  # type: ignore[arg-type]


def by_row(
    found: MaskedBatch, rows: list[int], lengths: list[int]
) -> dict[int, tuple[list[int], ...]]:
    """What each row became, where, and from what."""
    said, start = {}, 0
    for row in rows:
        stop = start + lengths[row] + 2
        here = (start <= found.positions) & (found.positions < stop)
        said[row] = (
            found.ids[start:stop].tolist(),
            (found.positions[here] - start).tolist(),
            found.targets[here].tolist(),
        )
        start = stop
    return said


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.data(),
    st.booleans(),
)
def test_grouping_changes_nothing(
    lengths: list[int], data: st.DataObject, whole_words: bool
) -> None:
    kind = {"epoch": 3, "seed": 7, "masking": MaskingConfig(share=0.3, whole_words=whole_words)}
    rows = list(range(len(lengths)))
    together = by_row(masked(rows, lengths, **kind), rows, lengths)
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    apart = {}
    for group in (shuffled[:cut], shuffled[cut:]):
        if group:
            apart |= by_row(masked(group, lengths, **kind), group, lengths)
    assert apart == together


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.01, 0.99))
def test_exactly_the_share_of_each_sequence_is_to_be_guessed(
    row: int, length: int, share: float
) -> None:
    lengths = {row: length}
    found = masked([row], lengths, masking=MaskingConfig(share=share))  # type: ignore[arg-type]
    assert len(found.positions) == max(1, round(share * length))
    assert (np.diff(found.positions) > 0).all()
    assert np.array_equal(sequence(row, length)[found.positions], found.targets)
    untouched = np.setdiff1d(np.arange(length + 2), found.positions)
    assert np.array_equal(found.ids[untouched], sequence(row, length)[untouched])
    assert not SPECIAL[found.targets].any()


@pytest.mark.parametrize("share", [0.15, 0.3])
@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_on_a_large_sample(share: float, whole_words: bool) -> None:
    rows = list(range(2000))
    masking = MaskingConfig(share=share, whole_words=whole_words)
    found = masked(rows, [126] * 2000, masking=masking)
    n, after = len(found.targets), found.ids[found.positions]
    expected = round(share * 126) / 126
    shortfall = 0.015 if whole_words else 1e-12  # the last word is left out where it does not fit
    assert expected - shortfall <= n / (2000 * 126) <= expected + 1e-12
    bound = 4 * np.sqrt(0.25 / n)
    assert (after == MASK).mean() == pytest.approx(0.8, abs=bound)
    changed = (after != MASK) & (after != found.targets)
    assert changed.mean() == pytest.approx(0.1, abs=bound)
    drawn = after[changed]
    assert not SPECIAL[drawn].any()
    assert drawn.mean() == pytest.approx((4 + SIZE) / 2, abs=4 * 288 / np.sqrt(len(drawn)))
    of_places = np.bincount(found.positions % 128, minlength=128)[1:127] / 2000
    spread = 6 * np.sqrt(0.25 / 2000)
    assert np.abs(of_places - expected).max() < spread


def test_epochs_and_seeds_hide_other_tokens() -> None:
    rows, lengths = list(range(50)), [126] * 50
    found = [
        set(masked(rows, lengths, epoch=epoch, seed=seed).positions.tolist())
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        overlap = len(found[one] & found[other]) / len(found[one])
        assert overlap == pytest.approx(0.15, abs=0.06)


def test_whole_words_are_hidden_whole() -> None:
    rows = list(range(200))
    found = masked(rows, [60] * 200, masking=WHOLE)
    hidden = np.zeros(found.ids.shape, dtype=bool)
    hidden[found.positions] = True
    hidden = hidden.reshape(200, 62)
    for row in rows:
        ids = sequence(row, 60)
        follows = CONTINUATION[ids] & ~SPECIAL[np.roll(ids, 1)]
        assert (hidden[row, 1:62] == hidden[row, :61])[follows[1:]].all()
        assert 1 <= hidden[row].sum() <= 9 or hidden[row].sum() == _longest(ids)


def _longest(ids: np.ndarray) -> int:
    longest = run = 0
    for each in ids[1:-1]:
        run = run + 1 if CONTINUATION[each] else 1
        longest = max(longest, run)
    return longest


def test_a_word_longer_than_the_share_is_still_guessed() -> None:
    ids = np.array([CLS, 700, 701, 702, SEP], dtype=np.int32)
    found = mask_tokens(ids, np.array([5]), np.array([5]), 0, 0, WHOLE, WORDS)
    assert found.targets.tolist() == [700, 701, 702]


@pytest.mark.parametrize("masking", [PIECES, WHOLE])
def test_nothing_to_hide_hides_nothing(masking: MaskingConfig) -> None:
    ids = np.array([CLS, SEP, PAD], dtype=np.int32)
    found = mask_tokens(ids, np.array([3]), np.array([0]), 0, 0, masking, WORDS)
    assert (found.ids == ids).all() and len(found.positions) == 0
    no_rows, no_ids = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
    none = mask_tokens(no_ids, no_rows, no_rows, 0, 0, masking, WORDS)
    assert len(none.targets) == 0


def test_the_given_ids_stay_as_they_were() -> None:
    ids = np.concatenate([sequence(row, 30) for row in range(4)])
    before = ids.copy()
    found = mask_tokens(ids, np.full(4, 32), np.arange(4), 0, 0, PIECES, WORDS)
    assert np.array_equal(ids, before) and found.ids.dtype == ids.dtype
    assert (found.positions.dtype, found.targets.dtype) == (np.int64, np.int64)
