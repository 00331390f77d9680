"""Tokenizers of a stranger: no code, no patterns, and nothing that a text could grow by."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import change_json, copy_bundle, refused_cheaply
from trainers.data.tokenizer import EncodingError, load_encoder
from trainers.untrusted.bounded_json import UntrustedFileError

GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
PATTERN = {"Regex": "(a|a)*b"}


@pytest.fixture
def tokenizer(tiny_bert: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bert, tmp_path / "tokenizer")


def refuse(directory: Path, message: str) -> None:
    with refused_cheaply(), pytest.raises(UntrustedFileError, match=message) as refused:
        load_encoder(str(directory), "none", 8)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(str(directory))


def charsmap(text: bytes) -> dict[str, Any]:
    """A map of characters, with a trie of one node, to that text."""
    data = (4).to_bytes(4, "little") + b"\0" * 4 + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Split", "pattern": PATTERN}}, "component 'Split'; there is"),
        (
            {"normalizer": {"type": "Replace", "pattern": PATTERN, "content": ""}},
            r"normalizer has the regular expression '\(a\|a\)\*b', whose search may never end",
        ),
        (
            {"decoder": {"type": "Replace", "pattern": PATTERN, "content": ""}},
            "decoder has the regular expression",
        ),
        ({"normalizer": {"type": "Evil"}}, "normalizer has a component 'Evil'; there is Bert"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 60}},
            "replaces {'String': 'a'} by the longer 'aa'",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 70}},
            "normalizer has 71 components, and at most 64",
        ),
        (
            {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}},
            "has prepend of 1000 characters",
        ),
        (
            {"normalizer": charsmap(b"x" * 1000)},
            "precompiled_charsmap is broken, or makes more than 256 bytes",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [charsmap(b"x")] * 2}},
            "several Precompiled; remove",
        ),
        ({"model": {"type": "Evil", "vocab": {}}}, "model.type = 'Evil': there is WordPiece"),
        ({"model": 7}, "model.type = '7'"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 10**9}}}, "the id 1000000000 of a token"),
        ({"model": {"type": "WordPiece", "vocab": {"a": -1}}}, "the id -1 of a token"),
        ({"added_tokens": [{"id": 10**9, "content": "a"}]}, "the id 1000000000 of a token"),
        (
            {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9}},
            "max_input_chars_per_word = 1000000000: at most 1000",
        ),
    ],
)
def test_a_component_that_no_bert_has(
    tokenizer: Path, changes: dict[str, Any], message: str
) -> None:
    change_json(tokenizer / "tokenizer.json", **changes)
    refuse(tokenizer, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoTokenizer": ["evil.Slow", None]}}, "auto_map = .*: names code"),
        ({"fast_tokenizer_files": ["../../tokenizer.json"]}, "fast_tokenizer_files = .*: names"),
        ({"trust_remote_code": True}, "trust_remote_code = 'True'"),
        ({"tokenizer_class": "EvilTokenizer"}, "tokenizer_class = 'EvilTokenizer': is none of"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class = .*: is none of"),
        ({"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class = .*: is none of"),
        ({"truncation_side": "evil"}, "truncation_side = 'evil': choose left or right"),
    ],
)
def test_a_configuration_that_names_code(
    tokenizer: Path, changes: dict[str, Any], message: str
) -> None:
    change_json(tokenizer / "tokenizer_config.json", **changes)
    refuse(tokenizer, message)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_file_of_gigabytes(tokenizer: Path, name: str) -> None:
    (tokenizer / name).touch()
    os.truncate(tokenizer / name, 2**36)
    refuse(tokenizer, f"{name}: holds 64 GiB, and at most")


def test_a_file_that_the_library_cannot_read_is_a_sentence(tokenizer: Path) -> None:
    change_json(tokenizer / "tokenizer.json", pre_tokenizer={"type": "Punctuation", "behavior": 7})
    with pytest.raises(EncodingError, match="no tokenizer could be loaded"):
        load_encoder(str(tokenizer), "none", 8)


def test_a_url_is_no_tokenizer() -> None:
    with pytest.raises(EncodingError, match=r"127\.0\.0\.1/x: a tokenizer is not read from a"):
        load_encoder("http://127.0.0.1/x", "none", 8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    charsmap(b"x" * 100),
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                ],
            }
        },
    ],
)
def test_the_tokenizers_of_berts_are_read(tokenizer: Path, changes: dict[str, Any]) -> None:
    """WordPiece, and what the multilingual ones have; the map of one node changes nothing."""
    change_json(tokenizer / "tokenizer.json", **changes)
    encoder = load_encoder(str(tokenizer), "none", 8)
    assert encoder.encode(["good film"])[0].lengths.tolist() == [4]


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_the_byte_level_tokenizers_are_read(tmp_path: Path, kind: str) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    rust = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "roberta")
    rust.decoder = decoders.ByteLevel()
    if kind == "roberta":
        rust.post_processor = processors.RobertaProcessing(("a", 1), ("b", 2))
    else:
        rust.normalizer = normalizers.NFC()
        rust.post_processor = processors.TemplateProcessing("a $0 b", None, [("a", 1), ("b", 2)])
    rust.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = load_encoder(str(tmp_path), "none", 16)
    width = 4 + (kind == "roberta")
    assert encoder.encode(["ab"])[0].lengths.tolist() == [width]
