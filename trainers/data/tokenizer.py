"""Encode texts as numbers: the one encoder that training and serving share.

`load_encoder` makes a TextEncoder (a tokenizer) or, for `linear`, a NumberEncoder.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config.windows import WindowsConfig
from trainers.data.cleaning import MAX_CHARACTERS, clean_text
from trainers.data.encoders.encoder import EncodedTexts, OnProgress, ignore_progress
from trainers.data.encoders.encoder import Encoder as Encoder
from trainers.data.encoders.encoder import EncodingError as EncodingError
from trainers.data.encoders.numbers import NumberEncoder
from trainers.data.masking import MaskingVocabulary
from trainers.data.packages import resolve_model
from trainers.data.packing import DocumentPacker
from trainers.data.ragged import RaggedArray, concat_ragged, ragged_from_rows
from trainers.storage.atomic import json_sha256
from trainers.untrusted.tokenizer_files import TABLES, check_tokenizer_files

CHUNK_SIZE = 1000  # texts tokenized at a time
# Characters read per token; text has four to six, so what is left out lies far beyond max_length,
# and a single line of 50 MB costs no more than a page.
CHARACTERS_PER_TOKEN, MARGIN = 20, 1000


def load_encoder(
    source: str, cleaning: str, max_length: int, windows: WindowsConfig | None = None
) -> Encoder:
    """Load the encoder of a directory, a hub name, `package:NAME`, or `linear`.

    windows: over texts that are longer than max_length; None: they are cut. Raises EncodingError
    where there is none, and UntrustedFileError for one of a directory that could cost too much or
    run code.
    """
    if source == "linear":
        return NumberEncoder(cleaning, max_length)
    return TextEncoder(_load_tokenizer(source), cleaning, max_length, windows)


class TextEncoder:
    """An encoder around a Transformers tokenizer. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Any,
        cleaning: str,
        max_length: int,
        windows: WindowsConfig | None = None,
    ) -> None:
        _disable_parallelism_in_forks()
        tokenizer.model_max_length = (
            max_length  # so that it cuts the same when loaded from a bundle
        )
        self.tokenizer, self._cleaning, self._max_length = tokenizer, cleaning, max_length
        self.windows = windows
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
        windows = [] if self.windows is None else [self.windows.model_dump(mode="json")]
        return json_sha256([*identity, self._cleaning, self._max_length, *windows])

    def clean(self, text: str) -> str:
        """Clean a raw text, of which MAX_CHARACTERS are read; "" where nothing is left of it."""
        return clean_text(self._cleaning, text[:MAX_CHARACTERS])

    @property
    def max_characters(self) -> int:
        """Characters of a cleaned text that are read at most."""
        longest, windows = self._max_length, self.windows
        if windows is not None:
            longest = windows.max_tokens(longest)
        return longest * CHARACTERS_PER_TOKEN + MARGIN

    def encode(
        self, texts: Sequence[str], on_progress: OnProgress = ignore_progress
    ) -> EncodedTexts:
        """Tokenize cleaned texts."""
        limit = self.max_characters
        truncated: list[bool] = []

        def encode_chunk(chunk: Sequence[str]) -> RaggedArray:
            encodable = [_replace_surrogates(text[:limit]) for text in chunk]
            if self.windows is None:
                encoded = self._encode_ids(encodable)
                cut, samples = [is_cut for _, is_cut in encoded], _to_ragged(i for i, _ in encoded)
            else:
                samples, cut = self._encode_windows(encodable)
            truncated.extend(
                is_cut or len(text) > limit for text, is_cut in zip(chunk, cut, strict=True)
            )
            return samples

        samples = _encode_in_chunks(texts, encode_chunk, on_progress)
        if self.windows is not None and samples.windows is None:  # of no text at all
            samples = replace(samples, windows=_to_ragged([]))
        return samples, np.array(truncated, dtype=bool)

    def tokenize_uncut(
        self, texts: Sequence[str], on_progress: OnProgress = ignore_progress
    ) -> RaggedArray:
        """Return all the tokens of cleaned texts, none of them special and none cut."""
        return _encode_in_chunks(
            texts,
            lambda chunk: _to_ragged(
                self._tokenize_whole([_replace_surrogates(text) for text in chunk])
            ),
            on_progress,
        )

    def tokenize_with_offsets(
        self, texts: Sequence[str], add_special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Return the uncut token ids of each cleaned text, and the span of each in the text.

        Raises EncodingError for a tokenizer that keeps no offsets.
        """
        if self._untruncated is None:
            name = type(self.tokenizer).__name__
            raise EncodingError(f"a {name} keeps no offsets; it shows no tokens")
        encoded = self._untruncated.encode_batch(
            [_replace_surrogates(text) for text in texts], add_special_tokens=add_special_tokens
        )
        return [(each.ids, each.offsets) for each in encoded]

    def document_packer(self) -> DocumentPacker:
        """Return what packs uncut documents into sequences of max_length tokens (`packing.py`).

        Raises EncodingError where the tokenizer has no tokens to begin and end them with.
        """
        first, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if first is None or end is None:
            raise EncodingError(
                f"a {type(self.tokenizer).__name__} has no tokens that begin and end a sequence, "
                "as [CLS] and [SEP] do; name the tokenizer of a BERT as model.tokenizer"
            )
        return DocumentPacker(self._max_length, first, end)

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

    @cached_property
    def special_ids(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text, and those behind it."""
        bare = self._tokenize_whole(["a"])[0]
        whole = self._tokenize_whole(["a"], add_special_tokens=True)[0]
        start = next(n for n in range(len(whole) + 1) if whole[n : n + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def window_spans(self, num_tokens: int) -> tuple[list[tuple[int, int]], bool]:
        """Return (start, end) of each window over the tokens of a text, none of them special.

        And whether there are more tokens than its windows read. Where the tokenizer cuts at the
        left, the end of such a text is read.
        """
        before, behind = self.special_ids
        room = self._max_length - len(before) - len(behind)
        windows = self.windows
        if windows is None:
            spans = [(0, min(num_tokens, room))]
        else:
            spans = windows.spans(num_tokens, room, self._max_length)
        lacking = num_tokens - spans[-1][1]
        if self.tokenizer.truncation_side == "left":
            spans = [(start + lacking, end + lacking) for start, end in spans]
        return spans, lacking > 0

    def _encode_windows(self, texts: list[str]) -> tuple[RaggedArray, list[bool]]:
        """Return texts with their windows, and which are longer than those read."""
        before, behind = self.special_ids
        of_texts, cut = [], []
        for ids in self._tokenize_whole(texts):
            spans, is_cut = self.window_spans(len(ids))
            of_texts.append([[*before, *ids[start:end], *behind] for start, end in spans])
            cut.append(is_cut)
        samples = _to_ragged([id for each in of_text for id in each] for of_text in of_texts)
        return replace(samples, windows=_to_ragged(list(map(len, each)) for each in of_texts)), cut

    def _tokenize_whole(
        self, texts: list[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        """Return all token ids of each text."""
        if self._untruncated is not None:
            encoded = self._untruncated.encode_batch_fast(
                texts, add_special_tokens=add_special_tokens
            )
            return [each.ids for each in encoded]
        settings = {"add_special_tokens": add_special_tokens, "truncation": False}
        return [self.tokenizer(text, **settings, verbose=False)["input_ids"] for text in texts]

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


def _encode_in_chunks(
    texts: Sequence[str],
    encode_chunk: Callable[[Sequence[str]], RaggedArray],
    on_progress: OnProgress,
) -> RaggedArray:
    """Encode CHUNK_SIZE texts at a time: the tokenizer's results are far larger than the ids."""
    parts = []
    for start in range(0, len(texts), CHUNK_SIZE):
        chunk = texts[start : start + CHUNK_SIZE]
        parts.append(encode_chunk(chunk))
        on_progress(start + len(chunk))
    return concat_ragged(parts)


def _to_ragged(rows: Iterable[list[int]]) -> RaggedArray:
    return ragged_from_rows([np.array(row, dtype=np.int32) for row in rows], np.int32)


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
        if not any((Path(directory) / name).is_file() for name in ("tokenizer.json", *TABLES)):
            raise EncodingError(
                f"{source}: holds no tokenizer (tokenizer.json or vocab.txt); copy it there from "
                "where the model was made, or set model.tokenizer"
            )
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
