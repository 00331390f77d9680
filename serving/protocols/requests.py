"""What every protocol reads from a request: the model that it names, and its texts."""

from collections.abc import Sequence

from serving.http.messages import HTTPError, Request
from serving.interface import Limits, ModelInfo, TextInput, TruncationSide
from trainers.data.cleaning import is_blank


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
    # Versions are whole numbers here; TorchServe's clients write the first as 1.0.
    return f"{model}:{version.removesuffix('.0')}"


def choose_model(request: Request, named: str | None) -> str | None:
    """Return the model of a request whose path or body may name one; None: the default.

    named: by the body. Raises HTTPError if the two differ.
    """
    in_path = requested_model(request)
    if in_path is None:
        return named or None
    if named and named != in_path:
        raise HTTPError(
            "malformed",
            f"model = {named[:60]!r}, but the path names {in_path[:60]!r}; leave one of them out",
        )
    return in_path


def read_as(
    texts: Sequence[str], side: TruncationSide | None = None, max_tokens: int | None = None
) -> Sequence[str]:
    """Return `texts` to be read with these options, as a `TextInput` has them."""
    if side is None and max_tokens is None:
        return texts
    return [
        TextInput(text, text.ids if isinstance(text, TextInput) else (), max_tokens, side)
        for text in texts
    ]


def add_prompt(texts: Sequence[str], name: str | None, model: ModelInfo) -> Sequence[str]:
    """Return `texts` behind the prompt of that name, if one is named. Raises HTTPError."""
    if not name:
        return texts
    if name not in model.prompts:
        known = ", ".join(sorted(model.prompts))
        way = (
            f"{model.name} has the prompts {known}"
            if known
            else "this model's bundle knows no prompts; put the prompt before the text"
        )
        raise HTTPError("malformed", f"prompt_name = {name[:60]!r}: {way}")
    if any(isinstance(text, TextInput) and text.ids for text in texts):
        raise HTTPError(
            "malformed", f"prompt_name = {name[:60]!r}: token ids are read as they are; send texts"
        )
    return [model.prompts[name] + text for text in texts]


INPUT_TYPE = "what texts are for: the prompt of that name, where the bundle has one"
# What providers call the texts of a search, and what bundles call the prompts of them.
_PROMPTS_OF_TYPES = {
    "search_query": ("query",),
    "retrieval.query": ("query",),
    "search_document": ("document", "passage"),
    "retrieval.passage": ("passage", "document"),
    "document": ("passage",),
    "passage": ("document",),
}


def find_prompt(input_type: str | None, model: ModelInfo) -> str | None:
    """Return the name of the prompt of a model for what a provider calls its texts, if any."""
    if input_type is None:
        return None
    names = (input_type, *_PROMPTS_OF_TYPES.get(input_type, ()))
    return next((name for name in names if name in model.prompts), None)


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
        if is_blank(text):
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


def decode_body(body: bytes) -> str:
    """Decode a body, without a byte order mark before it. Raises HTTPError if it is not UTF-8."""
    return decode_utf8(body, "the body").removeprefix("\ufeff")
