"""Bundles of a stranger: refused in one sentence, before anything large is read or built."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.engine.backends.registry import BACKENDS
from tests.support.hostile import (
    change_json,
    copy_bundle,
    refused_cheaply,
    seal_bundle,
    write_tensors,
)
from tests.support.tiny_bundle import write_linear_bundle
from trainers.config.recipe import Recipe, parse_recipe
from trainers.models.build import load_model
from trainers.models.card import (
    CARD_FILE,
    ENGINE_DIRECTORIES,
    BundleError,
    parse_card,
    read_card,
)
from trainers.models.config import ModelError, build_full_config
from trainers.untrusted.bounded_json import UntrustedFileError


@pytest.fixture
def bundle(tiny_classifier: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_classifier, tmp_path / "bundle")


def refuse(bundle: Path, message: str) -> None:
    """The card is refused with that, cheaply and in one line, that says where."""
    with refused_cheaply(), pytest.raises(BundleError, match=message) as refused:
        read_card(bundle)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(str(bundle)) and ";" in line


def recipe_for(directory: Path) -> Recipe:
    return parse_recipe({"model": {"name": str(directory)}, "data": {"source": "reviews.csv"}})


class TestPromises:
    """Sizes that config.json promises are those of the weights."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vocab_size": 10**9}, r"vocab_size = 1000000000 of width 32, .*weight \[\d+, 32\]"),
            ({"hidden_size": 10**6}, "of width 1000000, but the weights hold .*, 32]"),
            ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000, .* hold 2 layers"),
            ({"n_layers": 10**6}, "num_hidden_layers = 1000000, .* hold 2 layers"),
            ({"max_position_embeddings": 10**9}, r"max_position_embeddings = 1000000000 of width"),
            ({"intermediate_size": 10**9}, r"intermediate_size = 1000000000, .* make \d+ param"),
            ({"type_vocab_size": 10**9}, "type_vocab_size = 1000000000 make 32000000000 param"),
            ({"num_labels": 10**9}, "num_labels = 1000000000: at most 100000"),
            ({"hidden_size": "32"}, "hidden_size = 32: is no size"),
            ({"num_hidden_layers": -1}, "num_hidden_layers = -1: is no size"),
            ({"vocab_size": 1e9}, "vocab_size = 1000000000.0: is no size"),
        ],
    )
    def test_a_size_that_the_weights_have_not(
        self, bundle: Path, changes: dict[str, Any], message: str
    ) -> None:
        change_json(bundle / "config.json", **changes)
        seal_bundle(bundle)
        refuse(bundle, message)
        with refused_cheaply(), pytest.raises(UntrustedFileError, match=message):
            load_model(bundle)
        with refused_cheaply(), pytest.raises(UntrustedFileError, match=message):
            build_full_config(recipe_for(bundle), ("a", "b"))

    def test_weights_by_names_of_their_own_bound_a_model_all_the_same(self, bundle: Path) -> None:
        entry = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}
        write_tensors(bundle / "model.safetensors", {"anything": entry}, 4000)
        change_json(bundle / "config.json", embedding_size=1)  # a key of another family
        seal_bundle(bundle)
        refuse(bundle, r"vocab_size = \d+ make \d+ parameters, but the weights hold 1000 param")

    def test_a_model_without_weights_is_bounded_by_the_memory(
        self, tiny_bert: Path, tmp_path: Path
    ) -> None:
        model = copy_bundle(tiny_bert, tmp_path / "model")
        (model / "model.safetensors").unlink()
        change_json(model / "config.json", vocab_size=10**12)
        with pytest.raises(UntrustedFileError, match="would fill the memory of this machine"):
            build_full_config(recipe_for(model), ("a", "b"))

    def test_a_linear_model(self, tmp_path: Path) -> None:
        bundle = write_linear_bundle(tmp_path / "linear", [2.0, -3.0])
        assert read_card(bundle).task == "regression"
        change_json(bundle / "config.json", num_features=10**10)
        seal_bundle(bundle)
        refuse(bundle, r"promises linear.weight \[1, 10000000000\], but .* holds \[1, 2\]")

    def test_a_file_of_terabytes_is_not_even_hashed(self, bundle: Path) -> None:
        entry = {"dtype": "F32", "shape": [2**41], "data_offsets": [0, 2**43]}
        write_tensors(bundle / "model.safetensors", {"a": entry}, 2**43)
        refuse(bundle, "model.safetensors: holds 8 TiB, and at most .* GiB .* with more memory")
        (bundle / "model.safetensors").unlink()
        os.truncate(bundle / "tokenizer.json", 2**40)
        refuse(bundle, "tokenizer.json: holds 1 TiB, and at most 32 MiB of such a file are read")
        os.truncate(bundle / CARD_FILE, 2**40)
        refuse(bundle, "bundle.json: holds 1 TiB, and at most 4 MiB")

    def test_a_header_that_lies_is_refused_before_a_large_file_is_hashed(
        self, bundle: Path
    ) -> None:
        with (bundle / "model.safetensors").open("wb") as file:
            file.write((2**33).to_bytes(8, "little"))
            file.truncate(2**28)
        refuse(bundle, "its header is said to have 8 GiB, and the file has 256 MiB")


class TestCode:
    """What would make a library run or fetch something."""

    @pytest.mark.parametrize(
        ("file", "changes", "message"),
        [
            ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map = .*names code"),
            ("config.json", {"quantization_config": {"x": 1}}, "quantization_config = "),
            ("config.json", {"attn_implementation": "evil/kernel"}, "a kernel of the hub"),
            ("config.json", {"_attn_implementation": "evil/kernel:f"}, "a kernel of the hub"),
            ("config.json", {"experts_implementation": {"": "evil/x"}}, "a kernel of the hub"),
        ],
    )
    def test_a_configuration(
        self, bundle: Path, file: str, changes: dict[str, Any], message: str
    ) -> None:
        change_json(bundle / file, **changes)
        refuse(seal_bundle(bundle), message)

    def test_a_pickle_is_never_read(self, bundle: Path, tiny_bert: Path, tmp_path: Path) -> None:
        """Neither beside the weights nor instead of them."""
        ran = tmp_path / "ran"
        model = copy_bundle(tiny_bert, tmp_path / "model")
        for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
            (model / name).write_bytes(pickle.dumps(_Evil(str(ran))))
        load_model(model)
        (model / "model.safetensors").unlink()
        with pytest.raises(ModelError):
            load_model(model)
        assert not ran.exists()
        (bundle / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(str(ran))))
        refuse(bundle, "does not list pytorch_model.bin")
        card = json.loads((bundle / CARD_FILE).read_text())
        seal_bundle(bundle, files=card["files"] | {"pytorch_model.bin": ""})
        with pytest.raises(BundleError, match=r"'pytorch_model\.bin' is never loaded"):
            read_card(bundle)
        assert not ran.exists()

    def test_values_that_a_library_chokes_on_are_a_sentence(self, bundle: Path) -> None:
        change_json(bundle / "config.json", hidden_act="evil")
        read_card(seal_bundle(bundle))
        with pytest.raises(ModelError, match=r"its files make no model \(KeyError: .*fetch it"):
            load_model(bundle)


class _Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


class TestListing:
    """Nothing lies in a bundle that its card does not list."""

    @pytest.mark.parametrize(
        "name",
        [
            *("added_tokens.json", "chat_template.jinja", "modules.json", "adapter_config.json"),
            *("model.safetensors.index.json", "evil.py", "vocab.txt", "deep/er/file"),
            "additional_chat_templates/evil.jinja",
        ],
    )
    def test_a_file_that_was_added(self, bundle: Path, name: str) -> None:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("{}")
        refuse(bundle, f"{CARD_FILE} does not list {re.escape(name)}, so nobody has verified it")

    def test_what_nothing_reads_may_lie_there(self, bundle: Path) -> None:
        for name in ("README.md", "LICENSE", ".gitattributes", ".engines.77.tmp/onnx/a"):
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_text("")
        (bundle / "onnx").mkdir()
        (bundle / "onnx" / "model.onnx").write_text("of a build that was killed")
        read_card(bundle)

    def test_an_engine_has_no_file_beside_those_of_the_card(self, bundle: Path) -> None:
        for name in ("model.onnx", "weights.bin"):
            (bundle / "onnx").mkdir(exist_ok=True)
            (bundle / "onnx" / name).write_text("")
        engine = {"name": "e", "agreement": 1, "max_logit_difference": 0, "rows": 1}
        engine |= {"directory": "onnx", "files": {"onnx/model.onnx": ""}}
        seal_bundle(bundle, engines=[engine])
        refuse(bundle, "does not list onnx/weights.bin")

    def test_a_link_that_leads_out(self, bundle: Path, tmp_path: Path) -> None:
        (bundle / "inside.json").symlink_to("config.json")
        refuse(bundle, "does not list inside.json")
        (bundle / "inside.json").unlink()
        moved = (bundle / "tokenizer.json").rename(tmp_path / "tokenizer.json")
        (bundle / "tokenizer.json").symlink_to(moved)
        refuse(bundle, "tokenizer.json is a link that leads out of the bundle; copy .* cp -rL")
        (bundle / "tokenizer.json").unlink()
        moved.rename(bundle / "tokenizer.json")
        (tmp_path / "alias").symlink_to(bundle)
        assert read_card(tmp_path / "alias") == read_card(bundle)
        (bundle / "folder").symlink_to(tmp_path)
        refuse(bundle, "does not list folder")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("../secret", "leads out of the bundle"),
            ("a/../../secret", "leads out of the bundle"),
            ("/etc/passwd", "leads out of the bundle"),
            ("a\\..\\b", "leads out of the bundle"),
            ("./config.json", "is 'config.json' by another name"),
            ("a//b", "is 'a/b' by another name"),
            ("", "is '.' by another name"),
            ("modeling.py", "is never loaded"),
        ],
    )
    @pytest.mark.parametrize("place", ["files", "engines"])
    def test_a_name_that_is_no_file_of_the_bundle(
        self, bundle: Path, place: str, name: str, message: str
    ) -> None:
        card = json.loads((bundle / CARD_FILE).read_text())
        files = {"files": card["files"] | {name: "0" * 64}}
        engine = {"name": "e", "agreement": 1, "max_logit_difference": 0, "rows": 1}
        changes = files if place == "files" else {"engines": [engine | {"files": {name: ""}}]}
        seal_bundle(bundle, digests=False, **changes)
        with pytest.raises(BundleError, match=message):
            read_card(bundle)

    @pytest.mark.parametrize("directory", ["/home", "..", ".", "onnx/../..", "deep"])
    def test_the_directory_of_an_engine_is_one_of_few(self, bundle: Path, directory: str) -> None:
        """It is replaced as a whole when engines are built again."""
        engine = {"name": "e", "agreement": 1, "max_logit_difference": 0, "rows": 1}
        seal_bundle(bundle, engines=[engine | {"directory": directory}])
        with pytest.raises(BundleError, match=f"no engine has a directory '{directory}'"):
            read_card(bundle)

    def test_those_few_are_those_of_the_backends(self) -> None:
        assert {*ENGINE_DIRECTORIES, ""} == {spec.directory for spec in BACKENDS.values()}


class TestCards:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'{"a":' * 100_000, "is nested too deeply"),
            (b" " * (4 * 2**20 + 1), "holds 4 MiB, and at most 4 MiB"),
            (b'{"format": 1, "format": 1}', "the key 'format' is written twice"),
            (b"[]", "holds a list"),
        ],
    )
    def test_a_card_that_is_none(self, data: bytes, message: str) -> None:
        with refused_cheaply(), pytest.raises(BundleError, match=f"^x/bundle.json.*{message}"):
            parse_card(data, "x/bundle.json")

    def test_a_card_of_gigabytes(self, bundle: Path) -> None:
        os.truncate(bundle / CARD_FILE, 2**35)
        refuse(bundle, "holds 32 GiB, and at most 4 MiB")

    @pytest.mark.parametrize("recipe", [{}, {"model": "x"}, {"model": {"name": 7}}])
    def test_a_recipe_without_a_model(self, bundle: Path, recipe: dict[str, Any]) -> None:
        refuse(seal_bundle(bundle, recipe=recipe), "its recipe has no model.name")
