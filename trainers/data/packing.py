"""Pack documents end to end into sequences of one length, for masked language modelling.

    [CLS] one document [SEP] another [SEP] the beginning of a third [SEP]
    [CLS] the rest of the third [SEP] ...

Documents stand in their order and no token of one is lost: what does not fit goes on in the next
sequence, however many that takes. Every piece of a document ends with [SEP]. A sequence holds
exactly max_length tokens, but for two cases: the last of all, and one that ends with a document
when a single place is left, where no token and its [SEP] would fit. A document without tokens
leaves nothing. The result is a function of the documents alone.
"""

import numpy as np

from trainers.data.ragged import RaggedArray

FORMAT = 1  # of the rules above; bump to invalidate sequences packed by older ones


def pack_documents(
    documents: RaggedArray, max_length: int, first_id: int, end_id: int
) -> RaggedArray:
    """Pack all `documents` into sequences of at most `max_length` tokens.

    documents: token ids without special tokens. first_id: [CLS], begins a sequence; end_id: [SEP],
    ends each piece of a document.
    """
    pieces, opens = _cut_pieces(documents.lengths, max_length - 2)
    num_opened = np.cumsum(opens)
    # Before a token stand the [SEP] of each earlier piece and the [CLS] of each sequence so far.
    shifts = np.arange(len(pieces)) + num_opened
    total = len(documents.values) + len(pieces) + int(opens.sum())
    values = np.full(total, end_id, dtype=np.int32)
    values[np.arange(len(documents.values)) + np.repeat(shifts, pieces)] = documents.values
    starts = (np.cumsum(pieces) - pieces + shifts - 1)[opens]
    values[starts] = first_id
    return RaggedArray(values, np.append(starts, total).astype(np.int64))


def _cut_pieces(lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each piece, `[n]` int64, and whether it opens a sequence, bool.

    most: tokens of a document that an empty sequence can take.
    """
    pieces: list[int] = []
    opens: list[bool] = []
    room = 0
    for length in lengths.tolist():
        while length:
            opens.append(room < 1)
            room = most if room < 1 else room
            taken = min(length, room)
            pieces.append(taken)
            length, room = length - taken, room - taken - 1
    return np.array(pieces, dtype=np.int64), np.array(opens, dtype=bool)
