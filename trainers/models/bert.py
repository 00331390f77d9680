"""Transformers' own BERT, made to compute only what the answer needs, whole or in parts.

Weights, names and configuration stay those of Transformers, so a saved model loads there unchanged.
Four things differ while it runs here: dropout is keyed by sample, attention is computed the fastest
way, the word embeddings' gradient can be added row by row, and only what is read is computed: a
classifier reads [CLS], so its last layer computes queries, attention output and feed-forward for
that alone; a masked-language model reads masked positions, so only they meet the vocabulary.
Knows nothing of recipes, optimizers or layouts.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, PreTrainedModel

from trainers.models.activation_checkpointing import recomputed
from trainers.models.attention import Fold, Mask, attend
from trainers.models.config import quiet
from trainers.models.dropout import KeyedDropout, Keys, use_keyed_dropout
from trainers.models.embedding import Lookup
from trainers.models.families import FAMILIES, Family
from trainers.models.submodule import carved


class TextModel(nn.Module):
    """A BERT that answers, or a part of one: a span of its layers and the ends they touch.

    net: of Transformers, for sequence classification or masked-language modelling.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        AttentionInterface.register("bertha", attend)
        net.config._attn_implementation = "bertha"
        self.family: Family = FAMILIES[net.config.model_type]
        self.masked_lm = type(net).__name__.endswith("ForMaskedLM")
        ties = self.masked_lm and net.config.tie_word_embeddings
        self.tied: dict[str, str] = dict(net._tied_weights_keys or {}) if ties else {}
        embeddings, layers = self.family.encoder_of(net).embeddings, self.family.layers_of(net)
        embeddings.word_embeddings = Lookup.of(embeddings.word_embeddings)
        embeddings.word_embeddings.by_row = not self.masked_lm  # a tied table has a dense gradient
        if self.reads_cls_alone:
            layers[-1] = ClsOnlyLayer(layers[-1])
        self.net: nn.Module = net
        self.num_layers = len(layers)
        self.span = range(self.num_layers)
        self.recompute = "none"
        self.entered, self.left = nn.Identity(), nn.Identity()  # ends of sequence parallelism
        self._keys: Keys = use_keyed_dropout(net)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [b, num_labels], or [n, vocabulary] of the n masked `positions`.

        inputs: token ids [b, s]; for a part that is not the first, hidden states [b, s, h]. A part
        that is not the last returns hidden states. mask: [b, s] bool, true where a token is; None
        when nothing is padded. keys: [b] int64 of `dropout.sample_keys`, needed in training mode.
        positions: [n] int64, flat indices into b * s.
        """
        self._keys.keys = keys
        spread = None if mask is None else mask[:, None, None, :]
        hidden = self.entered(self.family.embed(self.net, inputs)) if self.is_first else inputs
        layers = self.family.layers_of(self.net)
        for index in self.span:
            layer = layers.get_submodule(str(index))
            if self.recompute == "none" or not self.training:
                hidden = layer(hidden, spread)
            else:
                hidden = recomputed(layer, self._keys, self.recompute, hidden, spread)
        if not self.is_last:
            return hidden
        hidden = self.left(hidden)
        if positions is None:
            return self.family.classify(self.net, hidden)
        return self.family.predict(self.net, hidden.flatten(0, 1)[positions])

    def fuse_attention(self, fused: bool) -> None:
        """Whether training attends by torch's fused kernel, where no weight is dropped."""
        for module in self.modules():
            if isinstance(getattr(module, "dropout", None), KeyedDropout):
                setattr(module, "fused", fused)  # noqa: B010

    @property
    def is_first(self) -> bool:
        """Whether this part reads token ids."""
        return self.span.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this part gives logits."""
        return self.span.stop == self.num_layers

    def part(self, span: range) -> "TextModel":
        """The part that holds the layers of `span`, sharing its parameters with this model."""
        encoder, layers = self.family.encoder, f"{self.family.encoder}.{self.family.layers}"
        ends = (f"{encoder}.embeddings", f"{encoder}.embeddings_project")

        def kept(name: str) -> bool:
            if name.startswith(f"net.{layers}."):
                return int(name.removeprefix(f"net.{layers}.").split(".")[0]) in span
            at_start = name.startswith(tuple(f"net.{end}." for end in ends))
            return span.start == 0 if at_start else span.stop == self.num_layers

        part = carved(self, kept)
        part.span = span
        part.entered, part.left = nn.Identity(), nn.Identity()
        return part

    def tie(self) -> None:
        """Make tied parameters one again, where this part holds both; see `tied`."""
        for pair in self.tied.items():
            try:
                held = [self.net.get_parameter(name) for name in reversed(pair)]
            except AttributeError:
                continue  # the other end is in another part
            shared = next((p for p in held if isinstance(p, DTensor)), held[0])
            for name in pair:
                owner, _, leaf = name.rpartition(".")
                setattr(self.net.get_submodule(owner), leaf, shared)

    @property
    def reads_cls_alone(self) -> bool:
        """Whether the last layer computes [CLS] alone."""
        return self.family.bert_shaped and not self.masked_lm

    @property
    def decoder(self) -> str:
        """The name of the linear layer that gives logits of the vocabulary.

        Raises AttributeError where there is none, as tracers expect of what is not there.
        """
        net: Any = self.net
        last: nn.Module | None = net.get_output_embeddings()
        if last is None:
            raise AttributeError(f"a {type(net).__name__} has no decoder")
        name: str = next(name for name, module in self.named_modules() if module is last)
        return name

    @property
    def config(self) -> Any:
        """The configuration of Transformers."""
        return self.net.config

    @property
    def table(self) -> Lookup:
        """The word embeddings of a part that is the first."""
        table = self.family.encoder_of(self.net).embeddings.word_embeddings
        assert isinstance(table, Lookup)
        return table

    def save(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors` as Transformers does."""
        assert isinstance(self.net, PreTrainedModel)
        with quiet():
            self.net.save_pretrained(directory)


class ClsOnlyLayer(nn.Module):
    """A last BertLayer that computes its output for what is read alone.

    That is [CLS] of every row: [b, 1, h]; in a row of texts end to end the tokens `reads` [n]:
    [1, n, h].
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = (
            layer.attention,
            layer.intermediate,
            layer.output,
        )
        self.whole, self.cls = nn.Identity(), nn.Identity()  # where tensor parallel takes hold

    def forward(
        self,
        hidden: Tensor,
        mask: Mask = None,
        reads: Tensor | None = None,
    ) -> Tensor:
        attention: Any = self.attention
        heads, hidden = attention.self, self.whole(hidden)
        first = hidden[:, :1] if reads is None else hidden[:, reads]
        if reads is not None and isinstance(mask, Fold):
            mask = mask.seen_by(reads)

        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], -1, heads.attention_head_size).transpose(1, 2)

        query, key, value = heads.query(first), heads.key(hidden), heads.value(hidden)
        context, _weights = attend(
            heads, split(query), split(key), split(value), mask, heads.scaling
        )
        attended = attention.output(context.flatten(2), self.cls(first))
        widen: Any = self.intermediate
        narrow: Any = self.output
        output: Tensor = narrow(widen(attended), attended)
        return output
