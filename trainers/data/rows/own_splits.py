"""The splits that a source has of its own, and what is held out where it has none."""

from trainers.config.data_section import DEFAULT_SHARE, DataConfig
from trainers.data import hub, packages
from trainers.data.rows.source_files import SourceFiles, find_source_files
from trainers.data.sources import SYNTHETIC
from trainers.data.splits import SplitName


def resolve_held_out(data: DataConfig, labelled: bool = True) -> tuple[DataConfig, tuple[str, ...]]:
    """Resolve data.validation and data.test where they are auto, with notes for the data report.

    Each becomes the source itself, of which the split of that name is then read, or where there is
    none DEFAULT_SHARE of the texts. Raises DataError.
    """
    held_out: dict[SplitName, float | str] = {"validation": data.validation, "test": data.test}
    own = _own_splits(data, labelled) if "auto" in held_out.values() else set()
    chosen = {
        part: (data.source if part in own else DEFAULT_SHARE) if value == "auto" else value
        for part, value in held_out.items()
    }
    notes = []
    if own:
        named = (f"{part} is {_describe(value, data)}" for part, value in chosen.items())
        notes.append(f"{data.source} has splits of its own: {', '.join(named)}")
    resolved = data.model_copy(update={str(part): value for part, value in chosen.items()})
    found = _find_files(resolved)
    read: set[SplitName] = {part for part, value in chosen.items() if value == data.source}
    unread = "" if found is None else found.note_unread(read | {"train"})
    return resolved, tuple(filter(None, [*notes, unread]))


def _describe(value: float | str, data: DataConfig) -> str:
    if value == data.source:
        return "the split of that name"
    return value if isinstance(value, str) else f"{value:g} of the texts to train on"


def _find_files(data: DataConfig) -> SourceFiles | None:
    if data.source.startswith((packages.PREFIX, SYNTHETIC)):
        return None
    return find_source_files(data.source, data.subset is not None)


def _own_splits(data: DataConfig, labelled: bool) -> set[SplitName]:
    """Return which of validation and test the training source has of its own."""
    if data.source.startswith((packages.PREFIX, SYNTHETIC)):
        return set()
    found = _find_files(data)
    if found is not None:
        return {*found.splits} - {"train"}
    label = data.label if labelled and isinstance(data.label, str) else None
    return hub.own_splits(data.source, data.subset, label)
