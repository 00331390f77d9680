"""Write measured engines into their bundle: their files, and their figures in its card."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from serving.engine.backends.registry import BACKENDS
from serving.optimize.candidates import EngineCandidate
from trainers.models.card import CARD_FILE, EngineRecord, ModelCard, serialize_card
from trainers.storage.atomic import file_sha256, replace_file
from trainers.tracking import provenance


def describe_engines(
    candidates: Sequence[EngineCandidate], num_compared: int, device: str, device_name: str
) -> list[EngineRecord]:
    """Return the figures of the candidates for the card, and where the files of each will be."""
    environment = provenance.describe_environment()
    return [
        EngineRecord(
            name=each.name,
            device=device,
            device_name=device_name,
            chosen=each.chosen,
            directory="" if each.reason else BACKENDS[each.name].directory,
            agreement=each.agreement,
            refused=each.reason,
            max_logit_difference=each.max_logit_difference,
            rows=num_compared,
            metrics=each.metrics,
            texts_per_second=each.texts_per_second,
            tokens_per_second=each.tokens_per_second,
            batch_tokens=each.batch_tokens,
            num_bytes=each.num_bytes,
            load_seconds=each.load_seconds,
            trials=tuple(each.trials),
            environment=environment
            | {BACKENDS[each.name].module: version(BACKENDS[each.name].module)},
        )
        for each in candidates
        if each.engine is not None
    ]


def install_engines(
    directory: Path,
    temporary: Path,
    card: ModelCard,
    records: Sequence[EngineRecord],
    device: str,
) -> None:
    """Move the engines of a kind of device into the bundle and write their figures into its card.

    Those of other kinds stay. The card never lists a file that is not there: it forgets the old
    engines first.
    """
    kept = tuple(each for each in card.engines if each.device != device)
    if card.engines:
        without = card.model_copy(update={"engines": kept})
        replace_file(directory / CARD_FILE, serialize_card(without))
    old = {each.directory for each in card.engines if each.directory and each not in kept}
    new = {each.directory for each in records} - {""}
    for name in old | new:
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in new:
        (temporary / name).rename(directory / name)
    sealed = (each.model_copy(update={"files": _seal(directory, each)}) for each in records)
    with_engines = card.model_copy(update={"engines": (*kept, *sealed)})
    replace_file(directory / CARD_FILE, serialize_card(with_engines))


def _seal(directory: Path, record: EngineRecord) -> dict[str, str]:
    """Return the SHA-256 of an engine's files in the bundle in `directory`."""
    files = sorted((directory / record.directory).iterdir()) if record.directory else []
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}
