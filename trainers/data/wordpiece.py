"""A WordPiece vocabulary trained on a recipe's own texts, for a BERT that starts from scratch.

The tokenizer is that of bert-base-uncased (lower case, no accents, `##` before a piece that
continues a word) with other pieces. It is a function of the training texts and its size alone, on
every machine, and is kept in the cache as a directory that `model.tokenizer` could name.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainers.config.recipe import Recipe
from trainers.data.cleaning import clean_text
from trainers.data.corpus import corpus_identity, gather_corpus
from trainers.data.files import DataError
from trainers.storage.atomic import find_corruption, hash_files, json_sha256
from trainers.storage.cache import build_once

FORMAT = 1  # of how a vocabulary is trained; bump to invalidate existing ones
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LETTERS = 1000  # characters that are pieces by themselves, as in Transformers' own trainer
INDEX = "vocabulary.json"


def resolve_tokenizer(recipe: Recipe, cache: Path) -> Recipe:
    """Return `recipe` with model.tokenizer naming the vocabulary that vocabulary_size asks for.

    The vocabulary is trained where `cache` does not hold it; of several processes one trains. A
    recipe without model.vocabulary_size is returned as it is. Raises DataError.
    """
    size = recipe.model.vocabulary_size
    if size is None:
        return recipe

    def build(directory: Path) -> None:
        corpus = gather_corpus(recipe, partial(clean_text, recipe.data.cleaning), directory.parent)
        texts = corpus.splits["train"].texts
        _make_tokenizer(train_vocabulary(texts, size)).save_pretrained(directory)
        (directory / INDEX).write_text(json.dumps(hash_files(directory)) + "\n")

    key = json_sha256([FORMAT, size, corpus_identity(recipe)])
    try:
        directory = build_once(cache / f"vocabulary-{key}", build, _load_directory)
    except OSError as error:
        raise DataError(f"{cache}: cannot keep a vocabulary there: {error}") from None
    named = {"tokenizer": str(directory), "vocabulary_size": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=named)})


def train_vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """Train at most `size` pieces on cleaned texts; return their ids, the same in every process.

    The library numbers characters in the order of a hash table that differs from process to
    process, and breaks ties by number. Here all of them are numbered beforehand, by code point.
    """
    from tokenizers import Tokenizer, models, trainers

    bert = _make_tokenizer({each: index for index, each in enumerate(SPECIAL)}).backend_tokenizer
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = bert.normalizer, bert.pre_tokenizer
    letters = _choose_alphabet(bert, texts, size)
    # A letter that stands inside of words also takes a piece with ##; one that splits words cannot.
    inside = [
        f"##{letter}"
        for letter in letters
        if len(bert.pre_tokenizer.pre_tokenize_str(f"a{letter}")) == 1
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *letters, *inside],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _choose_alphabet(bert: Any, texts: Sequence[str], size: int) -> list[str]:
    """Choose the characters that become pieces: the most frequent, ordered by code point.

    One may take two pieces, at the head of a word and inside; together they take at most half.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(bert.normalizer.normalize_str(text))
    by_frequency = sorted(counts, key=lambda each: (-counts[each], each))
    usable = [each for each in by_frequency if not each.isspace()]
    return sorted(usable[: min(MAX_LETTERS, (size - len(SPECIAL)) // 4)])


def _make_tokenizer(vocabulary: dict[str, int]) -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True)


def _load_directory(directory: Path) -> Path | None:
    """Return `directory` where it holds a vocabulary as it was written."""
    try:
        files = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        return directory if find_corruption(directory, files) is None else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
