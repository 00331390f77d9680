"""Windows over long texts: which tokens stand in which, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from cluster.settings import SettingsError
from trainers.config.recipe import load_recipe
from trainers.config.windows import WindowsConfig
from trainers.data import prepare
from trainers.data.ragged import concat_ragged
from trainers.data.tokenizer import TextEncoder, load_encoder
from trainers.models.card import ModelCard

WORDS = ["good", "bad", "film", "plot", "cast", "scene", "actor", "story", "warm", "cold"]
LONG = " ".join(WORDS[n % 10] for n in range(31))


@given(st.integers(0, 200), st.integers(1, 14), st.integers(2, 30))
def test_windows_reach_over_a_text_without_a_gap(tokens: int, stride: int, most: int) -> None:
    windows = WindowsConfig(stride=stride, max_windows=most)
    spans = windows.spans(tokens, 14, 16)
    assert [start for start, _ in spans] == [stride * n for n in range(len(spans))]
    assert spans[0][0] == 0 and len(spans) <= most
    assert all(0 <= end - start <= 14 for start, end in spans)
    assert all(later <= end for (_, end), (later, _) in itertools.pairwise(spans))
    assert spans[-1][1] == min(tokens, windows.max_tokens(16) - 2)
    assert all(end < tokens for _, end in spans[:-1]), "none stands inside the one before"


def test_a_long_text_is_read_in_windows_with_special_tokens_on_each(tiny_bert: Path) -> None:
    cut = load_encoder(str(tiny_bert), "text-v1", 16)
    encoder = load_encoder(str(tiny_bert), "text-v1", 16, WindowsConfig(stride=7))
    texts = ["good film", LONG, "", " ".join(WORDS[:8] + WORDS[:6])]
    samples, truncated = encoder.encode(texts)
    assert not truncated.any() and samples.windows is not None
    assert samples.windows.lengths.tolist() == [1, 4, 1, 1]
    ids = AutoTokenizer.from_pretrained(tiny_bert)(LONG, add_special_tokens=False)["input_ids"]
    expected = [[2, *ids[start : start + 14], 3] for start in (0, 7, 14, 21)]
    of_long, counts = samples.sequences_of(np.array([1]))
    assert [samples.sequences[each].tolist() for each in of_long] == expected
    assert counts is not None and counts.tolist() == [4]
    assert samples[1].tolist() == [token for window in expected for token in window]
    short, was_cut = cut.encode(texts)
    assert was_cut.tolist() == [False, True, False, False]
    for row in (0, 2, 3):
        assert samples[row].tolist() == short[row].tolist(), "a short text is read as ever"


def test_the_planner_counts_the_tokens_that_are_computed(tiny_bert: Path) -> None:
    windows = WindowsConfig(stride=5, max_windows=4)
    encoder = load_encoder(str(tiny_bert), "none", 16, windows)
    samples, _ = encoder.encode([" ".join(["film"] * words) for words in range(60)])
    counted = [windows.computed_tokens(words + 2, 16) for words in range(60)]
    assert samples.lengths.tolist() == counted


def test_what_lies_behind_the_last_window_is_cut_and_said(tiny_bert: Path) -> None:
    windows = WindowsConfig(stride=14, max_windows=2)
    encoder = load_encoder(str(tiny_bert), "none", 16, windows)
    assert windows.max_tokens(16) == 30
    fits, too_long = " ".join(["film"] * 28), " ".join(["film"] * 29)
    samples, truncated = encoder.encode([fits, too_long, "film " * 100_000])
    assert truncated.tolist() == [False, True, True]
    assert samples.windows is not None and samples.windows.values.tolist() == [16] * 6


def test_a_tokenizer_that_cuts_at_the_left_keeps_the_end(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, truncation_side="left")
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "none", 16, WindowsConfig(stride=14, max_windows=2))
    samples, truncated = encoder.encode([LONG])
    ids = tokenizer(LONG, add_special_tokens=False, truncation=False)["input_ids"]
    assert truncated.all()
    assert [token for token in samples[0].tolist() if token > 4] == ids[-28:]


def test_a_tokenizer_in_python_has_windows_too(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "none", 8, WindowsConfig(stride=5))
    samples, truncated = encoder.encode(["1234567", "123456789"])
    assert samples.windows is not None and not truncated.any()
    assert samples.windows.lengths.tolist() == [1, 2]
    assert isinstance(encoder, TextEncoder) and encoder.special_ids == ([], [1])
    found = [samples.sequences[each].tolist() for each in (0, 1, 2)]
    assert found == [[*range(52, 59), 1], [*range(52, 59), 1], [*range(57, 61), 1]]


def test_parts_are_joined_with_their_windows(tiny_bert: Path) -> None:
    encoder = load_encoder(str(tiny_bert), "none", 16, WindowsConfig(stride=9))
    texts = ["good film", LONG, "bad", LONG]
    whole, _ = encoder.encode(texts)
    parts = concat_ragged([encoder.encode(texts[:2])[0], encoder.encode(texts[2:])[0]])
    assert whole.windows is not None and parts.windows is not None
    for one, other in ((whole, parts), (whole.windows, parts.windows)):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.offsets, other.offsets)
    none, _ = encoder.encode([])
    assert none.windows is not None and len(none.windows) == 0


def test_a_fingerprint_is_of_the_windows_where_there_are_some(tiny_bert: Path) -> None:
    settings = [None, WindowsConfig(), WindowsConfig(stride=4), WindowsConfig(pool="max")]
    made = [load_encoder(str(tiny_bert), "none", 16, each).fingerprint for each in settings]
    assert len(set(made)) == len(made)
    assert load_encoder(str(tiny_bert), "none", 16).fingerprint == made[0]


def write_rows(directory: Path) -> Path:
    rows = ["text,label"]
    for row in range(60):
        rows.append(f"{'film ' * (3 + row)}{'good' if row % 2 else 'bad'},{row % 2}")
    path = directory / "rows.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_prepared_rows_keep_their_windows_and_the_report_counts_them(
    tiny_bert: Path, tmp_path: Path
) -> None:
    settings = [f"data.source={write_rows(tmp_path)}", f"model.name={tiny_bert}"]
    settings += ["batch.max_length=16", "data.windows={stride: 7, max_windows: 6}"]
    recipe = load_recipe("csv", settings)
    rough = prepare.estimate_dataset(recipe, tmp_path / "other")
    data = prepare.prepare_dataset(recipe, tmp_path / "cache")
    again = prepare.prepare_dataset(recipe, tmp_path / "cache")
    windows, kept = data.train.samples.windows, again.train.samples.windows
    assert windows is not None and kept is not None
    np.testing.assert_array_equal(windows.values, kept.values)
    np.testing.assert_array_equal(windows.offsets, kept.offsets)
    assert len(windows) == len(data.train) == len(data.train.targets)
    assert windows.values.sum() == len(data.train.samples.values)
    counts = windows.lengths
    assert data.report.windows["max"] == counts.max() == 6
    assert data.report.windows["texts"] == pytest.approx((counts > 1).mean())
    full = int((data.train.samples.lengths == 6 * 16).sum())  # the shortest of them is read whole
    assert round(data.report.truncated * len(data.train)) in (full - 1, full) and full > 2
    assert rough.report.windows == data.report.windows
    assert rough.lengths.tolist() == data.train.samples.lengths.tolist()
    assert any(line.startswith("windows ") for line in data.report.to_lines())
    plain = load_recipe("csv", settings[:3])
    assert prepare.prepare_dataset(plain, tmp_path / "cache").train.samples.windows is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=masked-lm"], r"data.windows .* masked-lm packs every text whole"),
        (["model.name=linear"], r"data.windows .* linear, which reads numbers"),
        (["data.windows.stride=15"], r"data.windows.stride = 15 leaves tokens .* set it to 14"),
        (["data.windows.stride=0"], r"data.windows.stride"),
        (["data.windows.pool=sum"], r"data.windows.pool"),
        (["data.windows.max_windows=1"], r"data.windows.max_windows"),
    ],
)
def test_windows_that_cannot_be_are_refused_by_name(overrides: list[str], message: str) -> None:
    known = ["data.source=x.csv", "batch.max_length=16", "data.windows={stride: 7}"]
    with pytest.raises(SettingsError, match=message):
        load_recipe("csv", [*known, *overrides])


def test_a_card_without_windows_is_one_that_cuts() -> None:
    assert ModelCard.model_fields["windows"].default is None
