"""Tensors of the Open Inference Protocol: in JSON, or as bytes behind it.

In bytes, an element of BYTES is its length (four bytes, little-endian) and itself; numbers are
little-endian. The header Inference-Header-Content-Length says where the JSON ends; where it is 0,
all of the body is one text. Knows no model.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import Refusal, Reply, Request
from serving.interface import Limits
from serving.protocols.json_bodies import Body, dump, parse, shown
from serving.protocols.texts import checked, decoded

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
MAX_TOP_K = 1000

_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 4
_NUMPY = {"FP32": "<f4", "INT64": "<i8"}

Dimension = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


class InputParameters(Body):
    """How an input was sent."""

    binary_data_size: StrictInt | None = Field(None, ge=0, description="bytes behind the JSON")


class InputTensor(Body):
    """The texts: one tensor of BYTES, of whatever name."""

    name: StrictStr = "text"
    datatype: StrictStr
    shape: list[Dimension] = Field(max_length=_MAX_DIMENSIONS)
    parameters: InputParameters | None = None
    data: Any = Field(None, description="texts, flat or nested by the shape")


class OutputParameters(Body):
    """How an output is wanted."""

    binary_data: StrictBool | None = None
    classification: StrictInt = Field(0, ge=0, le=MAX_TOP_K, description="the best, as text")


class RequestedOutput(Body):
    """An output that is wanted."""

    name: StrictStr
    parameters: OutputParameters = OutputParameters()


class InferParameters(Body):
    """Options of a request."""

    binary_data_output: StrictBool = False
    top_k: StrictInt | None = Field(None, ge=1, le=MAX_TOP_K, description="the best so many")


class InferRequest(Body):
    """The JSON of a request."""

    inputs: list[InputTensor] = Field(description="a list of one tensor, the texts")
    id: StrictStr | None = None
    outputs: list[RequestedOutput] | None = Field(None, description="by default all")
    parameters: InferParameters = InferParameters()


class Tensor(NamedTuple):
    """An output. values: row by row; numbers as an array, BYTES as texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: np.ndarray | Sequence[str]


def read(http: Request, limits: Limits) -> tuple[InferRequest, Sequence[str]]:
    """A request and its texts. Raises Refusal, and nothing else."""
    head, tail = _parted(http)
    if not head and tail:
        tensor = InputTensor(datatype="BYTES", shape=[1])
        return InferRequest(inputs=[tensor]), checked([decoded(tail, "the body")], limits, "inputs")
    request = parse(InferRequest, head)
    if len(request.inputs) != 1:
        raise Refusal(
            "malformed", f"inputs holds {len(request.inputs)} tensors: expected one, the texts"
        )
    return request, checked(_texts(request.inputs[0], tail, limits), limits, "inputs[0]")


def reply(head: dict[str, Any], tensors: Sequence[tuple[Tensor, bool]]) -> Reply:
    """The answer that holds `tensors`, each in JSON or, where its flag says so, in bytes."""
    outputs, tail = [], []
    for tensor, binary in tensors:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary:
            tail.append(_packed(tensor))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            values = tensor.values
            output["data"] = values.tolist() if isinstance(values, np.ndarray) else list(values)
        outputs.append(output)
    body = dump(head | {"outputs": outputs})
    if not any(binary for _, binary in tensors):
        return Reply(body)
    headers = ((HEADER_LENGTH, str(len(body))),)
    return Reply(b"".join((body, *tail)), media_type=BINARY, headers=headers)


def pack_texts(texts: Sequence[str]) -> bytes:
    """Texts as elements of BYTES."""
    elements = [text.encode(errors="replace") for text in texts]
    return b"".join(
        part
        for element in elements
        for part in (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
    )


def _packed(tensor: Tensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype(_NUMPY[tensor.datatype]).tobytes()
    return pack_texts(tensor.values)


def _parted(http: Request) -> tuple[bytes, bytes]:
    """The JSON, and what stands behind it."""
    given = http.headers.get(HEADER_LENGTH)
    if given is None:
        return http.body, b""
    length = int(given) if given.isascii() and given.isdecimal() and len(given) < 12 else -1
    if not 0 <= length <= len(http.body):
        raise Refusal(
            "malformed",
            f"{HEADER_LENGTH} is {shown(given)}: expected the bytes of the JSON, "
            f"of a body of {len(http.body)}",
        )
    return http.body[:length], http.body[length:]


def _texts(tensor: InputTensor, tail: bytes, limits: Limits) -> Sequence[str]:
    """The texts of an input."""
    if tensor.datatype != "BYTES":
        raise Refusal("malformed", f"datatype is {shown(tensor.datatype)}: expected 'BYTES', texts")
    count = math.prod(tensor.shape)
    if count > limits.max_texts:
        raise Refusal(
            "too-large",
            f"a tensor of {count} texts, but a request holds at most {limits.max_texts}; "
            "send several requests",
        )
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if size is None:
        texts = _flat(tensor.data)
    elif size == len(tail):
        texts = list(_unpacked(tail))
    else:
        raise Refusal(
            "malformed",
            f"binary_data_size = {shown(size)}, but {len(tail)} bytes stand behind the JSON",
        )
    if len(texts) != count:
        raise Refusal(
            "malformed", f"{len(texts)} texts, but the shape {tensor.shape} holds {count}"
        )
    return texts


def _unpacked(tail: bytes) -> Iterator[str]:
    """The elements of BYTES."""
    place = 0
    while place < len(tail):
        start = place + _LENGTH_BYTES
        end = start + int.from_bytes(tail[place:start], "little")
        if end > len(tail) or start > len(tail):
            raise Refusal(
                "malformed",
                f"the element at byte {place} of the tensor ends at byte {end}, "
                f"but the tensor has {len(tail)}",
            )
        yield decoded(tail[start:end], f"the element at byte {place} of the tensor")
        place = end


def _flat(data: Any) -> list[str]:
    """The texts of nested lists."""
    level = data if isinstance(data, list) else [data]
    for _ in range(_MAX_DIMENSIONS):
        if all(isinstance(each, str) for each in level):
            return level
        if not all(isinstance(each, list) for each in level):
            break
        level = [inner for each in level for inner in each]
    raise Refusal("malformed", f"data = {shown(data)}: expected a list of texts, as the shape says")
