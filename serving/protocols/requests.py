"""What every protocol reads from a request: the model that its path names, and its texts."""

from collections.abc import Sequence

from serving.http.messages import HTTPError, Request
from serving.interface import Limits


def requested_model(request: Request) -> str | None:
    """Return the model that the path names (`name`, `name:version`, `name@alias`), or None.

    Raises HTTPError if the path names a version twice.
    """
    model = request.path_params.get("model")
    version = request.path_params.get("version")
    if model is None or version is None:
        return model
    if ":" in model or "@" in model:
        raise HTTPError(
            "no-model",
            f"{model!r} and version {version!r} name a version twice; give the bare name",
        )
    return f"{model}:{version}"


def check_texts(texts: Sequence[str], limits: Limits, key: str) -> Sequence[str]:
    """Return `texts`, the value of `key`. Raises HTTPError if there are none, or one is empty."""
    if not texts:
        raise HTTPError("empty", f"{key} is empty; give at least one text")
    if len(texts) > limits.max_texts:
        raise HTTPError(
            "too-large",
            f"{key} holds {len(texts)} texts, but a request holds at most {limits.max_texts}; "
            "send several requests",
        )
    for number, text in enumerate(texts, 1):
        if not text or text.isspace():
            raise HTTPError("empty", f"text {number} of {key} is empty; leave it out")
    return texts


def decode_utf8(body: bytes, what: str) -> str:
    """Decode bytes as text. Raises HTTPError that names `what` if they are not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise HTTPError(
            "malformed", f"{what} is not UTF-8: byte {error.start} is {body[error.start]:#04x}"
        ) from None
