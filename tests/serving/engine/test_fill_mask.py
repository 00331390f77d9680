"""Words for masks: their scores, their order, and the text with each in its place."""

import math

import numpy as np
import pytest
from transformers import BertTokenizerFast

from serving.engine.fill_mask import predict_masks
from serving.interface import MaskPrediction

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "a", "is", "good"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})


def fill(
    tokenizer: BertTokenizerFast,
    text: str,
    likely: str,
    top_k: int = 1,
    targets: list[str] | None = None,
    max_length: int = 99,
) -> tuple[tuple[MaskPrediction, ...], ...]:
    """Fill the masks of a text whose tokens `likely` have logits 3, 2, 1, ... and others 0."""
    row = np.array(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])
    logits = np.zeros((int((row == tokenizer.mask_token_id).sum()), len(WORDS)), np.float32)
    for rank, word in enumerate(likely.split()):
        logits[:, WORDS.index(word)] = 3 - rank
    return predict_masks(tokenizer, text, row, logits, top_k, targets)


def test_the_likeliest_come_first_with_their_probability(tokenizer: BertTokenizerFast) -> None:
    ((first, second),) = fill(tokenizer, "a [MASK]", "film good", top_k=2)
    assert (first.token_str, first.token) == ("film", WORDS.index("film"))
    assert second.token_str == "good"
    total = math.exp(3) + math.exp(2) + 8
    assert first.score == pytest.approx(math.exp(3) / total, rel=1e-6)
    assert second.score == pytest.approx(math.exp(2) / total, rel=1e-6)


def test_equal_scores_keep_the_order_of_the_vocabulary(tokenizer: BertTokenizerFast) -> None:
    (found,) = fill(tokenizer, "[MASK]", "is", top_k=len(WORDS))
    assert [each.token_str for each in found] == ["is", *(w for w in WORDS if w != "is")]


def test_huge_logits_are_no_infinity(tokenizer: BertTokenizerFast) -> None:
    row = np.array([WORDS.index("[MASK]")])
    logits = np.full((1, len(WORDS)), 999.0, np.float32)
    ((found,),) = predict_masks(tokenizer, "[MASK]", row, logits, 1, None)
    assert found.score == pytest.approx(1 / len(WORDS))


def test_targets_keep_the_score_they_have_among_all_words(tokenizer: BertTokenizerFast) -> None:
    (among_all,) = fill(tokenizer, "a [MASK]", "film good", top_k=2)
    (found,) = fill(tokenizer, "a [MASK]", "film good", top_k=9, targets=["is", "good"])
    assert [each.token_str for each in found] == ["good", "is"]
    assert found[0] == among_all[1]


def test_a_target_stands_for_its_first_token(tokenizer: BertTokenizerFast) -> None:
    (found,) = fill(tokenizer, "a [MASK]", "film ##s", 9, ["films", "", "film", "nowhere"])
    assert [each.token_str for each in found] == ["film", "[UNK]"]


@pytest.mark.parametrize(
    ("text", "word", "sequences"),
    [
        ("A  [MASK], is", "film", ["A  film, is"]),
        ("A film [MASK] is", "##s", ["A films is"]),
        ("[MASK]", "##s", ["s"]),
        ("[MASK] is[MASK].", "film", ["film is[MASK].", "[MASK] isfilm."]),
    ],
)
def test_a_word_goes_where_its_mask_is_and_a_suffix_joins_the_word_before(
    tokenizer: BertTokenizerFast, text: str, word: str, sequences: list[str]
) -> None:
    found = fill(tokenizer, text, word)
    assert [of_mask[0].sequence for of_mask in found] == sequences


def test_a_text_that_was_cut_is_written_from_its_tokens(tokenizer: BertTokenizerFast) -> None:
    text = "A [MASK] is a [MASK] is [MASK]"
    found = fill(tokenizer, text, "film", max_length=7)
    assert [each.sequence for (each,) in found] == ["a film is a [MASK]", "a [MASK] is a film"]


class Spaced:
    """A tokenizer whose words carry the space before them, as byte-level ones do."""

    mask_token, mask_token_id = "<mask>", 0

    def decode(self, ids: list[int]) -> str:
        return "".join(["<mask>", " film"][each] for each in ids)


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("<mask> is", "film is"),
        ("a <mask> is", "a film is"),
        ("a\n<mask>", "a\nfilm"),
        ("a<mask>", "a film"),
    ],
)
def test_a_word_brings_its_space_where_there_is_none(text: str, sequence: str) -> None:
    ((found,),) = predict_masks(Spaced(), text, np.array([0]), np.float32([[0, 5]]), 1, None)
    assert (found.token_str, found.sequence) == (" film", sequence)
