"""Write a bundle for other libraries: Transformers, ONNX or OpenVINO.

export_bundle(Path("runs/mine/bundle"), Path("reviews"), "onnx")

Graphs take `input_ids` and `attention_mask` [texts, tokens], as those of other exporters do, and
not the packed batches of our own engines. Each is compared with torch before it is kept.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import BerthaError
from serving.engine.backends.backend import import_optional
from serving.optimize.export import OPSET, quiet_tracing
from trainers.models.card import ModelCard, read_card
from trainers.models.config import quiet_transformers
from trainers.models.model_card import run_name, write_readme
from trainers.storage.atomic import atomic_directory

ExportFormat = Literal["transformers", "onnx", "openvino"]
FORMATS: tuple[str, ...] = get_args(ExportFormat)
ONNX_FILE, OPENVINO_FILE = "model.onnx", "openvino_model.xml"
WEIGHTS = "model.safetensors"
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = {"masked-lm": "logits", "embedding": "embeddings"}
TOLERANCE = 1e-3  # of an output, from torch
CHECKED_LENGTHS = ((7, 4), (5, 5, 2), (1,))  # tokens of the texts that graphs are compared on


class ExportError(BerthaError):
    """A bundle that cannot be written so; the message says why, and the way out."""


def export_bundle(bundle: Path, out: Path, format: ExportFormat = "transformers") -> ModelCard:
    """Write the directory `out`, which must be new or empty, with a README.md; return the card.

    transformers: configuration, weights and tokenizer. onnx, openvino: a graph instead of the
    weights. Raises ExportError and BundleError.
    """
    if format not in FORMATS:
        raise ExportError(f"--format {format}: there is {', '.join(FORMATS)}")
    card = read_card(bundle)
    if card.recipe["model"]["name"] == "linear":
        raise ExportError(
            f"{bundle}: a linear model has no form of Transformers, ONNX or OpenVINO; serve it "
            "with bertha serve"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: is there already; name a new directory")
    with atomic_directory(out) as temporary:
        for name in card.files:
            if format == "transformers" or name != WEIGHTS:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / name, temporary / name)
        if format != "transformers":
            _GRAPHS[format](_TextNetwork(bundle, card), temporary)
        write_readme(temporary, card, run_name(bundle), format)
    return card


class _TextNetwork(nn.Module):
    """A bundle's model as a function of input_ids and attention_mask [texts, tokens] alone."""

    def __init__(self, bundle: Path, card: ModelCard) -> None:
        super().__init__()
        from transformers import (
            AutoModel,
            AutoModelForMaskedLM,
            AutoModelForSequenceClassification,
        )

        kinds: dict[str, Any] = {"masked-lm": AutoModelForMaskedLM, "embedding": AutoModel}
        kind = kinds.get(card.task, AutoModelForSequenceClassification)
        # Fused attention asks of values that a trace would freeze.
        settings = {"attn_implementation": "eager", "use_safetensors": True, "dtype": torch.float32}
        with quiet_transformers():
            self.net = kind.from_pretrained(bundle, local_files_only=True, **settings)
        self.pooling, self.output = card.pooling, OUTPUTS.get(card.task, "logits")
        self.num_tokens: int = self.net.config.vocab_size
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits, or the embedding of each text, of length 1."""
        outputs = self.net(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling is None:
            logits: Tensor = outputs.logits
            return logits
        hidden = outputs.last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(pooled, dim=-1)


def _export_onnx(network: _TextNetwork, directory: Path) -> None:
    path = directory / ONNX_FILE
    _write_onnx(network, path)
    session = import_optional("onnxruntime").InferenceSession(str(path))
    _compare_with_torch(network, lambda arrays: session.run(None, arrays)[0], "onnx")


def _export_openvino(network: _TextNetwork, directory: Path) -> None:
    openvino = import_optional("openvino")
    with quiet_tracing():
        model = openvino.convert_model(network, example_input=_example_inputs(network, (7, 4)))
    for port in model.inputs:
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, directory / OPENVINO_FILE, compress_to_fp16=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(directory / OPENVINO_FILE, "CPU", settings)
    _compare_with_torch(network, lambda arrays: compiled(arrays)[0], "openvino")


_GRAPHS: dict[str, Callable[[_TextNetwork, Path], None]] = {
    "onnx": _export_onnx,
    "openvino": _export_openvino,
}


def _write_onnx(network: _TextNetwork, path: Path) -> None:
    import_optional("onnx")
    axes = {name: {0: "texts", 1: "tokens"} for name in INPUTS} | {network.output: {0: "texts"}}
    with quiet_tracing():
        torch.onnx.export(
            network,
            tuple(_example_inputs(network, (7, 4)).values()),
            str(path),
            input_names=list(INPUTS),
            output_names=[network.output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _example_inputs(network: _TextNetwork, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Return texts of these lengths, of tokens drawn with a fixed generator, padded."""
    width, draw = max(lengths), np.random.default_rng(0)
    ids = draw.integers(5, network.num_tokens, (len(lengths), width))
    mask = np.arange(width) < np.array(lengths)[:, None]
    return {
        "input_ids": torch.from_numpy(np.where(mask, ids, 0)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }


def _compare_with_torch(
    network: _TextNetwork, run: Callable[[dict[str, np.ndarray]], np.ndarray], name: str
) -> None:
    """Raise ExportError where a graph computes something else than torch."""
    for lengths in CHECKED_LENGTHS:
        inputs = _example_inputs(network, lengths)
        with torch.inference_mode():
            expected = network(**inputs).numpy()
        found = run({key: tensor.numpy() for key, tensor in inputs.items()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"the {name} graph differs from torch by {difference:.2g}, so it was not kept; "
                "export it with --format transformers"
            )
