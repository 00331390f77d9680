"""What Text Embeddings Inference tells at `/info`; the keys after docker_label are ours."""

from typing import Any

from serving.http.version import version
from serving.interface import Limits, ModelInfo

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def info(model: ModelInfo, limits: Limits) -> dict[str, Any]:
    """What is served."""
    precision = model.engine.rpartition(" ")[2]
    return {
        "model_id": model.name,
        "model_sha": model.weights_sha256,
        "model_dtype": _DTYPES.get(precision, precision),
        "model_type": _model_type(model),
        "max_concurrent_requests": None,
        "max_input_length": model.max_length,
        "max_batch_tokens": model.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_texts,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version(),
        "sha": model.revision,
        "docker_label": None,
        "task": model.task,
        "labels": list(model.labels),
        "aliases": list(model.aliases),
        "metrics": dict(model.metrics),
        "base_model": model.base_model,
        "model_version": model.version,
        "engine": model.engine,
    }


def _model_type(model: ModelInfo) -> dict[str, Any]:
    if model.task == "embedding":
        return {"embedding": {"pooling": model.pooling or "mean"}}
    if model.task == "masked-lm":
        return {"masked-lm": {}}  # the original serves none
    return {
        "classifier": {
            "id2label": {str(index): label for index, label in enumerate(model.names)},
            "label2id": {label: index for index, label in enumerate(model.names)},
        }
    }
