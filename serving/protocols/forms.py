"""Parse the fields of a form, as browsers and curl send them. Raises HTTPError.

parse_form('multipart/form-data; boundary=x', body)["data"]
"""

import re
from urllib.parse import parse_qsl

from serving.http.messages import HTTPError
from serving.protocols.json_bodies import truncate_repr
from serving.protocols.requests import decode_utf8

URL_ENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MAX_FIELDS = 100

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n")
# A parameter of a header (RFC 2183): `; name=value` or `; name="a \"value\""`.
_PARAMETER = re.compile(r';\s*([^\s;="]+)\s*=\s*(?:"([^"\\]*(?:\\.[^"\\]*)*)"|([^\s;"]*))\s*')


def media_type(content_type: str) -> str:
    """Return a media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def parse_form(content_type: str, body: bytes) -> dict[str, str]:
    """Return the value of each field; of a name that comes twice, the last."""
    if media_type(content_type) == URL_ENCODED:
        return _parse_url_encoded(body)
    return _parse_multipart(content_type, body)


def _parse_url_encoded(body: bytes) -> dict[str, str]:
    text = decode_utf8(body, "the form")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:  # an escape that is not UTF-8, or too many fields
        raise HTTPError("malformed", f"the form cannot be read: {error}") from None
    return dict(pairs)


def _parse_multipart(content_type: str, body: bytes) -> dict[str, str]:
    boundary = header_parameter(content_type, "boundary")
    if not boundary:
        raise HTTPError(
            "malformed", f"content-type {truncate_repr(content_type)} names no boundary"
        )
    fields: dict[str, str] = {}
    delimiter = b"\n--" + boundary.encode("latin-1", "replace")
    _, *parts = (b"\n" + body).split(delimiter, MAX_FIELDS + 1)
    for number, part in enumerate(parts):
        if part.startswith(b"--"):
            return fields
        if number == MAX_FIELDS:
            raise HTTPError("malformed", f"the form holds more than {MAX_FIELDS} fields")
        blank_line = _BLANK_LINE.search(part)
        if blank_line is None:
            raise HTTPError("malformed", "a part of the form has no empty line after its headers")
        value = part[blank_line.end() :].removesuffix(b"\r")
        fields[_field_name(part[: blank_line.start()])] = decode_utf8(value, "a field of the form")
    raise HTTPError(
        "malformed", f"the form does not end with its boundary {truncate_repr(boundary)}"
    )


def _field_name(headers: bytes) -> str:
    """Return the name of a field, from its content-disposition."""
    for line in headers.splitlines():
        key, _, value = line.decode("latin-1").partition(":")
        if key.strip().lower() == "content-disposition":
            return header_parameter(value, "name")
    return ""


def header_parameter(value: str, name: str) -> str:
    """Return a parameter of a header, "" if there is none before the first that is broken."""
    position = value.find(";")
    while match := _PARAMETER.match(value, max(0, position)):
        key, quoted, bare = match.groups()
        if key.lower() == name:
            return bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        position = match.end()
    return ""
