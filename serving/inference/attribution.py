"""Which words of a text spoke for a label: integrated gradients over the fp32 model of a bundle.

The path leads from a text of masks, `[CLS]` and `[SEP]` kept, to the text itself (Sundararajan et
al., 2017, "Axiomatic Attribution for Deep Networks", by the captum library). The weights of all
words add up to what the text changes in the label's logit, to 2% of it or 0.02, whichever is more;
where a path is too crooked for that in 128 steps, what lacks is logged. Words stand where they
stood in the text that was given, before it was cleaned. Knows no Ray and no HTTP.

    explainer = Explainer.load(Path("runs/reviews/bundle"))
    explainer.explain("A warm, funny film.", "positive").attributions
"""

import difflib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.errors import BerthaError
from serving.inference.offsets import Traced, trace
from serving.interface import Attribution, Explanation, Prediction
from trainers.data.tokenizer import CHARACTERS_PER_TOKEN, MARGIN, TextEncoder
from trainers.models import bundle
from trainers.models.bert import TextModel
from trainers.models.card import Card, read
from trainers.training.losses import scores

STEPS = (32, 128)  # along the path; the more where the fewer leave too large an error
TOLERANCE = 0.02  # of the label's difference, or of a logit where that is less than one
MAX_TOKENS = 4096  # computed at once, gradients included

logger = logging.getLogger(__name__)


class Unexplainable(BerthaError):
    """A label or a model that cannot be explained; the text says why, and the way out."""


class _Tokens(NamedTuple):
    """A text as the model reads it.

    ids [1, s]; special: which of them the tokenizer put there itself; words: which word each is
    part of, None for the special ones; spans: their places in the cleaned text.
    """

    ids: Tensor
    special: Tensor
    words: Sequence[int | None]
    spans: Sequence[tuple[int, int]]


class Explainer:
    """A loaded bundle that explains. May be called from several threads, one at a time answered.

    Holds a model of its own, because looking into one disturbs whoever uses it.
    """

    def __init__(self, card: Card, tokenizer: Any, model: TextModel) -> None:
        self.card = card
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        # What is neither here nor there. A pad would do for most, but RoBERTa numbers positions by
        # what is no pad.
        mask: int | None = tokenizer.mask_token_id
        self._blank: int = (tokenizer.pad_token_id or 0) if mask is None else mask
        self._lock = threading.Lock()

    @classmethod
    def load(cls, directory: Path) -> "Explainer":
        """Read and verify a bundle. Raises BundleError, and Unexplainable for some models."""
        card = read(directory)
        if card.task in ("masked-lm", "embedding"):
            raise Unexplainable(f"{directory}: a model for {card.task} gives no label to explain")
        encoder, model = bundle.load_encoder(directory, card), bundle.load_model(directory, card)
        if not isinstance(model, TextModel) or not isinstance(encoder, TextEncoder):
            raise Unexplainable(f"{directory}: a linear model reads numbers, which are no words")
        if not encoder.tokenizer.is_fast:
            raise Unexplainable(
                f"{directory}: a {type(encoder.tokenizer).__name__} does not say where its tokens "
                "stand; train with the fast tokenizer of the model"
            )
        return cls(card, encoder.tokenizer, model)

    def explain(self, text: str, label: str | None = None) -> Explanation:
        """Why `text` gets `label`, by default the likeliest. Raises Unexplainable.

        A text that is cut at max_length is explained as far as the model reads it.
        """
        traced = trace(self.card.cleaning, text)
        tokens = self._encode(traced.text)
        task = self.card.task
        assert task != "embedding", "load refuses it"
        with self._lock:
            with torch.inference_mode():
                logits = self._model(tokens.ids)
            prediction = Prediction(
                tuple(scores(task, logits)[0].tolist()), tuple(logits[0].tolist())
            )
            index = self._index(label, prediction)
            weights = self._weights(tokens, index)
        return Explanation(index, prediction, _by_word(tokens, weights, traced))

    def _encode(self, text: str) -> _Tokens:
        """The tokens of a cleaned text: those that the bundle's encoder gives."""
        limit = self.card.max_length * CHARACTERS_PER_TOKEN + MARGIN
        encodable = text[:limit].encode("utf-8", "replace").decode("utf-8")
        encoding = self._tokenizer(
            encodable,
            truncation=True,
            max_length=self.card.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        return _Tokens(
            torch.tensor([encoding["input_ids"]]),
            torch.tensor(encoding["special_tokens_mask"], dtype=torch.bool),
            encoding.word_ids(),
            encoding["offset_mapping"],
        )

    def _index(self, label: str | None, prediction: Prediction) -> int:
        """Which logit is explained."""
        labels = self.card.labels or ("value",)  # of a regression
        if label is None:
            return max(range(len(prediction.logits)), key=prediction.logits.__getitem__)
        if label in labels:
            return labels.index(label)
        close = difflib.get_close_matches(label, labels, n=1)
        way = f"did you mean {close[0]}?" if close else f"it has {', '.join(labels)}"
        raise Unexplainable(f"{label[:80]!r} is no label of this model; {way}")

    def _weights(self, tokens: _Tokens, index: int) -> list[float]:
        """What each token adds to a logit."""
        from captum.attr import LayerIntegratedGradients

        special, ids = tokens.special, tokens.ids
        if bool(special.all()):
            return [0.0] * ids.shape[1]
        baseline = torch.where(special, ids, torch.full_like(ids, self._blank))
        with torch.inference_mode():
            ends = self._model(torch.cat([baseline, ids]))[:, index]
        difference = float(ends[1] - ends[0])
        method = LayerIntegratedGradients(self._model, self._model.table)
        for steps in STEPS:
            attributed = method.attribute(
                ids,
                baselines=baseline,
                target=index,
                n_steps=steps,
                internal_batch_size=max(1, MAX_TOKENS // ids.shape[1]),
            )
            weights: list[float] = attributed.sum(dim=-1)[0].tolist()
            error = abs(sum(weights) - difference)
            if error <= TOLERANCE * max(1.0, abs(difference)):
                return weights
        logger.warning(
            "an explanation of %d tokens lacks %.3g of %.3g", len(weights), error, difference
        )
        return weights


def _by_word(tokens: _Tokens, weights: Sequence[float], traced: Traced) -> tuple[Attribution, ...]:
    """The weights of tokens added up to words, at their places in the text that was given."""
    found: dict[int, Attribution] = {}
    for word, (start, end), weight in zip(tokens.words, tokens.spans, weights, strict=True):
        if word is None:
            continue
        start = min(start, len(traced.text) - 1)  # a token may be of no width, even at the end
        piece = Attribution(*traced.place(start, max(end, start + 1)), weight)
        found[word] = _joined(found[word], piece) if word in found else piece
    merged: list[Attribution] = []
    for each in sorted(found.values(), key=lambda each: (each.start, each.end)):
        # Two words may come from one place, as both characters that `&NotEqualTilde;` writes.
        if merged and each.start < merged[-1].end:
            merged[-1] = _joined(merged[-1], each)
        else:
            merged.append(each)
    return tuple(merged)


def _joined(one: Attribution, other: Attribution) -> Attribution:
    return Attribution(
        min(one.start, other.start), max(one.end, other.end), one.weight + other.weight
    )
