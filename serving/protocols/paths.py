"""Which model a path means: `name`, `name:version`, `name@alias`, or a name and a version apart.

Paths arrive percent-decoded. Knows no registry: whether there is such a model, others say.
"""

from serving.http.messages import Refusal, Request


def model_of(request: Request) -> str | None:
    """The model that the path of a request names; None where it names none."""
    model = request.names.get("model")
    version = request.names.get("version")
    if model is None or version is None:
        return model
    if ":" in model or "@" in model:
        raise Refusal(
            "no-model",
            f"{model!r} and version {version!r} name a version twice; give the bare name",
        )
    return f"{model}:{version}"
