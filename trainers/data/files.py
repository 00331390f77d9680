"""Files wherever fsspec reaches, as bytes, text or an identity, packed (.gz, .bz2, .xz) or not."""

import codecs
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow

from cluster.errors import BerthaError
from trainers.storage.filesystem import StoreError, client_errors, resolve_filesystem

_UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


class DataError(BerthaError):
    """Data that cannot be used; the text says where it goes wrong and the way out."""


def file_fingerprint(source: str) -> str:
    """Identify a file's contents: by SHA-256, or where a remote store has it, by its ETag."""
    filesystem, path = _locate(source)
    digest = hashlib.sha256()
    with _translate_errors(source):
        tag = filesystem.info(path).get("ETag", "")
        if tag and not tag.startswith("W/"):
            return f"etag:{tag}"
        with filesystem.open(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def open_binary(source: str) -> Iterator[IO[bytes]]:
    """Open a file as unpacked bytes. Raises DataError where it is absent or cannot be read."""
    filesystem, path = _locate(source)
    with _translate_errors(source), filesystem.open(path, compression="infer") as stream:
        yield stream


@contextmanager
def open_text(source: str, newline: str) -> Iterator[IO[str]]:
    """Open a file as UTF-8 text, with or without a byte order mark; `newline` as in `open`.

    Raises DataError for other encodings, naming the first wrong byte.
    """
    try:
        with (
            open_binary(source) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError:
        raise _encoding_error(source) from None


def conversion_hint(encoding: str) -> str:
    """Tell how to convert a file in another encoding."""
    return f"if it is {encoding}: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _encoding_error(source: str) -> DataError:
    """Return the error that names the first byte that is not UTF-8.

    The file is read again: a text stream does not know how many bytes it has consumed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, offset, line = b"", 0, 1
    with open_binary(source) as stream:
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
        f"{conversion_hint(encoding)}"
    )


def _locate(source: str) -> tuple[Any, str]:
    try:
        return resolve_filesystem(source)
    except StoreError as error:
        raise DataError(str(error)) from None


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except (*_UNREADABLE, *client_errors(source)) as error:
        raise DataError(f"{source}: cannot be read: {error}") from None
