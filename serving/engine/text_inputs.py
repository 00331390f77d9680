"""Read texts as a request says: token ids as they are, other ends cut, fewer tokens.

samples, truncated = encode_inputs(encoder, [TextInput("a long text", truncation_side="left")])
"""

from collections.abc import Sequence

import numpy as np

from serving.interface import TextInput, Token
from trainers.data.encoders.encoder import EmptyTextError, EncodedTexts
from trainers.data.ragged import ragged_from_rows
from trainers.data.tokenizer import (
    CHARACTERS_PER_TOKEN,
    MARGIN,
    Encoder,
    EncodingError,
    TextEncoder,
)

OTHER_TOKENIZER = (
    "the ids are of another tokenizer; send texts (LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


def clean_texts(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Clean raw texts. Raises EmptyTextError that names the first of which nothing is left."""
    return [_clean(encoder, text, number) for number, text in enumerate(texts, 1)]


def encode_inputs(encoder: Encoder, texts: Sequence[str]) -> EncodedTexts:
    """Clean and encode raw texts, some of which are `TextInput`s; return which were cut as well.

    Raises EncodingError where the model has no tokenizer or reads windows, for ids that are not in
    its vocabulary, and for a text of which the cleaning leaves nothing.
    """
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("this model reads numbers in a text, and knows no tokens; send texts")
    if encoder.windows is not None:
        raise EncodingError(
            "this model reads long texts in windows: it takes no token ids, no other end to cut "
            "and no other number of tokens; send texts without such options"
        )
    rows, truncated = [], []
    for number, text in enumerate(texts, 1):
        given = text if isinstance(text, TextInput) else TextInput(text)
        row, is_cut = (
            _read_ids(encoder, given, number) if given.ids else _read(encoder, given, number)
        )
        rows.append(np.asarray(row, dtype=np.int32))
        truncated.append(is_cut)
    return ragged_from_rows(rows, np.int32), np.array(truncated, dtype=bool)


def tokenize(
    encoder: Encoder, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[Token]]:
    """Return the tokens of each cleaned text, with offsets into it. Raises EncodingError."""
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("this model reads numbers in a text, and knows no tokens")
    special = set(encoder.tokenizer.all_special_ids)
    tokenized = []
    for ids, spans in encoder.tokenize_with_offsets(texts, add_special_tokens):
        pieces = encoder.tokenizer.convert_ids_to_tokens(ids)
        tokenized.append(
            [
                Token(id_, piece, True)
                if id_ in special and start == end
                else Token(id_, piece, id_ in special, start, end)
                for id_, piece, (start, end) in zip(ids, pieces, spans, strict=True)
            ]
        )
    return tokenized


def detokenize(
    encoder: Encoder, rows: Sequence[Sequence[int]], skip_special_tokens: bool = True
) -> list[str]:
    """Return the text of each row of token ids. Raises EncodingError."""
    if not isinstance(encoder, TextEncoder):
        raise EncodingError("this model reads numbers in a text, and knows no tokens")
    for number, row in enumerate(rows, 1):
        _check_ids(encoder, row, number)
    decode = encoder.tokenizer.decode
    return [str(decode(list(row), skip_special_tokens=skip_special_tokens)) for row in rows]


def _clean(encoder: Encoder, text: str, number: int) -> str:
    cleaned = encoder.clean(text)
    if not cleaned:
        raise EmptyTextError(
            f"text {number} is empty: of {text[:40]!r} the model's cleaning leaves nothing; "
            "leave it out"
        )
    return cleaned


def _limit(encoder: TextEncoder, given: TextInput) -> int:
    """Return how many tokens are read, special ones included."""
    longest: int = encoder.tokenizer.model_max_length
    return longest if given.max_tokens is None else min(longest, given.max_tokens)


def _read_ids(encoder: TextEncoder, given: TextInput, number: int) -> tuple[list[int], bool]:
    _check_ids(encoder, given.ids, number)
    ids, limit = list(given.ids), _limit(encoder, given)
    if len(ids) <= limit:
        return ids, False
    return (ids[-limit:] if _cuts_left(encoder, given) else ids[:limit]), True


def _check_ids(encoder: TextEncoder, ids: Sequence[int], number: int) -> None:
    """Raise EncodingError for an id of text `number` that is not in the vocabulary."""
    size = encoder.num_tokens
    for id_ in ids:
        if not 0 <= id_ < size:
            raise EncodingError(
                f"text {number} holds the token id {id_}, but this model's vocabulary has {size}: "
                f"{OTHER_TOKENIZER}"
            )


def _read(encoder: TextEncoder, given: TextInput, number: int) -> tuple[list[int], bool]:
    before, behind = encoder.special_ids
    room = _limit(encoder, given) - len(before) - len(behind)
    if room < 1:
        raise EncodingError(
            f"at most {given.max_tokens} tokens leave no room for the text: "
            f"{len(before) + len(behind)} are special; ask for more"
        )
    cleaned, cuts_left = _clean(encoder, given, number), _cuts_left(encoder, given)
    most = room * CHARACTERS_PER_TOKEN + MARGIN
    near = cleaned[-most:] if cuts_left else cleaned[:most]
    tokens: list[int] = encoder.tokenize_uncut([near])[0].tolist()
    kept = tokens[-room:] if cuts_left else tokens[:room]
    return [*before, *kept, *behind], len(kept) < len(tokens) or len(near) < len(cleaned)


def _cuts_left(encoder: TextEncoder, given: TextInput) -> bool:
    return (given.truncation_side or encoder.tokenizer.truncation_side) == "left"
