"""Texts become numbers: the one encoder that training and serving share.

`load_encoder` makes a TextEncoder (a tokenizer) or, for `linear`, a NumberEncoder; both turn
cleaned texts into ragged Samples. Knows no recipe, no labels and no model.
"""

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.errors import BerthaError
from trainers.data.cleaning import CLEANINGS, LONGEST
from trainers.data.masking import Vocabulary
from trainers.data.packages import resolve_model
from trainers.data.packing import pack
from trainers.data.ragged import Samples, joined, ragged

__all__ = ["Encoder", "EncodingError", "NumberEncoder", "Samples", "TextEncoder", "joined"]
__all__ += ["load_encoder"]

CHUNK = 1000  # texts tokenized at a time
LARGEST = float(np.finfo(np.float32).max)
# Characters a token that are looked at; text has four to six, so what is left out lies far beyond
# max_length, and a single line of 50 MB costs no more than a page.
CHARACTERS_PER_TOKEN, MARGIN = 20, 1000


class EncodingError(BerthaError):
    """A text that cannot be encoded, or no encoder; the text says which and the way out."""


class Encoder(Protocol):
    """From raw text to Samples. fingerprint: SHA-256 over all that decides what comes out."""

    @property
    def pad(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def clean(self, text: str) -> str:
        """The text as `encode` wants it."""

    def encode(self, texts: Sequence[str]) -> tuple[Samples, int]:
        """Cleaned texts encoded, and how many of them were cut at max_length.

        Raises EncodingError that names the text where one cannot be encoded.
        """

    def save(self, directory: Path) -> None:
        """Write what `load_encoder(str(directory), ...)` needs to make this encoder again."""


def load_encoder(source: str, cleaning: str, max_length: int) -> Encoder:
    """The encoder of a directory, a hub name, `package:NAME`, or `linear`.

    Raises EncodingError where there is none.
    """
    if source == "linear":
        return NumberEncoder(cleaning, max_length)
    return TextEncoder(_tokenizer(source), cleaning, max_length)


class TextEncoder:
    """A Transformers tokenizer, `tokenizer`. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, cleaning: str, max_length: int) -> None:
        _mind_forks()
        tokenizer.model_max_length = max_length  # so that it cuts alike when loaded from a bundle
        self.tokenizer, self._cleaning, self._max_length = tokenizer, cleaning, max_length
        self._rust = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._rust is not None:
            self._rust.no_padding()
            self._rust.enable_truncation(max_length, direction=tokenizer.truncation_side)
        # What pads is masked out, so a tokenizer without a pad token may use any id.
        self.pad: int = tokenizer.pad_token_id or 0
        self.num_tokens: int = len(tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        return _sha256("text", self._contents(), self.pad, self._cleaning, self._max_length)

    def clean(self, text: str) -> str:
        return CLEANINGS[self._cleaning](text[:LONGEST])

    def encode(self, texts: Sequence[str]) -> tuple[Samples, int]:
        limit = self._max_length * CHARACTERS_PER_TOKEN + MARGIN
        rows: list[np.ndarray] = []
        truncated = 0
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            encoded = self._ids([_encodable(text[:limit]) for text in chunk])
            for text, (ids, is_cut) in zip(chunk, encoded, strict=True):
                rows.append(np.array(ids, dtype=np.int32))
                truncated += is_cut or len(text) > limit
        return ragged(rows, np.int32), truncated

    def whole(self, texts: Sequence[str]) -> Samples:
        """All the tokens of cleaned texts, none of them special and none cut."""
        encodable = [_encodable(text) for text in texts]
        if self._uncut is not None:
            encoded = self._uncut.encode_batch_fast(encodable, add_special_tokens=False)
            ids = [each.ids for each in encoded]
        else:
            settings = {"add_special_tokens": False, "truncation": False, "verbose": False}
            ids = [self.tokenizer(text, **settings)["input_ids"] for text in encodable]
        return ragged([np.array(each, dtype=np.int32) for each in ids], np.int32)

    def pack(self, documents: Samples) -> Samples:
        """What `whole` gave, packed into sequences of max_length tokens (`packing.py`).

        Raises EncodingError where the tokenizer has no tokens to begin and end them with.
        """
        first, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if first is None or end is None:
            raise EncodingError(
                f"a {type(self.tokenizer).__name__} has no tokens that begin and end a sequence, "
                "as [CLS] and [SEP] do; name the tokenizer of a BERT as model.tokenizer"
            )
        return pack(documents, self._max_length, first, end)

    def vocabulary(self) -> Vocabulary:
        """What masking must know of the ids. Raises EncodingError where none means [MASK]."""
        tokenizer, size = self.tokenizer, len(self.tokenizer)
        if tokenizer.mask_token_id is None:
            raise EncodingError(
                f"a {type(tokenizer).__name__} has no mask token, and masked-lm hides words behind "
                "one; name the tokenizer of a BERT as model.tokenizer, or train one with "
                "model.vocabulary_size"
            )
        pieces = tokenizer.convert_ids_to_tokens(range(size))
        special = np.array([piece is None for piece in pieces])  # a number that is left out
        special[tokenizer.all_special_ids] = True
        continuation = np.array([str(piece).startswith("##") for piece in pieces])
        return Vocabulary(size, tokenizer.mask_token_id, special, continuation)

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)

    @cached_property
    def _uncut(self) -> Any:
        """A tokenizer of its own that never cuts: a switch would disturb other threads."""
        if self._rust is None:
            return None
        uncut = copy.deepcopy(self._rust)
        uncut.no_truncation()
        return uncut

    def _ids(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """The token ids of each text, and whether there were too many."""
        if self._rust is not None:
            encoded = self._rust.encode_batch_fast(texts)
            return [(each.ids, bool(each.overflowing)) for each in encoded]
        found = []
        for text in texts:
            whole = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
            cut = self.tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            found.append((cut, len(whole) > len(cut)))
        return found

    def _contents(self) -> str:
        """All that the tokenizer knows, as text; the same after `save` and loading again."""
        if self._rust is None:
            vocabulary = sorted(self.tokenizer.get_vocab().items())
            probe = self.tokenizer("Ein Prüftext, 1 probe: don't [MASK]!", verbose=False)
            return json.dumps([type(self.tokenizer).__name__, vocabulary, probe["input_ids"]])
        contents = json.loads(self._rust.to_str())
        return json.dumps(contents | {"truncation": None, "padding": None}, sort_keys=True)


class NumberEncoder:
    """A text is numbers with white space between them, as many in every text."""

    pad = 0

    def __init__(self, cleaning: str, max_length: int) -> None:
        self._cleaning, self._max_length = cleaning, max_length
        self.fingerprint = _sha256("numbers", cleaning, max_length)

    def clean(self, text: str) -> str:
        return CLEANINGS[self._cleaning](text)

    def encode(self, texts: Sequence[str]) -> tuple[Samples, int]:
        rows = [np.array(self._numbers(text), dtype=np.float32) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) != len(rows[0]):
                raise EncodingError(
                    f"text {text[:60]!r} holds {len(row)} numbers, {texts[0][:60]!r} holds "
                    f"{len(rows[0])}; a linear model reads as many from every text"
                )
        return ragged(rows, np.float32), 0

    def save(self, directory: Path) -> None:
        """Nothing to write: `load_encoder("linear", ...)` makes this encoder again."""

    def _numbers(self, text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if not numbers or not all(abs(each) <= LARGEST for each in numbers):
            raise EncodingError(
                f"text {text[:60]!r} is not numbers with white space between them; "
                "a linear model reads nothing else"
            )
        if len(numbers) > self._max_length:
            raise EncodingError(
                f"text {text[:60]!r} holds {len(numbers)} numbers; raise batch.max_length = "
                f"{self._max_length} to take them all"
            )
        return numbers


def _encodable(text: str) -> str:
    """The text with half surrogates, which no tokenizer takes, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    place = resolve_model(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise EncodingError(
            f"{source}: no tokenizer could be loaded ({reason}); name a directory, a hub name "
            "that can be reached, or package:all-minilm-l6-v2 as model.tokenizer"
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise EncodingError(f"{source}: its tokenizer has no vocabulary; set model.tokenizer")
    return tokenizer


@cache
def _mind_forks() -> None:
    """Once in a process: a fork of it tokenizes on one core.

    The tokenizers' threads do not survive a fork. Left alone, the library prints a warning in every
    forked worker; with TOKENIZERS_PARALLELISM=true in the environment the worker would hang.
    """
    if "TOKENIZERS_PARALLELISM" in os.environ:
        return
    os.register_at_fork(
        before=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"),
        after_in_parent=lambda: os.environ.pop("TOKENIZERS_PARALLELISM", None),
    )
