"""Transformers' BERT, whole or one pipeline stage of it, computing only what the head reads.

Weights, names and configuration stay those of Transformers, so a saved model loads there unchanged.
Four things differ while it runs here: dropout is keyed by sample, attention picks the fastest
kernel, the word embeddings' gradient can be added row by row, and only what is read is computed: a
classifier reads [CLS], so its last layer computes queries, attention output and feed-forward for
that alone; a masked-language model's head sees only the masked positions.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, PreTrainedModel

from trainers.models.activation_checkpointing import checkpoint_layer
from trainers.models.attention import attention_forward
from trainers.models.config import quiet_transformers
from trainers.models.dropout import DropoutKeys, KeyedDropout, use_keyed_dropout
from trainers.models.embedding import RowGradEmbedding
from trainers.models.families import FAMILIES, ModelFamily
from trainers.models.packed import PackedTexts, PaddedView

Module = TypeVar("Module", bound=nn.Module)

_LAYER = re.compile(r"\.layer\.([0-9]+)\.")


class TextModel(nn.Module):
    """A BERT with its head, or a pipeline stage of it.

    net: from Transformers, for sequence classification or masked-language modelling.
    tied_weights: names of tied parameters in `net`, each with the name of its source.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        AttentionInterface.register("bertha", attention_forward)
        net.config._attn_implementation = "bertha"
        self.family: ModelFamily = FAMILIES[net.config.model_type]
        self.masked_lm = type(net).__name__.endswith("ForMaskedLM")
        ties = self.masked_lm and net.config.tie_word_embeddings
        self.tied_weights: dict[str, str] = dict(net._tied_weights_keys or {}) if ties else {}
        embeddings, layers = self.family.get_encoder(net).embeddings, self.family.get_layers(net)
        table = RowGradEmbedding.from_embedding(embeddings.word_embeddings)
        table.row_gradients = not self.masked_lm  # a tied table has a dense gradient
        embeddings.word_embeddings = table
        if self.is_cls_only:
            layers[-1] = ClsOnlyLayer(layers[-1])
        self.net: nn.Module = net
        self.num_layers = len(layers)
        self.layer_range = range(self.num_layers)
        self.recompute = "none"
        self.sp_entry, self.sp_exit = nn.Identity(), nn.Identity()  # hooks of the TP plan
        self._dropout_keys: DropoutKeys = use_keyed_dropout(net)

    def forward(self, inputs: Tensor, packed: PackedTexts) -> Tensor:
        """Return logits [n, num_labels], or [n, vocabulary], of the n tokens that are read.

        inputs: token ids [1, t] of texts end to end; hidden states [1, t, h] unless this is the
        first stage. Stages but the last return hidden states. packed: the texts; their keys are
        needed in training mode.
        """
        self._dropout_keys.packed = packed
        hidden = inputs
        if self.is_first:
            positions = self.family.position_rows(self.net, inputs, packed)
            hidden = self.sp_entry(self.family.embed_tokens(self.net, inputs, positions))
        layers = self.family.get_layers(self.net)
        for index in self.layer_range:
            layer = layers.get_submodule(str(index))
            reads = (packed.reads,) if isinstance(layer, ClsOnlyLayer) else ()
            if self.recompute == "none" or not self.training:
                hidden = layer(hidden, packed, *reads)
            else:
                hidden = checkpoint_layer(
                    layer, self._dropout_keys, self.recompute, hidden, packed, *reads
                )
        if not self.is_last:
            return hidden
        hidden = self.sp_exit(hidden)
        read = hidden[0] if self.is_cls_only else hidden[0, packed.reads]
        if self.masked_lm:
            return self.family.predict_tokens(self.net, read)
        return self.family.classify(self.net, read[:, None])

    def set_fused_attention(self, fused: bool) -> None:
        """Set whether training uses torch's fused attention where no weight is dropped."""
        for module in self.modules():
            if isinstance(getattr(module, "dropout", None), KeyedDropout):
                setattr(module, "fused", fused)  # noqa: B010

    @property
    def is_first(self) -> bool:
        """Whether this stage reads token ids."""
        return self.layer_range.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage returns logits."""
        return self.layer_range.stop == self.num_layers

    def extract_stage(self, layer_range: range) -> "TextModel":
        """Return a model of those layers and the ends they touch, sharing its parameters."""
        encoder, layers = self.family.encoder, f"{self.family.encoder}.{self.family.layers}"
        ends = (f"{encoder}.embeddings", f"{encoder}.embeddings_project")

        def is_in_stage(name: str) -> bool:
            if name.startswith(f"net.{layers}."):
                return int(name.removeprefix(f"net.{layers}.").split(".")[0]) in layer_range
            at_start = name.startswith(tuple(f"net.{end}." for end in ends))
            return layer_range.start == 0 if at_start else layer_range.stop == self.num_layers

        stage = extract_submodule(self, is_in_stage)
        stage.layer_range = layer_range
        stage.sp_entry, stage.sp_exit = nn.Identity(), nn.Identity()
        return stage

    def depth_of(self, name: str) -> int:
        """Return the place of a parameter: 0 of embeddings, from 1 of layers, the last of the head.

        name: in this model, or in the whole model that this is a stage of.
        """
        layer = _LAYER.search(name)
        if layer:
            return int(layer[1]) + 1
        return 0 if ".embeddings" in name else self.num_layers + 1

    def count_frozen_layers(self, part: str | int | None) -> int | None:
        """Return how many layers, with the embeddings, `model.freeze` names; None for nothing."""
        if isinstance(part, str):
            return {"embeddings": 0, "encoder": self.num_layers}[part]
        return part

    def freeze(self, part: str | int | None) -> None:
        """Train no embeddings, nor the first layers, as `model.freeze` says."""
        frozen = self.count_frozen_layers(part)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(frozen is None or self.depth_of(name) > frozen)

    def tie_weights(self) -> None:
        """Make tied parameters one object again, where this stage holds both of a pair.

        `to_empty` and tensor parallelism replace parameters one by one, which separates them.
        """
        for pair in self.tied_weights.items():
            try:
                ends = [self.net.get_parameter(name) for name in reversed(pair)]
            except AttributeError:
                continue  # the other end is on another stage
            shared = next((p for p in ends if isinstance(p, DTensor)), ends[0])
            for name in pair:
                owner, _, leaf = name.rpartition(".")
                setattr(self.net.get_submodule(owner), leaf, shared)

    @property
    def is_cls_only(self) -> bool:
        """Whether the last layer computes [CLS] alone."""
        return self.family.supports_cls_only and not self.masked_lm

    @property
    def lm_head_name(self) -> str:
        """The name of the linear layer that computes logits of the vocabulary.

        Raises AttributeError where there is none: tracers probe every property.
        """
        net: Any = self.net
        head: nn.Module | None = net.get_output_embeddings()
        if head is None:
            raise AttributeError(f"a {type(net).__name__} has no language model head")
        name: str = next(name for name, module in self.named_modules() if module is head)
        return name

    @property
    def config(self) -> Any:
        """The Transformers configuration."""
        return self.net.config

    @property
    def word_embeddings(self) -> RowGradEmbedding:
        """The word embeddings; of the first stage only."""
        table = self.family.get_encoder(self.net).embeddings.word_embeddings
        assert isinstance(table, RowGradEmbedding)
        return table

    def save_pretrained(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors` as Transformers does."""
        assert isinstance(self.net, PreTrainedModel)
        with quiet_transformers():
            self.net.save_pretrained(directory)


class ClsOnlyLayer(nn.Module):
    """A last BertLayer that computes its output only for the tokens that are read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.intermediate = layer.attention, layer.intermediate
        self.output = layer.output
        self.tp_input, self.tp_cls = nn.Identity(), nn.Identity()  # hooks of the TP plan

    def forward(self, hidden: Tensor, packed: PackedTexts | PaddedView, reads: Tensor) -> Tensor:
        """Return the layer's output [1, n, h] for the tokens `reads` [n] of `hidden` [1, t, h]."""
        attention: Any = self.attention
        heads, hidden = attention.self, self.tp_input(hidden)
        queried = hidden[:, reads]

        def split_heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], -1, heads.attention_head_size).transpose(1, 2)

        query = split_heads(heads.query(queried))
        key, value = split_heads(heads.key(hidden)), split_heads(heads.value(hidden))
        context, _ = attention_forward(heads, query, key, value, packed, heads.scaling, reads)
        attended = attention.output(context.flatten(2), self.tp_cls(queried))
        widen: Any = self.intermediate
        narrow: Any = self.output
        output: Tensor = narrow(widen(attended), attended)
        return output


def extract_submodule(module: Module, is_kept: Callable[[str], bool], prefix: str = "") -> Module:
    """Copy a module tree with only the parameters, buffers and leaf modules whose name is kept.

    Containers are copied, tensors and leaves are shared; names stay as they were.
    """
    part = copy.copy(module)
    for name, value in vars(module).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            part.__dict__[name] = copy.copy(value)  # a hook added to one part is not another's
    part._parameters = {k: v for k, v in module._parameters.items() if is_kept(prefix + k)}
    part._buffers = {k: v for k, v in module._buffers.items() if is_kept(prefix + k)}
    part._modules = {
        name: extract_submodule(child, is_kept, f"{prefix}{name}.")
        for name, child in module._modules.items()
        if child is not None and _keeps_any(child, f"{prefix}{name}.", is_kept)
    }
    return part


def _keeps_any(module: nn.Module, prefix: str, is_kept: Callable[[str], bool]) -> bool:
    names = [
        f"{prefix}{name}" for name, child in module.named_modules() if not list(child.children())
    ]
    return any(is_kept(name if name.endswith(".") else f"{name}.") for name in names)
