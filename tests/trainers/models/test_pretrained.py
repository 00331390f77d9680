"""Model directories that cannot be trained: each one error with its way out, before data are read.

`--dry-run` and a run both begin with this check.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe, parse_recipe
from trainers.models.pretrained import check_pretrained

Damage = Callable[[Path], object]


def recipe_of(name: Path | str, **settings: Any) -> Recipe:
    model = {"name": str(name), **settings.pop("model", {})}
    batch = {"max_length": 16, **settings.pop("batch", {})}
    return parse_recipe({"model": model, "data": {"source": "x.csv"}, "batch": batch, **settings})


def edit_json(file: str, **changes: Any) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / file
        kept = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in kept.items() if v != "REMOVED"}))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        changed = change(tensors)
        save_file(changed or tensors, directory / "model.safetensors", {"format": "pt"})

    return damage


def remove(*files: str) -> Damage:
    def damage(directory: Path) -> None:
        for file in files:
            (directory / file).unlink(missing_ok=True)

    return damage


def rename(file: str, to: str) -> Damage:
    return lambda directory: (directory / file).rename(directory / to)


def truncate(file: str, size: int) -> Damage:
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:size])


def move_into(folder: str, *files: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / folder).mkdir(parents=True)
        for path in [p for p in directory.iterdir() if p.is_file()]:
            if not files or path.name in files:
                path.rename(directory / folder / path.name)

    return damage


def add_words(directory: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    tokenizer.add_tokens(["neologism"])
    tokenizer.save_pretrained(directory)


def fill_with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.1.output.dense.weight"][3, 3] = float("nan")


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.0.output.dense.bias"] = torch.zeros(33)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), r"has no config\.json; name the directory that save_pre"),
    "a run": (
        move_into("bundle"),
        r"has no config\.json, but bundle has; set model\.name=.*bundle",
    ),
    "a Trainer's output": (
        move_into("checkpoint-500", "config.json", "model.safetensors"),
        r"but checkpoint-500 has; set model\.name=",
    ),
    "a hub cache": (move_into("snapshots/abc"), r"but snapshots/abc has; set model\.name="),
    "an old sentence-transformers": (
        move_into("0_Transformer", "config.json", "model.safetensors"),
        r"but 0_Transformer has; set",
    ),
    "a pickle": (
        rename("model.safetensors", "pytorch_model.bin"),
        r"its weights are pytorch_model\.bin, a pickle, .*save_pretrained\(NEW\)",
    ),
    "TensorFlow's": (rename("model.safetensors", "tf_model.h5"), r"but tf_model\.h5: load it with"),
    "Flax'": (rename("model.safetensors", "flax_model.msgpack"), r"but flax_model\.msgpack: load"),
    "an ONNX export": (rename("model.safetensors", "model.onnx"), "an ONNX graph is not trained"),
    "an adapter": (
        lambda path: (remove("config.json")(path), (path / "adapter_config.json").write_text("{}")),
        "it is a PEFT adapter: .*merge_and_unload",
    ),
    "no weights": (remove("model.safetensors"), r"has no model\.safetensors; fetch it again"),
    "an LFS pointer": (
        lambda path: (path / "model.safetensors").write_text("version https://git-lfs.github.com"),
        r"model\.safetensors",
    ),
    "cut weights": (truncate("model.safetensors", 5000), r"model\.safetensors: .*fetch it again"),
    "empty weights": (truncate("model.safetensors", 0), r"model\.safetensors"),
    "no layer": (
        edit_weights(lambda t: {k: v for k, v in t.items() if "layer.1" not in k}),
        "num_hidden_layers = 2, but the weights hold 1 layers",
    ),
    "one tensor less": (
        edit_weights(lambda t: {k: t[k] for k in t.keys() - {"encoder.layer.1.output.dense.bias"}}),
        r"its weights lack encoder\.layer\.1\.output\.dense\.bias of the encoder",
    ),
    "names of another library": (
        edit_weights(lambda t: {f"model.{k}": v for k, v in t.items()}),
        r"its weights lack embeddings\..* and \d+ others .*they hold model\..*save_pretrained",
    ),
    "another shape": (
        edit_weights(widen),
        r"encoder\.layer\.0\.output\.dense\.bias is \[33\], but its config\.json makes it \[32\]",
    ),
    "not finite": (
        edit_weights(fill_with_nan),
        r"layer\.1\.output\.dense\.weight in model\.safetensors holds numbers that are not finite",
    ),
    "a config cut": (truncate("config.json", 100), r"config\.json"),
    "an empty config": (truncate("config.json", 0), r"config\.json"),
    "no model type": (edit_json("config.json", model_type="REMOVED"), "model_type"),
    "another family": (edit_json("config.json", model_type="t5"), "a t5 model; this trains models"),
    "a rate that is none": (
        edit_json("config.json", layer_norm_eps="small"),
        "its files make no model .*layer_norm_eps",
    ),
    "a decoder": (edit_json("config.json", is_decoder=True), "is_decoder = True"),
    "relative positions": (
        edit_json("config.json", position_embedding_type="relative_key"),
        "position_embedding_type = 'relative_key'",
    ),
    "an unknown activation": (edit_json("config.json", hidden_act="swishy"), "swishy"),
    "heads that do not divide": (
        edit_json("config.json", num_attention_heads=5),
        "attention heads",
    ),
    "other widths": (edit_json("config.json", hidden_size=64), "of width 64, but the weights hold"),
    "another vocabulary": (edit_json("config.json", vocab_size=50), "vocab_size = 50 of width 32"),
    "more words than rows": (add_words, r"has ids up to 37, but .* have 37 rows; set model\.token"),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"),
        r"holds no tokenizer \(tokenizer\.json or vocab\.txt\); copy it .*set model\.tokenizer",
    ),
    "a tokenizer cut": (truncate("tokenizer.json", 300), r"tokenizer\.json"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_directory_is_one_error(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    damage, said = DAMAGES[kind]
    directory = tmp_path / "model"
    shutil.copytree(tiny_bert, directory)
    check_pretrained(recipe_of(directory), tmp_path)
    damage(directory)
    with pytest.raises(BerthaError, match=f"(?s){said}") as caught:
        check_pretrained(recipe_of(directory, model={"tokenizer": str(directory)}), tmp_path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 800, text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": {"max_length": 65}}, r"max_length = 65: .* positions for 64 .*max_length=64"),
        ({"model": {"layers": [0, 2]}}, "has 2 layers; name some of 0 to 1"),
    ],
)
def test_a_setting_that_the_model_cannot_have(
    changes: dict[str, Any], said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(BerthaError, match=said):
        check_pretrained(recipe_of(tiny_bert, **changes), tmp_path)


def test_a_path_that_is_none(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "my-model")
    tokenizer = {"tokenizer": str(tiny_bert)}
    kinds: list[tuple[Path | str, str]] = [
        (tmp_path / "my-modle", r"no such directory; did you mean my-model\?"),
        ("./nowhere", "no such directory"),
        ("a/b/c", "no such directory"),
        (tmp_path / "my-model/model.safetensors", "is a file; name the directory"),
        ("https://example.com/model", "not read from a URL"),
    ]
    for name, said in kinds:
        with pytest.raises(BerthaError, match=said):
            check_pretrained(recipe_of(name, model=tokenizer), tmp_path)


def test_masked_lm_needs_a_mask(tiny_bert: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_bert, directory)
    edit_json("tokenizer_config.json", mask_token=None)(directory)
    check_pretrained(recipe_of(directory), tmp_path)
    with pytest.raises(BerthaError, match="has no mask token"):
        check_pretrained(recipe_of(directory, task="masked-lm"), tmp_path)


def test_roberta_counts_its_positions_behind_the_pad(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=40, hidden_size=8, max_position_embeddings=34, **sizes)
    RobertaModel(config).save_pretrained(tmp_path / "model")
    tokenizer = {"tokenizer": str(tiny_bert)}
    check_pretrained(
        recipe_of(tmp_path / "model", model=tokenizer, batch={"max_length": 32}), tmp_path
    )
    with pytest.raises(BerthaError, match="positions for 32 tokens"):
        check_pretrained(
            recipe_of(tmp_path / "model", model=tokenizer, batch={"max_length": 33}), tmp_path
        )
