"""Whether a named model can be trained by a recipe, found in seconds before data are read.

Files that are missing, damaged or in another format, weights of another model, numbers that are not
finite, a tokenizer that does not belong to the embeddings.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from cluster.settings import did_you_mean
from trainers.config.recipe import Recipe
from trainers.data.packages import resolve_model
from trainers.data.prepare import load_recipe_encoder
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.models.config import ModelError, build_full_config, pretrained_source
from trainers.models.families import FAMILIES, ModelFamily
from trainers.models.heads import list_names
from trainers.untrusted.model_files import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    read_weight_headers,
)

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "pytorch_model.pt")
# Other formats, and what makes safetensors of them.
FORMATS = {
    "tf_model.h5": "load it with from_tf=True in Transformers 4, and save_pretrained it",
    "flax_model.msgpack": "load it with from_flax=True in Transformers 4, and save_pretrained it",
    "adapter_config.json": "it is a PEFT adapter: load it with AutoPeftModel, and save what "
    "merge_and_unload() returns",
    "model.onnx": "an ONNX graph is not trained; name the model that it was exported from",
}


def check_pretrained(recipe: Recipe, cache: Path) -> None:
    """Check what is known of the recipe's model and tokenizer before data are read.

    cache: of the cluster. Raises ModelError, EncodingError or UntrustedFileError.
    """
    name = recipe.model.name
    if name in ("random", "linear"):  # a vocabulary that is trained needs the data
        if recipe.model.tokenizer is not None:
            _check_masks(recipe, load_recipe_encoder(recipe, cache))
        return
    directory = Path(resolve_model(name))
    _check_place(name, directory)
    config = build_full_config(recipe, recipe.data.labels or ())
    encoder = load_recipe_encoder(recipe, cache)
    _check_masks(recipe, encoder)
    _check_vocabulary(recipe, config, encoder)
    with pretrained_source(name), torch.device("meta"):
        net = AutoModel.from_config(config)
    if directory.is_dir():
        _check_weights(name, directory, net, FAMILIES[config.model_type])


def check_loaded(
    name: str, missing: set[str], mismatched: set[str], family: ModelFamily, is_drawn: bool
) -> None:
    """Check what Transformers says of loading a model. Raises ModelError.

    missing, mismatched: names of parameters that the files lack or have in another shape. Those of
    a head may be missing; the pooler is no part of a masked language model.
    """
    encoder, pooler = f"{family.encoder}.", f"{family.encoder}.pooler."
    lacking = {each for each in missing if each.startswith(encoder)} - {
        each for each in missing if each.startswith(pooler)
    }
    wrong = {each for each in mismatched if each.startswith(encoder) or not is_drawn}
    if lacking or wrong:
        first = min(lacking or wrong)
        raise ModelError(
            f"model.name = {name!r}: its files hold no {first} of this shape, nor "
            f"{len(lacking | wrong) - 1} others of the encoder; fetch it again, or name another"
        )


def _check_place(name: str, path: Path) -> None:
    """Raise ModelError where `path` is named as a directory and is none with a model."""
    if path.is_file():
        raise ModelError(
            f"model.name = {name!r}: is a file; name the directory that it lies in, with its "
            "config.json and tokenizer"
        )
    if not path.exists():
        is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
        if is_path and "://" not in name:
            near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ModelError(
                f"model.name = {name!r}: no such directory{did_you_mean(path.name, near)}"
            )
        return
    if not (path / CONFIG_FILE).is_file():
        _explain_no_config(name, path)
    if any((path / each).is_file() for each in (WEIGHTS_FILE, INDEX_FILE)):
        return
    pickle = next((each for each in PICKLES if (path / each).exists()), None)
    if pickle is not None:
        raise ModelError(
            f"model.name = {name!r}: its weights are {pickle}, a pickle, which may run code and is "
            "never loaded; where you trust it, convert it once with Transformers: "
            f"AutoModelForMaskedLM (or the class it has).from_pretrained({str(path)!r})"
            f".save_pretrained(NEW), copy the tokenizer files, and set model.name=NEW"
        )
    other = next((each for each in FORMATS if (path / each).exists()), None)
    raise ModelError(
        f"model.name = {name!r}: has no {WEIGHTS_FILE}"
        + (f", but {other}: {FORMATS[other]}" if other else "; fetch it again, or name another")
    )


def _explain_no_config(name: str, path: Path) -> None:
    """Raise ModelError that names where in `path` a model lies, if anywhere."""
    adapter = "adapter_config.json"
    if (path / adapter).is_file():
        raise ModelError(f"model.name = {name!r}: has no {CONFIG_FILE}; {FORMATS[adapter]}")
    found = [
        each.parent
        for pattern in ("*", "snapshots/*")
        for each in path.glob(f"{pattern}/{CONFIG_FILE}")
    ]
    if found:
        newest = max(found, key=lambda each: each.stat().st_mtime)
        best = path / "bundle" if path / "bundle" in found else newest
        raise ModelError(
            f"model.name = {name!r}: has no {CONFIG_FILE}, but {best.relative_to(path)} has; "
            f"set model.name={best}"
        )
    raise ModelError(
        f"model.name = {name!r}: has no {CONFIG_FILE}; name the directory that save_pretrained "
        "or a run's bundle made"
    )


def _check_masks(recipe: Recipe, encoder: Encoder) -> None:
    """Raise EncodingError where words are to be masked and the tokenizer has no mask."""
    if recipe.task == "masked-lm" and isinstance(encoder, TextEncoder):
        encoder.masking_vocabulary()


def _check_vocabulary(recipe: Recipe, config: PreTrainedConfig, encoder: Encoder) -> None:
    """Raise ModelError where the tokenizer has ids that the embeddings have no row for."""
    if not isinstance(encoder, TextEncoder):
        return
    highest = max(encoder.tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        tokenizer = recipe.model.tokenizer or recipe.model.name
        raise ModelError(
            f"the tokenizer of {tokenizer!r} has ids up to {highest}, but the embeddings of "
            f"model.name = {recipe.model.name!r} have {config.vocab_size} rows; set "
            "model.tokenizer to the one it was trained with, or save the model again after "
            "resize_token_embeddings(len(tokenizer))"
        )


def _check_weights(name: str, directory: Path, net: nn.Module, family: ModelFamily) -> None:
    """Raise ModelError unless the files hold finite numbers for the encoder `net`, on meta."""
    wanted = {
        key: tuple(tensor.shape)
        for key, tensor in net.named_parameters()
        if not key.startswith("pooler.")
    }
    held = {
        _encoder_name(key, family): entry for key, entry in read_weight_headers(directory).items()
    }
    missing = sorted(wanted.keys() - held.keys())
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ModelError(
            f"model.name = {name!r}: its weights lack {missing[0]}{others} of the encoder; they "
            f"hold {list_names(tuple(sorted(held)))}. Save it with Transformers' save_pretrained"
        )
    for key, shape in wanted.items():
        if held[key].shape != shape:
            raise ModelError(
                f"model.name = {name!r}: {key} is {list(held[key].shape)}, but its "
                f"{CONFIG_FILE} makes it {list(shape)}; put both files of one model there"
            )
    _check_finite(name, directory)


def _check_finite(name: str, directory: Path) -> None:
    """Raise ModelError where a weight is not a finite number."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  (no mapping)
                    tensor = file.get_tensor(key)
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        raise ModelError(
                            f"model.name = {name!r}: {key} in {path.name} holds numbers that are "
                            "not finite; its training diverged: name an earlier checkpoint"
                        )
        except SafetensorError as error:
            raise ModelError(f"{path}: {error}; fetch it again") from None


def _encoder_name(key: str, family: ModelFamily) -> str:
    """Return a parameter's name within the encoder; old files call those of norms gamma, beta."""
    inner = key.removeprefix(f"{family.encoder}.")
    return inner.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
