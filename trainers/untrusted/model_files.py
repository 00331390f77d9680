"""Check the files of a model before a library builds it: sizes that are true, and no code.

`config.json` promises sizes, from which a library allocates. They are compared with the shapes in
the header of the weights, so a promise can cost no more than the file has bytes. Imports no torch.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from trainers.untrusted.bounded_json import UntrustedFileError, read_json
from trainers.untrusted.tensor_header import TensorEntry, read_tensor_header

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
MAX_CONFIG_BYTES = 4 * 2**20  # with names for 100,000 labels
MAX_LABELS = 100_000
# Every name that Transformers knows a size by, in the families that are supported.
NAMES = {
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings",),
    "hidden_size": ("hidden_size", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layers"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
    "embedding_size": ("embedding_size",),
    "type_vocab_size": ("type_vocab_size",),
}
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config")
KERNEL_KEYS = ("attn_implementation", "experts_implementation")
_LAYER = re.compile(r"(?:^|\.)layer\.(\d{1,6})\.")


def max_weight_bytes() -> int:
    """Return the memory of this machine, which weights must fit in."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_model_files(directory: Path) -> None:
    """Check the configuration in a directory, and the header of the weights beside it if any.

    Takes milliseconds, whatever the files promise. Raises UntrustedFileError.
    """
    path = directory / CONFIG_FILE
    config = read_json(path, MAX_CONFIG_BYTES)
    _check_no_code(path, config)
    tensors = read_weight_headers(directory)
    if config.get("model_type") == "linear":
        _check_linear(path, config, tensors)
        return
    sizes = _read_sizes(path, config)
    width = "embedding_size" if config.get("model_type") == "electra" else "hidden_size"
    _check_tables(path, sizes, sizes.get(width), tensors)
    _check_counts(path, sizes, sizes.get(width, 1), tensors)


def _check_no_code(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UntrustedFileError where a configuration names code, here or on the hub."""
    for key in CODE_KEYS:
        if config.get(key):
            raise UntrustedFileError(
                f"{path}: {key} = {str(config[key])[:80]!r}: names code or a format that is never "
                "loaded; remove the key, or use a model that Transformers itself knows"
            )
    for key, value in config.items():
        # Transformers fetches "owner/kernel" from the hub and loads it as a library.
        if key.strip("_").removesuffix("_internal") in KERNEL_KEYS and "/" in str(value):
            raise UntrustedFileError(
                f"{path}: {key} = {str(value)[:80]!r}: names a kernel of the hub, which is never "
                "loaded; remove the key"
            )


def read_weight_headers(directory: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a model by name; {} where the directory has no safetensors.

    Raises UntrustedFileError.
    """
    limit = max_weight_bytes()
    if (directory / WEIGHTS_FILE).exists():
        return read_tensor_header(directory / WEIGHTS_FILE, limit)
    index = directory / INDEX_FILE
    if not index.exists():
        return {}
    shards = read_json(index, MAX_CONFIG_BYTES).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    tensors: dict[str, TensorEntry] = {}
    for name in sorted(names):
        if name != PurePosixPath(name).name:
            raise UntrustedFileError(
                f"{index}: names {name[:80]!r}, which lies elsewhere; put all files into one "
                "directory"
            )
        tensors |= read_tensor_header(directory / name, limit)
    return tensors


def _read_sizes(path: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes in a configuration; of two names for the same, the larger value."""
    sizes: dict[str, int] = {}
    for size, names in NAMES.items():
        for name in names:
            if config.get(name) is None:
                continue
            sizes[size] = max(sizes.get(size, 0), _read_size(path, config, name))
    labels = _read_size(path, config, "num_labels") if config.get("num_labels") is not None else 0
    if labels > MAX_LABELS:
        raise UntrustedFileError(
            f"{path}: num_labels = {labels}: at most {MAX_LABELS} are read; correct the file"
        )
    return sizes


def _read_size(path: Path, config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if type(value) is not int or value < 0:
        raise UntrustedFileError(
            f"{path}: {name} = {str(value)[:40]}: is no size; correct it to a whole number"
        )
    return value


def _check_linear(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> None:
    """Raise UntrustedFileError unless a linear model has the weights that it promises."""
    for name in ("num_features", "num_labels"):
        if name not in config:
            raise UntrustedFileError(f"{path}: has no {name}; correct the file")
    promised = (_read_size(path, config, "num_labels"), _read_size(path, config, "num_features"))
    weight = tensors.get("linear.weight")
    if weight is None or weight.shape != promised:
        found = "no such tensor" if weight is None else list(weight.shape)
        raise UntrustedFileError(
            f"{path}: promises linear.weight {list(promised)}, but {WEIGHTS_FILE} holds {found}; "
            "put both files of one model there"
        )


def _check_tables(
    path: Path, sizes: Mapping[str, int], width: int | None, tensors: Mapping[str, TensorEntry]
) -> None:
    """Raise UntrustedFileError unless embeddings and layers are as many as promised."""
    layers = len({match[1] for name in tensors if (match := _LAYER.search(name))})
    if layers and sizes.get("num_hidden_layers", layers) != layers:
        _refuse(path, f"num_hidden_layers = {sizes['num_hidden_layers']}", f"{layers} layers")
    rows = {"vocab_size": "word_embeddings", "max_position_embeddings": "position_embeddings"}
    for size, table in rows.items():
        for name, entry in tensors.items():
            promised = (sizes.get(size), width)
            if name.endswith(f"{table}.weight") and None not in promised != entry.shape:
                promise = f"{size} = {promised[0]} of width {promised[1]}"
                _refuse(path, promise, f"{name} {list(entry.shape)}")


def _check_counts(
    path: Path, sizes: Mapping[str, int], width: int, tensors: Mapping[str, TensorEntry]
) -> None:
    """Raise UntrustedFileError where more parameters are promised than there are.

    This bounds what a library allocates, by whatever names the weights go.
    """
    hidden, layers = sizes.get("hidden_size", 1), sizes.get("num_hidden_layers", 1)
    inner = sizes.get("intermediate_size", 1)
    tables = ("vocab_size", "max_position_embeddings", "type_vocab_size")
    promised = {f"{name} = {sizes[name]}": sizes[name] * width for name in tables if name in sizes}
    shape = f"hidden_size = {hidden}, intermediate_size = {inner}, num_hidden_layers = {layers}"
    promised[shape] = layers * (4 * hidden**2 + 2 * hidden * inner)
    held = sum(math.prod(entry.shape) for entry in tensors.values())
    found = f"{held} parameters"
    if not tensors:
        held = max_weight_bytes() // 4
        found = f"none, and {held} parameters would fill the memory of this machine"
    for promise, count in promised.items():
        if count > held:
            _refuse(path, f"{promise} make {count} parameters", found)


def _refuse(path: Path, promise: str, found: str) -> None:
    raise UntrustedFileError(
        f"{path}: {promise}, but the weights hold {found}; put both files of one model there"
    )
