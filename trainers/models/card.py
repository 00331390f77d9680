"""The model card of a bundle, `bundle.json`: the task, the metrics and the provenance of a model.

Imports no torch, so that light commands can read cards.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from cluster.errors import BerthaError
from cluster.settings import Settings, SettingsError, validate_settings
from trainers.config.recipe import Task
from trainers.config.windows import WindowsConfig
from trainers.models.profile import RowProfile
from trainers.storage.atomic import find_corruption
from trainers.untrusted.bounded_json import UntrustedFileError, check_size, parse_json, read_json
from trainers.untrusted.model_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_model_files,
    max_weight_bytes,
)
from trainers.untrusted.tensor_header import MORE_MEMORY

CARD_FORMAT = 1
CARD_FILE = "bundle.json"
IN_RUN = "bundle"  # the directory of a bundle in that of its run
DEFAULT_BATCH_TOKENS = 256  # computed at once by an engine that was not measured
MAX_CARD_BYTES = 4 * 2**20  # with names for 100,000 labels
MAX_TEXT_BYTES = 32 * 2**20  # of a tokenizer of 250,000 pieces, twice
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".xml", ".bin")
# Directories that engines have. Nothing in them is read unless the card names that engine, so one
# that a build is writing, or that a killed build left, does no harm.
ENGINE_DIRECTORIES = ("onnx", "onnx-int8", "openvino", "openvino-int8", "student")
UNREAD_FILES = ("README.md", "LICENSE")  # for people; no library reads them
# Code, pickles, and files that make Transformers read weights from somewhere else.
REFUSED_SUFFIXES = (
    ".py",
    ".pyc",
    ".so",
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
)
REFUSED_NAMES = ("pytorch_model.bin", "adapter_config.json", "model.safetensors.index.json")


class BundleError(BerthaError):
    """A directory that is not a bundle, or a corrupted one; the message names the file."""


def _check_file_names(files: Mapping[str, str]) -> Mapping[str, str]:
    """Raise ValueError for a name that leaves the bundle, or of a file that is never loaded."""
    for name in files:
        path = PurePosixPath(name)
        if "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name[:80]!r} leads out of the bundle; name files below it")
        if str(path) != name or name == ".":
            raise ValueError(f"{name[:80]!r} is {str(path)!r} by another name; name each file once")
        if path.suffix in REFUSED_SUFFIXES or path.name in REFUSED_NAMES:
            raise ValueError(f"{name[:80]!r} is never loaded: weights are safetensors; remove it")
    return files


def _check_directory(name: str) -> str:
    """Raise ValueError unless `name` is "" or that of an engine's directory."""
    if name and name not in ENGINE_DIRECTORIES:
        raise ValueError(f"no engine has a directory {name[:80]!r}; build the engine again")
    return name


FileDigests = Annotated[dict[str, str], AfterValidator(_check_file_names)]


class EngineRecord(Settings):
    """An engine built from a bundle, with its measurements on held-out texts.

    Speed and memory are those of the device, on the CPU of one thread, of the machine in
    `environment`.
    """

    name: str = Field(description="as in `onnxruntime int8`")
    device: str = Field("cpu", description="kind of device it computes on, as `cuda`")
    device_name: str = Field("", description="of the card that it was measured on; '' of a CPU")
    chosen: bool = Field(
        False, description="whether it answers on its kind of device unless another is named"
    )
    directory: Annotated[str, AfterValidator(_check_directory)] = Field(
        "", description="in the bundle; '' for an engine without files"
    )
    files: FileDigests = Field({}, description="SHA-256 by file name")
    agreement: float = Field(description="share of the rows that torch fp32 answers so, there")
    max_logit_difference: float = Field(description="from torch fp32, over all rows")
    refused: str = Field("", description="why it may not serve; '' where it may")
    rows: int = Field(description="held-out texts, or masks of a masked language model")
    metrics: dict[str, Any] = Field({}, description="on the held-out rows, where they have labels")
    texts_per_second: dict[str, float] = Field(
        {},
        description="short texts and long ones, a CPU-second of one thread, or a second of another "
        "device",
    )
    tokens_per_second: float = Field(
        0.0, description="of these the slower, in tokens; 0 where it was not recorded"
    )
    batch_tokens: int = Field(
        DEFAULT_BATCH_TOKENS, description="tokens computed at once, as was fastest"
    )
    num_bytes: int = Field(0, description="of memory")
    load_seconds: float = Field(0.0, description="until the first answer")
    trials: tuple[dict[str, Any], ...] = Field((), description="what was tried, in order")
    environment: dict[str, Any] = Field({}, description="versions and hardware it was measured on")


class ModelCard(Settings):
    """The contents of `bundle.json`."""

    format: int = Field(CARD_FORMAT, description="version of this layout")
    task: Task | Literal["embedding"]
    labels: tuple[str, ...] = Field(description="class names in logit order; () for regression")
    cleaning: str = Field(description="name of the cleaning applied before the tokenizer")
    max_length: int = Field(description="tokens of a sequence; a longer text is cut or in windows")
    windows: WindowsConfig | None = Field(
        None, description="over texts longer than max_length; null: they are cut"
    )
    pooling: Literal["mean", "cls"] | None = Field(
        None,
        description="what becomes of the hidden states of an embedding, before its length is 1",
    )
    metrics: dict[str, Any] = Field(description="on the test rows, none of them trained on")
    verdict: dict[str, Any] = Field({}, description="how good that is: intervals and baselines")
    thresholds: dict[str, float] = Field(
        {},
        description="probability from which a label is the answer: of each label for multi-label, "
        "of the second of two classes; without it 0.5",
    )
    temperature: float = Field(
        1.0, description="what the logits were divided by; it is part of the last layer already"
    )
    target: dict[str, float] = Field(
        {}, description="of a regression: mean, deviation, low and high of the trained values"
    )
    profile: RowProfile | None = Field(
        None, description="of the test rows: what live texts and answers are compared with"
    )
    prompts: dict[str, str] = Field(
        {}, description="of an embedder: what a request may have put before its texts, by name"
    )
    examples: tuple[str, ...] = Field((), description="texts that were held out, to try it on")
    recipe: dict[str, Any]
    data: dict[str, Any] = Field({}, description="what was read: rows, labels, what was left out")
    data_fingerprint: str
    revision: str
    environment: dict[str, Any]
    files: FileDigests = Field({}, description="SHA-256 by file name, without the engines")
    engines: tuple[EngineRecord, ...] = Field(
        (), description="made from this bundle, each measured"
    )

    @property
    def max_tokens(self) -> int:
        """The longest text that is read whole, in tokens, special ones included."""
        length = self.max_length
        return length if self.windows is None else self.windows.max_tokens(length)

    def find_engine(self, name: str) -> EngineRecord | None:
        """Return what was measured of the engine `name`, if it was."""
        return next((each for each in self.engines if each.name == name), None)

    def chosen_engine(self, device: str = "cpu") -> EngineRecord | None:
        """Return the engine that was chosen for a kind of device, if one was."""
        return next((each for each in self.engines if each.chosen and each.device == device), None)


def find_bundle(directory: Path) -> Path:
    """Return the bundle that is meant by a directory: itself, or that of the run that it holds.

    Raises BundleError for a run that has left none yet.
    """
    inside = directory / IN_RUN
    if (directory / CARD_FILE).exists() or not directory.is_dir():
        return directory
    if (inside / CARD_FILE).exists():
        return inside
    if (directory / "recipe.yaml").exists():
        raise BundleError(
            f"{directory}: a run that has left no bundle; it is written when the run ends, which "
            "--resume brings about"
        )
    return directory


def read_card(directory: Path) -> ModelCard:
    """Read the card of a bundle and verify the SHA-256 of every file it lists.

    Nothing else may be there, and the sizes that the model promises are those of its weights; that
    is known before a large file is read. Engines are verified when they are loaded. Raises
    BundleError naming the first file that is missing, altered, unlisted or unreadable.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory}: no such directory; a training run leaves RUN/bundle")
    if not (directory / CARD_FILE).exists():
        raise BundleError(f"{directory}: no {CARD_FILE}; this is not a bundle")
    try:
        settings = read_json(directory / CARD_FILE, MAX_CARD_BYTES)
        card = _validate_card(settings, str(directory / CARD_FILE))
        unlisted = {CONFIG_FILE, WEIGHTS_FILE} - set(card.files)
        if unlisted:
            raise BundleError(
                f"{directory}: {CARD_FILE} does not list {min(unlisted)}, so it cannot be verified"
            )
        _check_contents(directory, card)
        _verify_files(directory, card)
    except UntrustedFileError as error:
        raise BundleError(str(error)) from None
    return card


def _verify_files(directory: Path, card: ModelCard) -> None:
    """Raise BundleError unless all files are as they were written, large ones as promised."""
    large = {name for name in card.files if name.endswith(WEIGHT_SUFFIXES)}
    _check_digests(directory, {name: card.files[name] for name in card.files if name not in large})
    if (directory / WEIGHTS_FILE).exists():
        try:
            check_model_files(directory)
        except UntrustedFileError:
            # Of a small file it is known at once whether it was altered, which says more.
            if (directory / WEIGHTS_FILE).stat().st_size <= MAX_TEXT_BYTES:
                _check_digests(directory, card.files)
            raise
    _check_digests(directory, {name: card.files[name] for name in large})


def _check_digests(directory: Path, files: Mapping[str, str]) -> None:
    damage = find_corruption(directory, files)
    if damage is not None:
        raise BundleError(f"{directory}: {damage}; train again, or fetch the bundle again")


def _check_contents(directory: Path, card: ModelCard) -> None:
    """Raise BundleError for a file that the card does not list, that lies elsewhere, or too large.

    Transformers would read such a file, as an added `tokenizer.json`, though nobody sealed it.
    """
    root = directory.resolve()
    listed = {*card.files, *(name for engine in card.engines for name in engine.files)}
    for name in sorted(listed):
        path = directory / name
        if not path.resolve().is_relative_to(root):
            raise BundleError(
                f"{directory}: {name} is a link that leads out of the bundle; copy the bundle with "
                "cp -rL"
            )
        if path.exists():
            if path.suffix in WEIGHT_SUFFIXES:
                check_size(path, max_weight_bytes(), MORE_MEMORY)
            else:
                check_size(path, MAX_TEXT_BYTES)
    named = {name.partition("/")[0] for name in listed}
    for name in list_bundle_files(directory):
        folder, inside, _ = name.partition("/")
        if name in listed or (inside and folder in ENGINE_DIRECTORIES and folder not in named):
            continue
        raise BundleError(
            f"{directory}: {CARD_FILE} does not list {name}, so nobody has verified it; remove it"
        )


def list_bundle_files(directory: Path, folder: str = "") -> Iterator[str]:
    """Yield the names of files and links below a bundle, or below a folder of it.

    Without its card, hidden files, which nothing reads, and those for people.
    """
    try:
        entries = sorted(os.scandir(directory / folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # an engine that is being replaced
        return
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or name in (CARD_FILE, *UNREAD_FILES):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from list_bundle_files(directory, name)
        else:
            yield name


def parse_card(data: bytes, where: str) -> ModelCard:
    """Parse the contents of a `bundle.json`. Raises BundleError that names `where` it came from."""
    try:
        settings = parse_json(data, MAX_CARD_BYTES, where)
    except UntrustedFileError as error:
        raise BundleError(str(error)) from None
    return _validate_card(settings, where)


def _validate_card(settings: Mapping[str, Any], where: str) -> ModelCard:
    if settings.get("format") != CARD_FORMAT:
        raise BundleError(f"{where} is not of format {CARD_FORMAT}, the one this code reads")
    try:
        card = validate_settings(ModelCard, settings, where)
    except SettingsError as error:
        raise BundleError(str(error)) from None
    model = card.recipe.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise BundleError(f"{where}: its recipe has no model.name; fetch the bundle again")
    return card


def serialize_card(card: ModelCard) -> str:
    """Return the contents of `bundle.json`."""
    return json.dumps(card.model_dump(mode="json"), indent=2) + "\n"
