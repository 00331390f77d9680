"""Write an encoder as a bundle of embeddings; nothing is trained.

write_embedder_bundle("package:all-minilm-l6-v2", Path("runs/embedder/bundle"))
"""

from pathlib import Path
from typing import Any, Literal

from transformers.utils import cached_file

from serving.engine.networks import load_encoder_model
from trainers.data.packages import resolve_model
from trainers.data.tokenizer import load_encoder
from trainers.models.card import CARD_FILE, ModelCard, serialize_card
from trainers.models.config import ModelError, quiet_transformers
from trainers.models.model_card import run_name, write_readme
from trainers.storage.atomic import atomic_directory, hash_files
from trainers.tracking import provenance
from trainers.untrusted.bounded_json import read_json

Pooling = Literal["mean", "cls"]
PROMPTS_FILE, MAX_PROMPTS_BYTES = "config_sentence_transformers.json", 2**20
MAX_LENGTH = 256  # as the small sentence encoders were trained


def write_embedder_bundle(
    model_directory: Path | str,
    out: Path,
    pooling: Pooling = "mean",
    max_length: int = MAX_LENGTH,
    cleaning: str = "none",
) -> ModelCard:
    """Write the bundle `out` of an encoder: a directory, a hub name or `package:NAME`.

    pooling: "mean" over the tokens, or "cls"; vectors are scaled to length 1 either way. cleaning:
    "none", so that a text has the vector that other servers of the encoder give it. Raises
    ModelError or EncodingError if there is no such encoder, or `max_length` is beyond it.
    """
    source = str(model_directory)
    model = load_encoder_model(source)
    longest = _max_positions(model.config)
    if max_length > longest:
        raise ModelError(
            f"max_length {max_length}: {source} has positions for {longest} tokens; give "
            f"{longest} or fewer"
        )
    encoder = load_encoder(source, cleaning, max_length)
    card = ModelCard(
        task="embedding",
        labels=(),
        cleaning=cleaning,
        max_length=max_length,
        pooling=pooling,
        prompts=read_prompts(source),
        metrics={},
        recipe={"model": {"name": source}},
        data_fingerprint="",
        revision=provenance.code_revision(),
        environment=provenance.describe_environment(),
    )
    with atomic_directory(out) as temporary:
        with quiet_transformers():
            model.save_pretrained(temporary)
        encoder.save(temporary)
        sealed = card.model_copy(update={"files": hash_files(temporary)})
        (temporary / CARD_FILE).write_text(serialize_card(sealed), encoding="utf-8")
        write_readme(temporary, sealed, run_name(out))
    return sealed


def read_prompts(source: str) -> dict[str, str]:
    """Return the prompts that sentence-transformers keeps with a model, by name.

    Raises ModelError where its file is not what sentence-transformers writes.
    """
    found = cached_file(
        resolve_model(source),
        PROMPTS_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if found is None:
        return {}
    prompts = read_json(Path(found), MAX_PROMPTS_BYTES).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(e, str) for e in prompts.values()):
        raise ModelError(
            f"{source}: `prompts` in {PROMPTS_FILE} is {prompts!r:.80}; expected an object of texts"
        )
    return {name: prompt for name, prompt in prompts.items() if prompt}


def _max_positions(config: Any) -> int:
    longest: int = config.max_position_embeddings
    if config.model_type == "roberta":
        longest -= config.pad_token_id + 1  # its positions count from there
    return longest
