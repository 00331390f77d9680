"""Encode texts as numbers: the one encoder that training and serving share.

`load_encoder` makes a TextEncoder (a tokenizer) or, for `linear`, a NumberEncoder.
"""

import copy
import json
import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.errors import BerthaError
from trainers.data.cleaning import CLEANINGS, MAX_CHARACTERS
from trainers.data.masking import MaskingVocabulary
from trainers.data.packages import resolve_model
from trainers.data.packing import pack_documents
from trainers.data.ragged import RaggedArray, concat_ragged, ragged_from_rows
from trainers.storage.atomic import json_sha256
from trainers.untrusted.tokenizer_files import check_tokenizer_files

CHUNK_SIZE = 1000  # texts tokenized at a time
LARGEST_NUMBER = float(np.finfo(np.float32).max)
# Characters read per token; text has four to six, so what is left out lies far beyond max_length,
# and a single line of 50 MB costs no more than a page.
CHARACTERS_PER_TOKEN, MARGIN = 20, 1000


class EncodingError(BerthaError):
    """A text that cannot be encoded, or no encoder; the text says which and the way out."""


OnProgress = Callable[[int], None]  # called with the number of texts encoded so far


def _ignore_progress(done: int) -> None:
    """Report nothing."""


class Encoder(Protocol):
    """From raw texts to token ids."""

    @property
    def pad_id(self) -> int:
        """The id of padding."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides what comes out."""

    def clean(self, text: str) -> str:
        """Clean a raw text as `encode` expects it."""

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = _ignore_progress
    ) -> tuple[RaggedArray, int]:
        """Encode cleaned texts; return how many of them were cut at max_length as well.

        Raises EncodingError that names the text where one cannot be encoded.
        """

    def save(self, directory: Path) -> None:
        """Write what `load_encoder(str(directory), ...)` needs to make this encoder again."""


def load_encoder(source: str, cleaning: str, max_length: int) -> Encoder:
    """Load the encoder of a directory, a hub name, `package:NAME`, or `linear`.

    Raises EncodingError where there is none, and UntrustedFileError for one of a directory that
    could cost too much or run code.
    """
    if source == "linear":
        return NumberEncoder(cleaning, max_length)
    return TextEncoder(_load_tokenizer(source), cleaning, max_length)


class TextEncoder:
    """An encoder around a Transformers tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, cleaning: str, max_length: int) -> None:
        _disable_parallelism_in_forks()
        tokenizer.model_max_length = (
            max_length  # so that it cuts the same when loaded from a bundle
        )
        self.tokenizer, self._cleaning, self._max_length = tokenizer, cleaning, max_length
        self._rust = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._rust is not None:
            self._rust.no_padding()
            self._rust.enable_truncation(max_length, direction=tokenizer.truncation_side)
        # Padding is masked out, so a tokenizer without a pad token may use any id.
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.num_tokens: int = len(tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer, the cleaning and the length."""
        identity = ["text", self._serialize_tokenizer(), self.pad_id]
        return json_sha256([*identity, self._cleaning, self._max_length])

    def clean(self, text: str) -> str:
        """Clean a raw text, of which MAX_CHARACTERS are read."""
        return CLEANINGS[self._cleaning](text[:MAX_CHARACTERS])

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = _ignore_progress
    ) -> tuple[RaggedArray, int]:
        """Tokenize cleaned texts."""
        limit = self._max_length * CHARACTERS_PER_TOKEN + MARGIN
        truncated = 0

        def encode_chunk(chunk: Sequence[str]) -> list[list[int]]:
            nonlocal truncated
            encoded = self._encode_ids([_replace_surrogates(text[:limit]) for text in chunk])
            for text, (_, is_cut) in zip(chunk, encoded, strict=True):
                truncated += is_cut or len(text) > limit
            return [ids for ids, _ in encoded]

        return _encode_in_chunks(texts, encode_chunk, on_progress), truncated

    def tokenize_uncut(
        self, texts: Sequence[str], on_progress: OnProgress = _ignore_progress
    ) -> RaggedArray:
        """Return all the tokens of cleaned texts, none of them special and none cut."""

        def encode_chunk(chunk: Sequence[str]) -> list[list[int]]:
            encodable = [_replace_surrogates(text) for text in chunk]
            if self._untruncated is not None:
                encoded = self._untruncated.encode_batch_fast(encodable, add_special_tokens=False)
                return [each.ids for each in encoded]
            settings = {"add_special_tokens": False, "truncation": False, "verbose": False}
            return [self.tokenizer(text, **settings)["input_ids"] for text in encodable]

        return _encode_in_chunks(texts, encode_chunk, on_progress)

    def pack_documents(self, documents: RaggedArray) -> RaggedArray:
        """Pack uncut documents into sequences of max_length tokens (`packing.py`).

        Raises EncodingError where the tokenizer has no tokens to begin and end them with.
        """
        first, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if first is None or end is None:
            raise EncodingError(
                f"a {type(self.tokenizer).__name__} has no tokens that begin and end a sequence, "
                "as [CLS] and [SEP] do; name the tokenizer of a BERT as model.tokenizer"
            )
        return pack_documents(documents, self._max_length, first, end)

    def masking_vocabulary(self) -> MaskingVocabulary:
        """Describe the ids for masking. Raises EncodingError where none means [MASK]."""
        tokenizer, size = self.tokenizer, len(self.tokenizer)
        if tokenizer.mask_token_id is None:
            raise EncodingError(
                f"a {type(tokenizer).__name__} has no mask token, and masked-lm hides words behind "
                "one; name the tokenizer of a BERT as model.tokenizer, or train one with "
                "model.vocabulary_size"
            )
        pieces = tokenizer.convert_ids_to_tokens(range(size))
        special = np.array([piece is None for piece in pieces])  # an id that is not used
        special[tokenizer.all_special_ids] = True
        continuation = np.array([str(piece).startswith("##") for piece in pieces])
        return MaskingVocabulary(size, tokenizer.mask_token_id, special, continuation)

    def save(self, directory: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(directory)

    @cached_property
    def _untruncated(self) -> Any:
        """A second tokenizer that never truncates: switching one would disturb other threads."""
        if self._rust is None:
            return None
        uncut = copy.deepcopy(self._rust)
        uncut.no_truncation()
        return uncut

    def _encode_ids(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """Return the token ids of each text, and whether there were too many."""
        if self._rust is not None:
            encoded = self._rust.encode_batch_fast(texts)
            return [(each.ids, bool(each.overflowing)) for each in encoded]
        rows = []
        for text in texts:
            whole = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
            cut = self.tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
            rows.append((cut, len(whole) > len(cut)))
        return rows

    def _serialize_tokenizer(self) -> str:
        """Return the tokenizer's whole state as text; the same after `save` and loading again."""
        if self._rust is None:
            vocabulary = sorted(self.tokenizer.get_vocab().items())
            probe = self.tokenizer("Ein Prüftext, 1 probe: don't [MASK]!", verbose=False)
            return json.dumps([type(self.tokenizer).__name__, vocabulary, probe["input_ids"]])
        contents = json.loads(self._rust.to_str())
        return json.dumps(contents | {"truncation": None, "padding": None}, sort_keys=True)


class NumberEncoder:
    """An encoder of texts that are numbers with white space between, as many in every text."""

    pad_id = 0

    def __init__(self, cleaning: str, max_length: int) -> None:
        self._cleaning, self._max_length = cleaning, max_length
        self.fingerprint = json_sha256(["numbers", cleaning, max_length])

    def clean(self, text: str) -> str:
        """Clean a raw text."""
        return CLEANINGS[self._cleaning](text)

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = _ignore_progress
    ) -> tuple[RaggedArray, int]:
        """Parse the numbers of each text."""
        rows = [np.array(self._parse_numbers(text), dtype=np.float32) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) != len(rows[0]):
                raise EncodingError(
                    f"text {text[:60]!r} holds {len(row)} numbers, {texts[0][:60]!r} holds "
                    f"{len(rows[0])}; a linear model reads as many from every text"
                )
        on_progress(len(texts))
        return ragged_from_rows(rows, np.float32), 0

    def save(self, directory: Path) -> None:
        """Write nothing: `load_encoder("linear", ...)` makes this encoder again."""

    def _parse_numbers(self, text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if not numbers or not all(abs(each) <= LARGEST_NUMBER for each in numbers):
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


def _encode_in_chunks(
    texts: Sequence[str],
    encode_chunk: Callable[[Sequence[str]], list[list[int]]],
    on_progress: OnProgress,
) -> RaggedArray:
    """Encode CHUNK_SIZE texts at a time: the tokenizer's results are far larger than the ids."""
    parts = []
    for start in range(0, len(texts), CHUNK_SIZE):
        chunk = texts[start : start + CHUNK_SIZE]
        ids = [np.array(each, dtype=np.int32) for each in encode_chunk(chunk)]
        parts.append(ragged_from_rows(ids, np.int32))
        on_progress(start + len(chunk))
    return concat_ragged(parts)


def _replace_surrogates(text: str) -> str:
    """Replace half surrogates, which no tokenizer takes, by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    if "://" in source:
        raise EncodingError(
            f"{source}: a tokenizer is not read from a URL; download its directory, and name that "
            "as model.tokenizer"
        )
    directory = resolve_model(source)
    if Path(directory).is_dir():
        check_tokenizer_files(Path(directory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the library in Rust raises no other kind for a broken file
        reason = " ".join(str(error).split())
        raise EncodingError(
            f"{source}: no tokenizer could be loaded ({reason}); name a directory, a hub name "
            "that can be reached, or package:all-minilm-l6-v2 as model.tokenizer"
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise EncodingError(f"{source}: its tokenizer has no vocabulary; set model.tokenizer")
    return tokenizer


@cache
def _disable_parallelism_in_forks() -> None:
    """Make forks of this process tokenize on one core; register that once.

    The tokenizers' threads do not survive a fork. Left alone, the library prints a warning in every
    forked worker; with TOKENIZERS_PARALLELISM=true in the environment the worker would hang.
    """
    if "TOKENIZERS_PARALLELISM" in os.environ:
        return
    os.register_at_fork(
        before=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"),
        after_in_parent=lambda: os.environ.pop("TOKENIZERS_PARALLELISM", None),
    )
