"""The fields of a form, as browsers and curl send them. Raises Refusal where it is none.

fields('multipart/form-data; boundary=x', body)["data"]
"""

import re
from urllib.parse import parse_qsl

from serving.http.messages import Refusal
from serving.protocols.json_bodies import shown
from serving.protocols.texts import decoded

URL_ENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MAX_FIELDS = 100

_BREAK = re.compile(rb"\r\n\r\n|\n\n")


def media_type(content_type: str) -> str:
    """A media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def fields(content_type: str, body: bytes) -> dict[str, str]:
    """The value of each field; of a name that comes twice, the last."""
    if media_type(content_type) == URL_ENCODED:
        return _url_encoded(body)
    return _multipart(content_type, body)


def _url_encoded(body: bytes) -> dict[str, str]:
    text = decoded(body, "the form")
    try:
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:  # an escape that is not UTF-8, or too many fields
        raise Refusal("malformed", f"the form cannot be read: {error}") from None
    return dict(pairs)


def _multipart(content_type: str, body: bytes) -> dict[str, str]:
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise Refusal("malformed", f"content-type {shown(content_type)} names no boundary")
    found: dict[str, str] = {}
    between = b"\n--" + boundary.encode("latin-1", "replace")
    parts = (b"\n" + body).split(between, MAX_FIELDS + 1)
    if len(parts) > MAX_FIELDS + 1:
        raise Refusal("malformed", f"the form holds more than {MAX_FIELDS} fields")
    for part in parts[1:]:
        if part.startswith(b"--"):
            return found
        head, separator, value = _halves(part)
        if not separator:
            raise Refusal("malformed", "a part of the form has no empty line after its headers")
        found[_name(head)] = decoded(value.removesuffix(b"\r"), "a field of the form")
    raise Refusal("malformed", f"the form does not end with its boundary {shown(boundary)}")


def _halves(part: bytes) -> tuple[bytes, bytes, bytes]:
    """The headers of a part, the empty line and the value."""
    found = _BREAK.search(part)
    if found is None:
        return part, b"", b""
    return part[: found.start()], found.group(), part[found.end() :]


def _name(head: bytes) -> str:
    """The name of a field, from its content-disposition."""
    for line in head.splitlines():
        key, _, value = line.decode("latin-1").partition(":")
        if key.strip().lower() == "content-disposition":
            return _parameter(value, "name")
    return ""


def _parameter(value: str, name: str) -> str:
    """A parameter of a header's value."""
    found = re.search(rf'[;\s]{name}\s*=\s*(?:"([^"]*)"|([^;\s]+))', value, re.IGNORECASE)
    return (found.group(1) or found.group(2) or "") if found else ""
