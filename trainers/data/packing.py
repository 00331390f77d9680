"""Pack documents end to end into sequences of one length, for masked language modelling.

    [CLS] one document [SEP] another [SEP] the beginning of a third [SEP]
    [CLS] the rest of the third [SEP] ...

Documents stand in their order and no token of one is lost: what does not fit goes on in the next
sequence, however many that takes. Every piece of a document ends with [SEP]. A sequence holds
exactly max_length tokens, but for two cases: the last of all, and one that ends with a document
when a single place is left, where no token and its [SEP] would fit. A document without tokens
leaves nothing. The result is a function of the documents alone, however many are given at a time.
"""

import numpy as np

from trainers.data.ragged import RaggedArray

FORMAT = 1  # of the rules above; bump to invalidate sequences packed by older ones


class DocumentPacker:
    """Packs documents into sequences of at most `max_length` tokens, some documents at a time.

    first_id: [CLS], begins a sequence; end_id: [SEP], ends each piece of a document.
    """

    def __init__(self, max_length: int, first_id: int, end_id: int) -> None:
        self._most = max_length - 2  # tokens of a document that an empty sequence can take
        self._first_id, self._end_id = first_id, end_id
        self._open = np.empty(0, dtype=np.int32)  # the last sequence so far
        self._room = 0  # tokens of a document that still fit into it

    def add(self, documents: RaggedArray) -> RaggedArray:
        """Add documents, token ids without special tokens; return the sequences that are full."""
        pieces, opens = self._cut_pieces(documents.lengths)
        num_opened = np.cumsum(opens)
        # Before a token stand the open sequence, the [SEP] of each earlier piece and the [CLS] of
        # each sequence begun so far.
        shifts = len(self._open) + np.arange(len(pieces)) + num_opened
        total = len(self._open) + len(documents.values) + len(pieces) + int(opens.sum())
        values = np.full(total, self._end_id, dtype=np.int32)
        values[: len(self._open)] = self._open
        values[np.arange(len(documents.values)) + np.repeat(shifts, pieces)] = documents.values
        starts = (np.cumsum(pieces) - pieces + shifts - 1)[opens]
        values[starts] = self._first_id
        if len(self._open):
            starts = np.append(0, starts)
        last = int(starts[-1]) if len(starts) else 0
        self._open = values[last:].copy()
        offsets = starts if len(starts) else np.zeros(1)
        return RaggedArray(values[:last], offsets.astype(np.int64))

    def finish(self) -> RaggedArray:
        """Return the last sequence, if there is one."""
        last, self._open, self._room = self._open, self._open[:0], 0
        ends = [0, len(last)] if len(last) else [0]
        return RaggedArray(last, np.array(ends, dtype=np.int64))

    def _cut_pieces(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of each piece, `[n]` int64, and whether it opens a sequence, bool."""
        pieces: list[int] = []
        opens: list[bool] = []
        room = self._room
        for length in lengths.tolist():
            while length:
                opens.append(room < 1)
                room = self._most if room < 1 else room
                taken = min(length, room)
                pieces.append(taken)
                length, room = length - taken, room - taken - 1
        self._room = room
        return np.array(pieces, dtype=np.int64), np.array(opens, dtype=bool)
