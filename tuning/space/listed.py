"""A list as one choice among others: `model.layers: [null, [0, 2, 4]]`.

What is searched are words and numbers, so a list is searched as the word that it is written as.
"""

import json
from typing import Any


def is_choice(value: Any) -> bool:
    """Whether a value may be searched: a plain one, or a list of such."""
    inner = value if isinstance(value, list) else [value]
    return not any(isinstance(each, (list, dict)) for each in inner)


def word(value: Any) -> Any:
    """A list as the word that stands for it; anything else as it is."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


def meant(value: Any) -> Any:
    """The list that a word stands for; anything else as it is. The inverse of `word`."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
