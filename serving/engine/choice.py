"""Which engine of a bundle answers on a device, and how much it computes at once."""

from dataclasses import dataclass

from serving.engine.backends.registry import BACKENDS, reference_backend
from serving.engine.devices import CPU
from serving.interface import PROMISED_WAIT_SECONDS
from trainers.models.card import DEFAULT_BATCH_TOKENS, EngineRecord, ModelCard


@dataclass(frozen=True)
class EngineChoice:
    """An engine and its limits on a device.

    batch_tokens: computed at once. tokens_per_second: as measured; 0 where nothing was. remark: why
    it is not an engine that was measured here, and the way out; "" where it is.
    """

    name: str
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    tokens_per_second: float = 0.0
    remark: str = ""


def choose_engine(
    card: ModelCard, device: str, device_name: str = "", name: str | None = None
) -> EngineChoice:
    """Return the engine that answers for a bundle on a kind of device.

    device_name: of the card; what was measured on another does not count. name: of the engine;
    None for the chosen one, or torch fp32 where none was chosen for this kind of device, or this
    card cannot run what was chosen on another.
    """
    chosen = card.chosen_engine(device)
    if chosen is not None and device != CPU and chosen.device_name != device_name:
        spec = BACKENDS.get(chosen.name)
        chosen = None if spec is None or spec.unsupported() else chosen
    default = reference_backend(device) if chosen is None else chosen.name
    record = card.find_engine(name or default)
    if record is not None and (device == CPU or record.device_name == device_name):
        return EngineChoice(record.name, _budget(record), record.tokens_per_second)
    if device == CPU:
        return EngineChoice(name or default)
    what = f"{name or default!r} answers on {device_name or device}"
    why = "nobody has measured" if record is None else f"measured on {record.device_name}, not"
    remark = f"{what}, {why} there: bertha build BUNDLE --device {device} measures it"
    return EngineChoice(name or default, remark=remark)


def _budget(record: EngineRecord) -> int:
    """Return the tokens that an engine computes at once: as was fastest, within the wait.

    A text waits for the batch before it and for its own.
    """
    if not record.tokens_per_second:
        return record.batch_tokens
    in_time = int(record.tokens_per_second * PROMISED_WAIT_SECONDS / 2)
    return min(record.batch_tokens, max(DEFAULT_BATCH_TOKENS, in_time))
