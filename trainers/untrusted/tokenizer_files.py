"""Check the files of a tokenizer before a library loads it: sizes, known parts, and no patterns.

`tokenizer.json` is a program of sorts: a sequence of components that rewrite and split every text.
The BERT family needs none that runs a regular expression, whose search may never end, and none that
makes a text longer than it was.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.untrusted.bounded_json import UntrustedFileError, check_size, read_json

MAX_TABLE_BYTES = 32 * 2**20  # 250,000 pieces and their merges take 17 MB
MAX_CONFIG_BYTES = 4 * 2**20
MAX_TOKEN_ID = 10_000_000
MAX_WORD_CHARACTERS = 1000  # WordPiece takes the square of a word's length; BERT has 100
MAX_COMPONENTS, MAX_STRING, MAX_REPLACEMENT_BYTES = 64, 256, 256
# Vocabularies beside or instead of tokenizer.json, by their names in Transformers.
TABLES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
# Of the tokenizers that BERTs have, in Transformers. Others run an analyser with settings of its
# own, as BertJapaneseTokenizer does.
CLASSES = (
    "Bert",
    "DistilBert",
    "Roberta",
    "Electra",
    "XLMRoberta",
    "Camembert",
    "MPNet",
    "Deberta",
    "DebertaV2",
    "Albert",
    "GPT2",
    "Bertweet",
    "Phobert",
    "Herbert",
    "ByT5",
)
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")
COMPONENTS = {
    "normalizer": (
        *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents"),
        *("Strip", "Replace", "Prepend", "Precompiled", "Sequence"),
    ),
    "pre_tokenizer": (
        *("BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit", "Metaspace"),
        *("Punctuation", "Digits", "UnicodeScripts", "CharDelimiterSplit", "Sequence"),
    ),
    "post_processor": (
        *("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence"),
    ),
    "decoder": (
        *("WordPiece", "ByteLevel", "BPEDecoder", "Metaspace", "ByteFallback", "Fuse", "Strip"),
        *("Replace", "Sequence"),
    ),
}
# Those of the multilingual tokenizers; each takes time in proportion to the text.
KNOWN_PATTERNS = (" {2,}", r"\s+", r"\n", r"[\n\r\t]", r"\s{2,}|[\n\r\t]")


def check_tokenizer_files(directory: Path) -> None:
    """Check the tokenizer in a directory, if it has one. Raises UntrustedFileError."""
    for name in TABLES:
        if (directory / name).exists():
            check_size(directory / name, MAX_TABLE_BYTES)
    config, tokenizer = directory / "tokenizer_config.json", directory / "tokenizer.json"
    if config.exists():
        _check_config(config, read_json(config, MAX_CONFIG_BYTES))
    if tokenizer.exists():
        settings = read_json(tokenizer, MAX_TABLE_BYTES)
        _check_vocabulary(tokenizer, settings)
        for place, known in COMPONENTS.items():
            _check_components(tokenizer, place, settings.get(place), known)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UntrustedFileError for code, other files, and classes of unknown tokenizers."""
    for key in ("auto_map", "fast_tokenizer_files", "trust_remote_code"):
        if config.get(key):
            raise UntrustedFileError(
                f"{path}: {key} = {str(config[key])[:80]!r}: names code or files that are never "
                "loaded; remove the key, or use a tokenizer that Transformers itself knows"
            )
    name = config.get("tokenizer_class")
    known = {f"{each}Tokenizer" for each in CLASSES}
    if name not in (None, *GENERIC_CLASSES) and str(name).removesuffix("Fast") not in known:
        raise UntrustedFileError(
            f"{path}: tokenizer_class = {str(name)[:80]!r}: is none of those that BERTs have; "
            f"choose one of {', '.join(sorted(known))}"
        )
    if config.get("truncation_side", "right") not in ("left", "right"):
        raise UntrustedFileError(
            f"{path}: truncation_side = {str(config['truncation_side'])[:80]!r}: choose left or "
            "right"
        )


def _check_vocabulary(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UntrustedFileError for an unknown model, and for ids beyond those of any model."""
    model, added = settings.get("model"), settings.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type", "BPE") not in MODELS:
        kind = model.get("type") if isinstance(model, dict) else model
        raise UntrustedFileError(
            f"{path}: model.type = {str(kind)[:80]!r}: there is {', '.join(MODELS)}"
        )
    vocabulary = model.get("vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [each.get("id") for each in added if isinstance(each, dict)]
    wrong = [each for each in ids if type(each) is not int or not 0 <= each <= MAX_TOKEN_ID]
    if wrong:
        raise UntrustedFileError(
            f"{path}: the id {str(wrong[0])[:40]} of a token: ids are whole numbers up to "
            f"{MAX_TOKEN_ID}; fetch the tokenizer again from where it was made"
        )
    letters = model.get("max_input_chars_per_word", 100)
    if type(letters) is not int or not 0 <= letters <= MAX_WORD_CHARACTERS:
        raise UntrustedFileError(
            f"{path}: model.max_input_chars_per_word = {str(letters)[:40]}: at most "
            f"{MAX_WORD_CHARACTERS} are taken; BERT has 100"
        )


def _check_components(path: Path, place: str, part: Any, known: tuple[str, ...]) -> None:
    """Raise UntrustedFileError for a component that is unknown, or that a text could grow by."""
    components = [each for each in _walk(part) if isinstance(each.get("type"), str)]
    if len(components) > MAX_COMPONENTS:
        raise UntrustedFileError(
            f"{path}: {place} has {len(components)} components, and at most {MAX_COMPONENTS} are "
            "run over each text; remove some"
        )
    for component in components:
        kind = component["type"]
        if kind not in known:
            raise UntrustedFileError(
                f"{path}: {place} has a component {kind[:80]!r}; there is {', '.join(known)}"
            )
    kinds = [component["type"] for component in components]
    if kinds.count("Precompiled") > 1:
        raise UntrustedFileError(f"{path}: {place} has several Precompiled; remove all but one")
    for node in _walk(part):
        _check_strings(path, place, node)


def _walk(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all objects in a JSON value."""
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _walk(each)


def _check_strings(path: Path, place: str, node: Mapping[str, Any]) -> None:
    """Raise UntrustedFileError for patterns, and for texts that would be put into every text."""
    for key, value in node.items():
        if key == "Regex" and value not in KNOWN_PATTERNS:
            raise UntrustedFileError(
                f"{path}: {place} has the regular expression {str(value)[:80]!r}, whose search may "
                f"never end; known ones are {', '.join(map(repr, KNOWN_PATTERNS))}"
            )
        if key == "precompiled_charsmap":
            _check_charsmap(path, value)
        elif isinstance(value, str) and len(value) > MAX_STRING:
            raise UntrustedFileError(
                f"{path}: {place} has {key[:80]} of {len(value)} characters, and at most "
                f"{MAX_STRING} are put into a text; fetch the tokenizer again"
            )
    pattern = node.get("pattern")
    if node.get("type") == "Replace" and isinstance(pattern, dict):
        content, least = str(node.get("content", "")), len(str(pattern.get("String", " ")))
        if len(content) > least:
            raise UntrustedFileError(
                f"{path}: {place} replaces {str(pattern)[:80]} by the longer {content[:80]!r}, so "
                "that texts grow without bound; shorten it"
            )


def _check_charsmap(path: Path, value: Any) -> None:
    """Raise UntrustedFileError where a character could become a long text.

    The map is the length of a trie, the trie, and the texts that it leads to, each ended by a zero.
    """
    try:
        data = base64.b64decode(str(value or ""), validate=True)
    except binascii.Error:
        data = b"\xff" * 4
    start = 4 + int.from_bytes(data[:4], "little")
    texts = data[start:].split(b"\0")
    if start > max(4, len(data)) or max(map(len, texts)) > MAX_REPLACEMENT_BYTES:
        raise UntrustedFileError(
            f"{path}: precompiled_charsmap is broken, or makes more than {MAX_REPLACEMENT_BYTES} "
            "bytes of a character; fetch the tokenizer again from where it was made"
        )
