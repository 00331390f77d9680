"""Files wherever fsspec reaches, as bytes, text or an identity, packed (.gz, .bz2, .xz) or not."""

import codecs
import difflib
import hashlib
import io
import itertools
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow

from cluster.errors import BerthaError
from trainers.storage.filesystem import StoreError, client_errors, resolve_filesystem
from trainers.untrusted.bounded_json import format_bytes
from trainers.untrusted.public_web import BlockedAddress, open_public_session

PROTOCOLS = ("file", "s3", "s3a", "http", "https")
WEB = ("http://", "https://")
UTF8 = "utf-8-sig"  # the mark of the byte order is read over
MAX_LISTED = 10_000  # names of a directory that are compared with one that is not there
MAX_LINE = 200_000_000  # characters, which are in memory as a whole
ZIPPED = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")  # what a .zip may hold
MAX_ZIP_RATIO, MIN_ZIP_BOMB = 200, 1 << 30  # text is packed to a fifth, rarely to a hundredth
_UNREADABLE = (
    *(EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    *(NotImplementedError, pyarrow.ArrowException),  # the former of a .zip packed in other ways
)


class DataError(BerthaError):
    """Data that cannot be used; the text says where it goes wrong and the way out."""


class MissingFile(DataError):
    """A file that is not there."""


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
    """Open a file as unpacked bytes, of a .zip the table in it.

    Raises DataError where it is absent or cannot be read.
    """
    filesystem, path = _locate(source)
    with _translate_errors(source):
        if is_zip(source):
            with (
                filesystem.open(path) as stream,
                zipfile.ZipFile(stream) as archive,
                archive.open(_find_table(source, archive)) as table,
            ):
                yield table
        else:
            with filesystem.open(path, compression="infer") as stream:
                yield stream


def is_zip(source: str) -> bool:
    """Return whether the name is that of a .zip."""
    return _without_query(source).lower().endswith(".zip")


def zipped_name(source: str) -> str:
    """Return the name of the table in a .zip. Raises DataError where there is not one."""
    filesystem, path = _locate(source)
    with (
        _translate_errors(source),
        filesystem.open(path) as stream,
        zipfile.ZipFile(stream) as archive,
    ):
        return _find_table(source, archive).filename


def _find_table(source: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Return the only table of an archive, which is no bomb."""
    found = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(ZIPPED)
        and not any(part[:1] in (".", "_") for part in member.filename.split("/"))
    ]
    if len(found) != 1:
        names = ", ".join(member.filename for member in found[:5])
        raise DataError(
            f"{source}: holds {len(found)} tables{f', as {names}' * bool(found)}; a .zip is read "
            f"if it holds one of {', '.join(ZIPPED)}: unpack it, and name a file or the folder"
        )
    (member,) = found
    if member.flag_bits & 1:
        raise DataError(f"{source}: is encrypted; unpack it, and name the file")
    if member.file_size > max(MIN_ZIP_BOMB, MAX_ZIP_RATIO * member.compress_size):
        raise DataError(
            f"{source}: {member.filename} would be {format_bytes(member.file_size)} out of "
            f"{format_bytes(member.compress_size)}; if that is meant, unpack it and name the file"
        )
    return member


def iter_lines(source: str, text: IO[str]) -> Iterator[str]:
    """Iterate over the lines of an open file. Raises DataError for one over MAX_LINE characters."""
    while line := text.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise DataError(f"{source}: holds a line of over {MAX_LINE:,} characters; is it text?")
        yield line


@contextmanager
def open_text(source: str, newline: str, encoding: str = UTF8) -> Iterator[IO[str]]:
    """Open a file as text; `newline` as in `open`.

    encoding: by default UTF-8 with or without a byte order mark. Raises DataError for other
    encodings, naming the first byte that is not UTF-8.
    """
    try:
        with (
            open_binary(source) as stream,
            io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text,
        ):
            yield text
    except UnicodeError as error:
        if encoding == UTF8:
            raise _encoding_error(source) from None
        raise DataError(f"{source}: data.encoding={encoding} does not fit: {error}") from None


def list_folder(source: str) -> list[str] | None:
    """List the files below a directory or a prefix of S3, sorted; None for anything else.

    Names that begin with a dot or an underscore, as `_SUCCESS`, are left out.
    """
    if source.startswith(WEB):
        return None
    filesystem, path = _locate(source)
    with _translate_errors(source):
        if not filesystem.isdir(path):
            return None
        root, found = path.rstrip("/"), filesystem.find(path)
    inside = sorted(name.removeprefix(f"{root}/") for name in found)
    return [f"{source.rstrip('/')}/{name}" for name in inside if _is_visible(name)]


def is_pattern(source: str) -> bool:
    """Return whether a name has `*`, `?` or `[` in it, and there is no such file."""
    if source.startswith(WEB) or not any(mark in source for mark in "*?["):
        return False
    return not is_present(source)


def match_pattern(source: str) -> list[str]:
    """List the files that match a pattern, sorted, as `list_folder` does."""
    filesystem, path = _locate(source)
    with _translate_errors(source):
        found = filesystem.glob(path, detail=True)
    names = sorted(name for name, info in found.items() if info["type"] != "directory")
    scheme = source.partition("://")[0] + "://" if "://" in source else ""
    return [f"{scheme}{name}" for name in names if _is_visible(name.rpartition("/")[2])]


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def is_present(source: str) -> bool:
    """Return whether there is a file or a directory. Raises DataError where that is not known."""
    filesystem, path = _locate(source)
    with _translate_errors(source):
        return bool(filesystem.exists(path))


def _without_query(source: str) -> str:
    return source.partition("?")[0] if source.startswith(WEB) else source


def source_suffixes(source: str) -> list[str]:
    """Return the suffixes of a file's name, of an address without its query, in lower case."""
    return [suffix.lower() for suffix in Path(_without_query(source)).suffixes]


def conversion_hint(encoding: str) -> str:
    """Tell how to convert a file in another encoding."""
    return (
        f"if it is {encoding}: iconv -f {encoding} -t UTF-8 FILE > NEW, or in a recipe "
        f"data.encoding={encoding.lower()}"
    )


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


def local_path(source: str) -> Path | None:
    """Return the absolute path of a source on this machine; None for a URL of elsewhere."""
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    elif "://" in source:
        return None
    return Path(os.path.abspath(os.path.expanduser(source)))


def _near_names(source: str) -> str:
    """Return a suggestion of a file beside one that is not there, or ""."""
    path = local_path(source)
    if path is None or not path.parent.is_dir():
        return ""
    names = [each.name for each in itertools.islice(path.parent.iterdir(), MAX_LISTED)]
    close = difflib.get_close_matches(path.name, sorted(names), n=1)
    if not close:
        return ""
    return f"; {close[0]} lies there"


def _locate(source: str) -> tuple[Any, str]:
    protocol, separator, _ = source.partition("://")
    # fsspec would find more in a name than a path, as in file:/etc/passwd or data:text/csv,
    path = local_path(source)
    address = source if path is None else f"file://{path}"
    if "::" in address:
        raise DataError(
            f"{source}: a chain of URLs is not read, nor a name with '::'; name the file itself"
        )
    if separator and protocol not in PROTOCOLS:
        raise DataError(
            f"{source}: {protocol}:// is not read; give a path, the name of a data set of the hub, "
            f"or one of {', '.join(f'{each}://' for each in PROTOCOLS)}"
        )
    options = {"get_client": open_public_session} if protocol in ("http", "https") else {}
    try:
        return resolve_filesystem(address, **options)
    except StoreError as error:
        raise DataError(str(error)) from None


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        blocked = BlockedAddress.find_cause(error)
        if blocked:
            raise DataError(f"{source}: {blocked}") from None
        raise MissingFile(f"{source}: no such file{_near_names(source)}") from None
    except (*_UNREADABLE, *client_errors(source)) as error:
        reason = BlockedAddress.find_cause(error) or f"cannot be read: {error}"
        raise DataError(f"{source}: {reason}") from None
