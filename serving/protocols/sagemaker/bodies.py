"""Bodies of `/invocations`: JSON of several frameworks, JSON Lines, CSV, and a plain text.

JSON: `inputs` (Hugging Face, Text Embeddings Inference), `instances` (Vertex AI), or MLflow's
`dataframe_split` and `dataframe_records`. What it is decides how it is answered.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, RootModel, StrictBool, StrictStr

from serving.http.messages import JSON, HTTPError, Request
from serving.interface import TruncationSide
from serving.protocols.forms import URL_ENCODED, header_parameter, media_type
from serving.protocols.hf import HFParameters
from serving.protocols.json_bodies import (
    ClientList,
    JSONBody,
    TextList,
    parse_body,
    parse_if_shaped,
    truncate_repr,
)
from serving.protocols.requests import decode_body
from serving.protocols.tei_bodies import PROMPT, TruncatingBody

CSV = "text/csv"
TEXT = "text/plain"
JSON_LINES = "application/jsonlines"
JSON_LINES_TYPES = (
    JSON_LINES,
    "application/jsonl",
    "application/x-ndjson",
    "application/x-jsonlines",
)
TEXT_COLUMNS = ("text", "inputs", "sentence", "content")

_JSON_TYPES = (JSON, "", URL_ENCODED)  # the last is what curl says of whatever -d sends
_SHAPES = "inputs, instances, dataframe_split or dataframe_records"

Cells = ClientList[Any]
Row = dict[str, Any]
Columns = dict[str, Cells]


class SplitFrame(JSONBody):
    """A table as pandas splits it."""

    meaningless: ClassVar[dict[str, str]] = {"index": "rows are answered in their order"}

    columns: ClientList[StrictStr] = Field(description="the names of the columns")
    data: ClientList[Cells] = Field(description="a list of rows")


class InvocationBody(TruncatingBody):
    """A body in JSON."""

    meaningless: ClassVar[dict[str, str]] = {
        "options": "nothing is cached, and no model has to be waited for",
        "params": "MLflow's are of the signature, which a model here does not have",
    }

    inputs: StrictStr | TextList | ClientList[Row] | Columns | None = Field(
        None, description="a text or a list of texts; of MLflow also a list of rows, or columns"
    )
    instances: ClientList[StrictStr | Row] | None = Field(
        None, description='a list of texts, or of {"inputs": text}'
    )
    dataframe_split: SplitFrame | None = Field(
        None, description='{"columns": [...], "data": [...]}'
    )
    dataframe_records: ClientList[Row] | None = Field(None, description="a list of rows as objects")
    parameters: HFParameters | None = Field(None, description="top_k, function_to_apply and so on")
    raw_scores: StrictBool | None = Field(None, description="logits instead of probabilities")
    model: StrictStr | None = Field(None, description="name, name:version or name@alias")
    prompt_name: StrictStr | None = Field(None, description=PROMPT)


class JSONLine(JSONBody):
    """One line of JSON Lines."""

    inputs: StrictStr | None = Field(None, description="a text")
    text: StrictStr | None = Field(None, description="the same by another name")
    features: Annotated[ClientList[StrictStr], Field(max_length=1)] | None = Field(
        None, description="a list of the one text"
    )


class TextLine(RootModel[StrictStr]):
    """A line that is a text in quotes."""

    root: StrictStr = Field(description="a text")


class SageMakerRequest(NamedTuple):
    """A request in any media type.

    single: one text, so that the answer is no list. key: of the object that holds the answer.
    """

    texts: Sequence[str]
    single: bool = False
    key: str | None = None
    raw_scores: bool = False
    truncate: bool = True
    side: TruncationSide | None = None
    parameters: HFParameters = HFParameters()
    model: str | None = None
    prompt: str | None = None


def parse_request(http: Request) -> SageMakerRequest:
    """Read the texts of a request in any media type. Raises HTTPError."""
    kind = media_type(http.headers.get("content-type", JSON))
    if kind in JSON_LINES_TYPES:
        return SageMakerRequest([*_parse_lines(decode_body(http.body))])
    known = parse_if_shaped(InvocationBody, http.body)
    if known is not None and _holds_texts(known):
        return _request_from(known)
    if kind == TEXT:
        return SageMakerRequest([decode_body(http.body)], single=True)
    if kind == CSV:
        text = decode_body(http.body)
        has_header = header_parameter(http.headers.get("content-type", ""), "header") == "present"
        return SageMakerRequest(_parse_table(text) if has_header else _parse_csv(text))
    if kind not in _JSON_TYPES:
        raise HTTPError(
            "malformed", f"content-type {kind[:60]!r}: send {JSON}, {JSON_LINES}, {TEXT} or {CSV}"
        )
    return _request_from(parse_body(InvocationBody, http.body))


def _holds_texts(body: InvocationBody) -> bool:
    shapes = (body.inputs, body.instances, body.dataframe_split, body.dataframe_records)
    return any(shape is not None for shape in shapes)


def _request_from(body: InvocationBody) -> SageMakerRequest:
    parameters = body.parameters or HFParameters()
    truncate = body.truncate is not False and parameters.truncation is not False
    prompt = body.prompt_name or parameters.prompt_name
    options = (bool(body.raw_scores), truncate, body.side, parameters, body.model, prompt)
    if body.instances is not None:
        return SageMakerRequest(_row_texts(body.instances), False, "predictions", *options)
    if body.dataframe_split is not None:
        rows = _split_rows(body.dataframe_split)
        return SageMakerRequest(rows, False, "predictions", *options)
    if body.dataframe_records is not None:
        texts = _row_texts(body.dataframe_records)
        return SageMakerRequest(texts, False, "predictions", *options)
    if body.inputs is None:
        raise HTTPError(
            "malformed",
            "inputs is missing; expected a text or a list of texts, or one of the other shapes: "
            f"{_SHAPES}",
        )
    if isinstance(body.inputs, str):
        return SageMakerRequest([body.inputs], True, None, *options)
    table: Sequence[str | Row] = (
        _column_rows(body.inputs) if isinstance(body.inputs, dict) else body.inputs
    )
    is_mlflow = any(isinstance(row, dict) for row in table)
    key = "predictions" if is_mlflow else None
    return SageMakerRequest(_row_texts(table), False, key, *options)


def _row_texts(rows: Sequence[str | Row]) -> list[str]:
    """Return the text of each row. Raises HTTPError."""
    return [row if isinstance(row, str) else _row_text(row) for row in rows]


def _column_rows(columns: Columns) -> list[Row]:
    """Return the rows of a table that is given by its columns. Raises HTTPError."""
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise HTTPError(
            "malformed", f"inputs has columns of {sorted(lengths)} rows; give one a row"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _split_rows(frame: SplitFrame) -> list[str]:
    """Return the text of each row."""
    for number, row in enumerate(frame.data, 1):
        if len(row) != len(frame.columns):
            raise HTTPError(
                "malformed",
                f"row {number} of dataframe_split has {len(row)} cells, and there are "
                f"{len(frame.columns)} columns",
            )
    return [_row_text(dict(zip(frame.columns, row, strict=True))) for row in frame.data]


def _row_text(row: dict[str, Any]) -> str:
    """Return the text of a row: its only column, or one of TEXT_COLUMNS. Raises HTTPError."""
    names = [name for name in TEXT_COLUMNS if name in row]
    found = row[names[0]] if names else next(iter(row.values())) if len(row) == 1 else None
    if not isinstance(found, str):
        columns = truncate_repr(sorted(row))
        raise HTTPError(
            "malformed", f"a row with the columns {columns}: expected one text, or a column `text`"
        )
    return found


def _parse_lines(text: str) -> Iterator[str]:
    """Yield the text of each line of JSON Lines. Raises HTTPError."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        stripped = line.strip()
        try:
            if stripped.startswith('"'):
                yield parse_body(TextLine, stripped.encode(errors="replace")).root
                continue
            parsed = parse_body(JSONLine, stripped.encode(errors="replace"))
        except HTTPError as error:
            raise HTTPError("malformed", f"line {number}: {error.message}") from None
        first = parsed.features[0] if parsed.features else None
        found = next(
            (each for each in (parsed.inputs, parsed.text, first) if each is not None), None
        )
        if found is None:
            raise HTTPError("malformed", f'line {number}: expected a text, or {{"inputs": text}}')
        yield found


def _parse_csv(text: str) -> list[str]:
    """Return the texts of a table of one column. Raises HTTPError if there are more columns."""
    texts: list[str] = []
    for line, row in _read_csv(text):
        if len(row) > 1:
            raise HTTPError(
                "malformed",
                f"line {line} has {len(row)} columns: expected one text, in quotes where it "
                "holds a comma; or a header, and content-type text/csv; header=present",
            )
        texts += row
    return texts


def _parse_table(text: str) -> list[str]:
    """Return the texts of a table whose first row names its columns. Raises HTTPError."""
    rows = _read_csv(text)
    _, names = next(rows, (1, []))
    texts = []
    for line, row in rows:
        if row and len(row) != len(names):
            raise HTTPError(
                "malformed", f"line {line} has {len(row)} cells, and the header {len(names)}"
            )
        if row:
            texts.append(_row_text(dict(zip(names, row, strict=True))))
    return texts


def _read_csv(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table, each with the line that it begins in. Raises HTTPError."""
    # One limit for the whole process, so it only ever grows: to the largest body that was let in.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in rows:
            yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise HTTPError("malformed", f"line {line}: the body is not CSV: {error}") from None
