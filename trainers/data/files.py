"""Files wherever fsspec reaches, as bytes, text or an identity; every failure in words.

Local paths, `s3://` (with the `aws` extra) and other URLs are one thing here, packed (.gz, .bz2,
.xz) or not. Knows nothing of what a file holds.
"""

import codecs
import hashlib
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
import pyarrow

from cluster.errors import BerthaError

_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


class DataError(BerthaError):
    """Data that cannot be used; the text says where it goes wrong and the way out."""


def fingerprint(source: str) -> str:
    """The identity of a file's contents: SHA-256, or where a remote store has it, its ETag."""
    filesystem, path = _locate(source)
    digest = hashlib.sha256()
    with _failing_in_words(source):
        tag = filesystem.info(path).get("ETag", "")
        if tag and not tag.startswith("W/"):
            return f"etag:{tag}"
        with filesystem.open(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def opened(source: str) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file. Raises DataError where it is absent or cannot be read."""
    filesystem, path = _locate(source)
    with _failing_in_words(source), filesystem.open(path, compression="infer") as stream:
        yield stream


@contextmanager
def text_of(source: str, newline: str) -> Iterator[IO[str]]:
    """A file as UTF-8 text, with or without a byte order mark; `newline` as in `open`.

    Raises DataError for other encodings, naming the first wrong byte.
    """
    try:
        with (
            opened(source) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError:
        raise _not_utf8(source) from None


def how_to_convert(encoding: str) -> str:
    """The way out for a file in another encoding."""
    return f"if it is {encoding}: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _not_utf8(source: str) -> DataError:
    """The error that names the first byte that is not UTF-8.

    The file is read again: a text stream does not know how many bytes it has consumed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, offset, line = b"", 0, 1
    with opened(source) as stream:
        while True:
            chunk = stream.read(1 << 20)
            start = start or chunk[:2]
            undecided = decoder.getstate()[0] + chunk
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                offset += error.start - len(undecided) + len(chunk)
                line += undecided[: error.start].count(b"\n")
                byte = undecided[error.start]
                break
            offset += len(chunk)
    encoding = "UTF-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "WINDOWS-1252"
    return DataError(
        f"{source}: not UTF-8: byte 0x{byte:02X} at offset {offset} (line {line}); "
        f"{how_to_convert(encoding)}"
    )


def _locate(source: str) -> tuple[Any, str]:
    """The file system that `source` names, and the path in it."""
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        extra = '; pip install "bertha[aws]"' if source.startswith("s3") else ""
        raise DataError(f"{source}: cannot be reached: {error}{extra}") from None
    return filesystem, path


@contextmanager
def _failing_in_words(source: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except (*_UNREADABLE, *_remote_errors(source)) as error:
        raise DataError(f"{source}: cannot be read: {error}") from None


def _remote_errors(source: str) -> tuple[type[Exception], ...]:
    """Errors of the S3 client that are no OSError, such as absent credentials."""
    if not source.startswith(("s3://", "s3a://")):
        return ()
    return (importlib.import_module("botocore.exceptions").BotoCoreError,)
