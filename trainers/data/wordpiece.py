"""A WordPiece vocabulary trained on a recipe's own texts, for a BERT that starts from nothing.

The tokenizer is that of bert-base-uncased (lower case, no accents, `##` before a piece that
continues a word) with other pieces. It is a function of the training texts and its size alone, on
every machine, and is kept in the cache as a directory that `model.tokenizer` could name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainers.config.recipe import Recipe
from trainers.data.cleaning import CLEANINGS
from trainers.data.corpus import gather, identity
from trainers.data.files import DataError
from trainers.storage.atomic import digests, flaw, write_file, written_aside

FORMAT = 1  # of how a vocabulary is made; a new number makes strangers of the old ones
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = 1000  # most characters that are pieces by themselves, as in Transformers' own trainer
INDEX = "vocabulary.json"


def with_tokenizer(recipe: Recipe, cache: Path) -> Recipe:
    """`recipe` with a tokenizer to load: itself, or with model.tokenizer naming the directory of
    the vocabulary that model.vocabulary_size asks for.

    The vocabulary is trained if `cache` does not hold it; of several processes one trains. Raises
    DataError.
    """
    size = recipe.model.vocabulary_size
    if size is None:
        return recipe
    directory = cache / f"vocabulary-{_key(recipe, size)}"
    try:
        if not _is_whole(directory):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{directory}.lock"):
                if not _is_whole(directory):
                    _write(directory, recipe, size)
    except OSError as error:
        raise DataError(f"{cache}: cannot keep a vocabulary there: {error}") from None
    named = {"tokenizer": str(directory), "vocabulary_size": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=named)})


def train(texts: Sequence[str], size: int) -> dict[str, int]:
    """At most `size` pieces and their ids, from cleaned texts; the same in every process.

    The library numbers characters in the order of a hash table that differs from process to
    process, and breaks ties by number. Here all of them are numbered beforehand, by code point.
    """
    from tokenizers import Tokenizer, models, trainers

    rules = _rules()
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    letters = _letters(rules, texts, size)
    inside = [f"##{each}" for each in letters if len(_words(rules, f"a{each}")) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *letters, *inside],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def _letters(rules: Any, texts: Sequence[str], size: int) -> list[str]:
    """The characters that become pieces: the most frequent, in the order of their code points.

    One may take two pieces, at the head of a word and inside; together they take at most half.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(rules.normalizer.normalize_str(text))
    met = sorted(counts, key=lambda each: (-counts[each], each))
    usable = [each for each in met if not each.isspace()]
    return sorted(usable[: min(LETTERS, (size - len(SPECIAL)) // 4)])


def _words(rules: Any, text: str) -> list[str]:
    return [word for word, _ in rules.pre_tokenizer.pre_tokenize_str(text)]


def _rules() -> Any:
    """How bert-base-uncased normalizes a text and splits it into words."""
    return _tokenizer({each: index for index, each in enumerate(SPECIAL)}).backend_tokenizer


def _tokenizer(vocabulary: dict[str, int]) -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True)


def _key(recipe: Recipe, size: int) -> str:
    """The name of a vocabulary: a hash of all that decides what is in it."""
    everything = [FORMAT, size, identity(recipe)]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _write(directory: Path, recipe: Recipe, size: int) -> None:
    texts = gather(recipe, CLEANINGS[recipe.data.cleaning]).sides["train"].texts
    tokenizer = _tokenizer(train(texts, size))
    with written_aside(directory) as aside:
        tokenizer.save_pretrained(aside)
        write_file(aside / INDEX, json.dumps(digests(aside)) + "\n")


def _is_whole(directory: Path) -> bool:
    """Whether `directory` holds a vocabulary as it was written."""
    try:
        files = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        return flaw(directory, files) is None
    except (OSError, ValueError, TypeError, AttributeError):
        return False
