"""Explain a label by the words of a text: integrated gradients over the fp32 model of a bundle.

The path of integration leads from a text of masks, `[CLS]` and `[SEP]` kept, to the text itself
(Sundararajan et al., 2017, "Axiomatic Attribution for Deep Networks", by captum). The weights of
all words add up to what the text changes in the label's logit, within 2% or 0.02, whichever is
more; if 128 steps do not reach that, the error is logged. Spans refer to the original text.

    attributor = Attributor.from_bundle(Path("runs/reviews/bundle"))
    attributor.explain("A warm, funny film.", "positive").attributions
"""

import difflib
import logging
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import BerthaError
from serving.inference.offsets import OffsetMapping, trace_cleaning
from serving.interface import Attribution, Explanation, Prediction, choose_labels
from trainers.data.tokenizer import TextEncoder
from trainers.models import bundle
from trainers.models.bert import TextModel
from trainers.models.build import load_model
from trainers.models.card import ModelCard, read_card
from trainers.models.packed import PackedTexts
from trainers.models.window_pool import WindowPool
from trainers.training.losses import logits_to_scores

STEPS = (32, 128)  # along the path; the more where the fewer leave too large an error
TOLERANCE = 0.02  # of the label's difference, or of a logit where that is less than one
MAX_TOKENS = 4096  # computed at once, gradients included

logger = logging.getLogger(__name__)


class NotExplainable(BerthaError):
    """A label or a model that cannot be explained; the message says why, and the way out."""


class _EncodedText(NamedTuple):
    """A text, or one window of it, as the model reads it.

    ids [1, s]; special: which of them the tokenizer added; words: the word each belongs to, None
    for special tokens; spans: their characters in the cleaned text.
    """

    ids: Tensor
    special: Tensor
    words: Sequence[int | None]
    spans: Sequence[tuple[int, int]]


class _RowModel(nn.Module):
    """A model over texts of one length, ids [b, s], as captum gives them.

    embedded: passes the embeddings of their tokens, [b, s, h]; captum replaces what it returns.
    """

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self._model, self.embedded = model, nn.Identity()
        self._shape: tuple[int, ...] = ()
        model.word_embeddings.register_forward_hook(self._pass_embeddings)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [b, num_labels]."""
        self._shape = tuple(ids.shape)
        packed = PackedTexts.from_lengths([ids.shape[1]] * len(ids))
        logits: Tensor = self._model(ids.reshape(1, -1), packed)
        return logits

    def _pass_embeddings(self, table: nn.Module, inputs: object, output: Tensor) -> Tensor:
        rows: Tensor = self.embedded(output.view(*self._shape, -1))
        return rows.reshape(output.shape)


class Attributor:
    """A loaded bundle that explains its labels; thread-safe, one text at a time.

    Has a model of its own, because captum's hooks would disturb other users of it.
    """

    def __init__(self, card: ModelCard, encoder: TextEncoder, model: TextModel) -> None:
        self.card = card
        self._encoder, tokenizer = encoder, encoder.tokenizer
        self._model = _RowModel(model.eval().requires_grad_(False)).eval()
        # The neutral token of the baseline. Padding would do for most models, but RoBERTa numbers
        # positions by the tokens that are not padding.
        mask: int | None = tokenizer.mask_token_id
        self._blank: int = (tokenizer.pad_token_id or 0) if mask is None else mask
        self._lock = threading.Lock()

    @classmethod
    def from_bundle(cls, directory: Path) -> "Attributor":
        """Load and verify a bundle. Raises BundleError and NotExplainable."""
        card = read_card(directory)
        if card.task in ("masked-lm", "embedding"):
            raise NotExplainable(f"{directory}: a model for {card.task} gives no label to explain")
        encoder, model = bundle.load_encoder(directory, card), load_model(directory)
        if not isinstance(model, TextModel) or not isinstance(encoder, TextEncoder):
            raise NotExplainable(f"{directory}: a linear model reads numbers, which are no words")
        if not encoder.tokenizer.is_fast:
            raise NotExplainable(
                f"{directory}: a {type(encoder.tokenizer).__name__} does not say where its tokens "
                "stand; train with the fast tokenizer of the model"
            )
        return cls(card, encoder, model)

    def explain(self, text: str, label: str | None = None) -> Explanation:
        """Attribute a label, by default the likeliest of the answer, to the words of `text`.

        A text that is truncated is explained as far as the model reads it. Of one that is read in
        windows, a word has the weights that it has in all of them, as far as they decide the label:
        evenly of their mean, and of the highest that window's alone. Raises NotExplainable.
        """
        mapping = trace_cleaning(self.card.cleaning, text)
        windows = self._encode_text(mapping.text)
        task, pool = self.card.task, self.card.windows.pool if self.card.windows else "mean"
        assert task != "embedding", "from_bundle rejects it"
        with self._lock:
            with torch.inference_mode():
                of_windows = torch.cat([self._model(tokens.ids) for tokens in windows])
            logits = WindowPool.from_counts(np.array([len(windows)]), pool)(of_windows)
            prediction = Prediction(
                tuple(logits_to_scores(task, logits)[0].tolist()), tuple(logits[0].tolist())
            )
            index = self._label_index(label, prediction)
            if pool == "max":
                windows = [windows[int(of_windows[:, index].argmax())]]
            share = 1 / len(windows)
            weighed = [
                (tokens, [share * weight for weight in self._token_weights(tokens, index)])
                for tokens in windows
            ]
        return Explanation(index, prediction, _sum_by_word(weighed, mapping))

    def _encode_text(self, text: str) -> list[_EncodedText]:
        """Tokenize a cleaned text exactly as the encoder of the bundle does, in its windows."""
        encodable = text[: self._encoder.max_characters]
        encoding = self._encoder.tokenizer(
            encodable.encode("utf-8", "replace").decode("utf-8"),
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        before, behind = self._encoder.special_ids
        ids, words, offsets = encoding["input_ids"], encoding.word_ids(), encoding["offset_mapping"]
        no_word = [None] * len(before), [None] * len(behind)
        no_span = [(0, 0)] * len(before), [(0, 0)] * len(behind)
        found = []
        for start, end in self._encoder.window_spans(len(ids))[0]:
            special = torch.ones(len(before) + end - start + len(behind), dtype=torch.bool)
            special[len(before) : len(before) + end - start] = False
            found.append(
                _EncodedText(
                    torch.tensor([[*before, *ids[start:end], *behind]]),
                    special,
                    [*no_word[0], *words[start:end], *no_word[1]],
                    [*no_span[0], *offsets[start:end], *no_span[1]],
                )
            )
        return found

    def _label_index(self, label: str | None, prediction: Prediction) -> int:
        labels = self.card.labels or ("value",)  # of a regression
        if label is None:
            card, scores = self.card, prediction.scores
            chosen = choose_labels(scores, card.labels, card.task, card.thresholds)
            given = [index for index, name in enumerate(card.labels) if name in chosen]
            return max(given or range(len(scores)), key=scores.__getitem__)
        if label in labels:
            return labels.index(label)
        close = difflib.get_close_matches(label, labels, n=1)
        way = f"did you mean {close[0]}?" if close else f"it has {', '.join(labels)}"
        raise NotExplainable(f"{label[:80]!r} is no label of this model; {way}")

    def _token_weights(self, tokens: _EncodedText, index: int) -> list[float]:
        """Return the contribution of each token to a logit."""
        from captum.attr import LayerIntegratedGradients

        special, ids = tokens.special, tokens.ids
        if bool(special.all()):
            return [0.0] * ids.shape[1]
        baseline = torch.where(special, ids, torch.full_like(ids, self._blank))
        with torch.inference_mode():
            ends = self._model(torch.cat([baseline, ids]))[:, index]
        difference = float(ends[1] - ends[0])
        method = LayerIntegratedGradients(self._model, self._model.embedded)
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


def _sum_by_word(
    weighed: Sequence[tuple[_EncodedText, Sequence[float]]], mapping: OffsetMapping
) -> tuple[Attribution, ...]:
    """Add up the weights of the tokens of windows by word, at the spans of the original text."""
    by_word: dict[int, Attribution] = {}
    rows = (zip(each.words, each.spans, weights, strict=True) for each, weights in weighed)
    for word, (start, end), weight in chain.from_iterable(rows):
        if word is None:
            continue
        start = min(start, len(mapping.text) - 1)  # a token may be of no width, even at the end
        piece = Attribution(*mapping.original_span(start, max(end, start + 1)), weight)
        by_word[word] = _merge_attributions(by_word[word], piece) if word in by_word else piece
    merged: list[Attribution] = []
    for each in sorted(by_word.values(), key=lambda each: (each.start, each.end)):
        # Two words may come from one span, as both characters that `&NotEqualTilde;` writes.
        if merged and each.start < merged[-1].end:
            merged[-1] = _merge_attributions(merged[-1], each)
        else:
            merged.append(each)
    return tuple(merged)


def _merge_attributions(one: Attribution, other: Attribution) -> Attribution:
    return Attribution(
        min(one.start, other.start), max(one.end, other.end), one.weight + other.weight
    )
