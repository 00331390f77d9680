"""Content codings of bodies: gzip and deflate of requests, gzip of responses.

body = decompress(packed, "gzip", max_bytes=1 << 21)
if accepts_gzip("br;q=1.0, gzip;q=0.8"):
packed = compress(body)
"""

import functools
import re
import zlib
from typing import NoReturn

from serving.http.messages import HTTPError

MAX_GZIP_MEMBERS = 100
MIN_COMPRESSED_BYTES = 1024  # of a response; less is in one packet either way
MAX_IN_LOOP_BYTES = 16384  # half a millisecond; a larger response is compressed in a thread
_LEVEL = 1  # of numbers in JSON the others save a tenth more, for several times the seconds
_GZIP = zlib.MAX_WBITS | 16
_EITHER_HEADER = zlib.MAX_WBITS | 32
_OTHER_NAMES = {"x-gzip": "gzip", "": "identity"}  # RFC 9110, 8.4.1.3
# One coding of an Accept-Encoding header and its weight (RFC 9110, 12.4.2 and 12.5.3).
_CHOICE = re.compile(
    r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*[qQ]\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?"
)


def coding_name(header: str) -> str:
    """Return the coding that a Content-Encoding header names, in lower case."""
    name = header.strip().lower()
    return _OTHER_NAMES.get(name, name)


def decompress(body: bytearray, coding: str, max_bytes: int) -> bytes:
    """Decompress a gzip or deflate body; reject one that grows beyond `max_bytes`."""
    if coding not in ("gzip", "deflate"):
        raise HTTPError(
            "malformed", f"content-encoding {coding[:40]!r}: send gzip, deflate or identity"
        )
    plain, rest = bytearray(), bytes(body)
    # A gzip file is one member after another, as `cat a.gz b.gz` makes it; zlib reads one of them.
    for _ in range(MAX_GZIP_MEMBERS if coding == "gzip" else 1):
        inflater = zlib.decompressobj(_EITHER_HEADER)
        try:
            plain += inflater.decompress(rest, max_bytes + 1 - len(plain))
        except zlib.error as error:
            raise HTTPError("malformed", f"the body is not {coding}: {error}") from None
        if len(plain) > max_bytes or inflater.unconsumed_tail:
            raise_too_large(max_bytes)
        if not inflater.eof:
            raise HTTPError("malformed", f"the {coding} body ends too early")
        rest = inflater.unused_data
        if not rest:
            return bytes(plain)
    raise HTTPError("malformed", f"the {coding} body goes on behind its end; send one member")


def raise_too_large(max_bytes: int) -> NoReturn:
    """Raise the HTTPError of a body that is too large."""
    raise HTTPError("too-large", f"the body is larger than {max_bytes} bytes; send less at once")


@functools.lru_cache(maxsize=64)  # clients repeat theirs
def accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header wants gzip no less than an unpacked body.

    One that cannot be read wants nothing.
    """
    weights: dict[str, float] = {}
    for choice in header.split(","):
        if not choice.strip():
            continue
        match = _CHOICE.fullmatch(choice)
        if match is None:
            return False
        weights[coding_name(match[1])] = float(match[2] or 1)
    others = weights.get("*", 0.0)
    wanted = weights.get("gzip", others)
    return wanted > 0 and wanted >= weights.get("identity", 0.0)


def compress(body: bytes) -> bytes:
    """Return a body as gzip."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()
