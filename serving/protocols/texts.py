"""The texts of a request: how many there may be, and that each holds something.

Knows no protocol and no model.
"""

from collections.abc import Sequence

from serving.http.messages import Refusal
from serving.interface import Limits


def checked(texts: Sequence[str], limits: Limits, key: str) -> Sequence[str]:
    """`texts`, the value of `key`. Raises Refusal where there are none, too many, or empty ones."""
    if not texts:
        raise Refusal("empty", f"{key} is empty; give at least one text")
    if len(texts) > limits.max_texts:
        raise Refusal(
            "too-large",
            f"{key} holds {len(texts)} texts, but a request holds at most {limits.max_texts}; "
            "send several requests",
        )
    for number, text in enumerate(texts, 1):
        if not text or text.isspace():
            raise Refusal("empty", f"text {number} of {key} is empty; leave it out")
    return texts


def decoded(body: bytes, what: str) -> str:
    """Bytes as text. Raises Refusal where they are not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            "malformed", f"{what} is not UTF-8: byte {error.start} is {body[error.start]:#04x}"
        ) from None
