"""Publish a bundle as a model of the Hugging Face hub.

push_bundle(Path("runs/mine/bundle"), "me/ticket-classes", private=True)
"""

import importlib
import tempfile
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.publish.export import export_bundle
from trainers.models.card import CARD_FILE, ModelCard, serialize_card
from trainers.models.model_card import write_readme


class PushError(BerthaError):
    """A bundle that could not be published; the message says why, and the way out."""


def push_bundle(bundle: Path, name: str, private: bool = False) -> str:
    """Publish a bundle as the model `name`, "user/name", of the hub; return its URL.

    A model that is there gets a new commit. What is published loads with Transformers and, once it
    is downloaded, as a bundle. The token is what the hub's own library finds: HF_TOKEN, or that of
    `hf auth login`. Raises PushError and BundleError.
    """
    from huggingface_hub import HfApi

    errors: Any = importlib.import_module("huggingface_hub.errors")
    with tempfile.TemporaryDirectory(prefix="bertha-") as place:
        folder = Path(place, "model")
        write_publication(bundle, folder, name)
        try:
            api = HfApi()
            repository = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id, folder_path=folder, commit_message="Add the model"
            )
        except errors.HfHubHTTPError as error:
            raise _refused_error(name, error) from None
        except errors.HFValidationError as error:
            raise PushError(f"{name}: no name of a model: {_one_line(error)}") from None
        except (errors.HTTPError, OSError) as error:
            raise PushError(
                f"{name}: the hub cannot be reached ({_one_line(error)}); go online, or write the "
                "same files to a directory: bertha export"
            ) from None
    return str(repository)


def write_publication(bundle: Path, folder: Path, name: str) -> ModelCard:
    """Write what is published of a bundle to a new folder; return its card.

    Without engines, which were measured on this machine, without the texts that the card quotes,
    and without the directories that its recipe names.
    """
    card = export_bundle(bundle, folder)
    hidden = {
        "engines": (),
        "examples": (),
        "recipe": _hide_directories(card.recipe),
        "verdict": {key: value for key, value in card.verdict.items() if key != "next"},
    }
    public = card.model_copy(update=hidden)
    (folder / CARD_FILE).write_text(serialize_card(public), encoding="utf-8")
    write_readme(folder, public, name.rpartition("/")[2], place=name)
    return public


def _hide_directories(value: Any) -> Any:
    """Return a plain value with the last name of each absolute path in it alone."""
    if isinstance(value, dict):
        return {key: _hide_directories(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_directories(each) for each in value]
    is_path = isinstance(value, str) and value.startswith("/") and len(value) > 1
    return Path(value).name if is_path else value


def _refused_error(name: str, error: Any) -> PushError:
    status = error.response.status_code
    if status in (401, 403):
        return PushError(
            f"{name}: the hub refuses ({status}): it needs a token that may write there; "
            "`hf auth login`, or set HF_TOKEN"
        )
    return PushError(f"{name}: the hub answers {status}: {_one_line(error)}; try again later")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
