"""Tensors of the Open Inference Protocol: in JSON, or as bytes behind it.

In bytes, an element of BYTES is its length (four bytes, little-endian) and itself; numbers are
little-endian. The header Inference-Header-Content-Length tells where the JSON ends; where it is 0,
all of the body is one text.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import HTTPError, Request, Response
from serving.interface import Limits
from serving.protocols.json_bodies import ClientList, JSONBody, dump_json, parse_body, truncate_repr
from serving.protocols.requests import check_texts, decode_body, decode_utf8

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
MAX_TOP_K = 1000

_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 4
_NUMPY_TYPES = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}

Dimension = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


_NO_SHARED_MEMORY = "shared memory is not offered; send the tensor in the request"
_SHARED_MEMORY = {
    "shared_memory_region": _NO_SHARED_MEMORY,
    "shared_memory_offset": _NO_SHARED_MEMORY,
    "shared_memory_byte_size": _NO_SHARED_MEMORY,
}


class InputParameters(JSONBody):
    """How an input was sent."""

    refused: ClassVar[dict[str, str]] = _SHARED_MEMORY
    meaningless: ClassVar[dict[str, str]] = {"content_type": "BYTES are texts in UTF-8"}

    binary_data_size: StrictInt | None = Field(None, ge=0, description="bytes behind the JSON")


class InputTensor(JSONBody):
    """The texts: one tensor of BYTES, of whatever name."""

    name: StrictStr = Field("text", description="any")
    datatype: StrictStr = Field(description='"BYTES"')
    shape: list[Dimension] = Field(
        max_length=_MAX_DIMENSIONS, description="as many texts as its product"
    )
    parameters: InputParameters | None = Field(None, description="how it was sent")
    data: Any = Field(None, description="texts, flat or nested by the shape")


class OutputParameters(JSONBody):
    """How an output is wanted."""

    refused: ClassVar[dict[str, str]] = _SHARED_MEMORY

    binary_data: StrictBool | None = Field(None, description="in bytes behind the JSON")
    classification: StrictInt = Field(0, ge=0, le=MAX_TOP_K, description="the best, as text")


class RequestedOutput(JSONBody):
    """An output that is wanted."""

    name: StrictStr = Field(description="of an output of the model")
    parameters: OutputParameters = Field(OutputParameters(), description="how it is wanted")


class InferParameters(JSONBody):
    """Options of a request."""

    refused: ClassVar[dict[str, str]] = {
        "sequence_id": "models keep no state between requests; leave it out",
        "sequence_start": "models keep no state between requests; leave it out",
        "sequence_end": "models keep no state between requests; leave it out",
    }
    meaningless: ClassVar[dict[str, str]] = {
        "priority": "small requests go first, then those that came first",
        "triton_enable_empty_final_response": "an answer comes whole",
        "headers": "the request has them",
    }

    binary_data_output: StrictBool = Field(False, description="outputs in bytes behind the JSON")
    timeout: StrictInt | None = Field(
        None, ge=0, description="microseconds that the client waits; 0: as long as it may"
    )
    top_k: StrictInt | None = Field(None, ge=1, le=MAX_TOP_K, description="the best so many")
    count_tokens: StrictBool = Field(
        False, description="answer `num_tokens` of each text, before it is cut, in the parameters"
    )


class OIPInferRequest(JSONBody):
    """The JSON of a request."""

    inputs: ClientList[InputTensor] = Field(description="a list of one tensor, the texts")
    id: StrictStr | None = Field(None, description="comes back with the answer")
    outputs: ClientList[RequestedOutput] | None = Field(None, description="by default all")
    parameters: InferParameters = Field(InferParameters(), description="options")


class OutputTensor(NamedTuple):
    """An output. values: row by row; numbers as an array, BYTES as texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: np.ndarray | Sequence[str]


def parse_infer_request(http: Request, limits: Limits) -> tuple[OIPInferRequest, Sequence[str]]:
    """Return a request and its texts. Raises HTTPError, and nothing else."""
    head, tail = _split_body(http)
    if not head and tail:  # a header of 0: the raw text, with no tensor around it
        request = OIPInferRequest(inputs=[InputTensor(datatype="BYTES", shape=[1])])
        return request, check_texts([decode_body(tail)], limits, "inputs")
    request = parse_body(OIPInferRequest, head)
    if len(request.inputs) != 1:
        raise HTTPError(
            "malformed", f"inputs holds {len(request.inputs)} tensors: expected one, the texts"
        )
    return request, check_texts(_read_texts(request.inputs[0], tail, limits), limits, "inputs[0]")


def infer_response(head: dict[str, Any], tensors: Sequence[tuple[OutputTensor, bool]]) -> Response:
    """Return the response that holds `tensors`, each in JSON or, if its flag is set, in bytes."""
    outputs, tail = [], []
    for tensor, binary in tensors:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        values = tensor.values
        if binary:
            # Bytes of all tensors follow the JSON without separators, in the order of `outputs`:
            # the client finds each by adding up these sizes.
            tail.append(_pack_tensor(tensor))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values.tolist() if isinstance(values, np.ndarray) else list(values)
        outputs.append(output)
    body = dump_json(head | {"outputs": outputs})
    if not any(binary for _, binary in tensors):
        return Response(body)
    headers = ((HEADER_LENGTH, str(len(body))),)
    return Response(b"".join((body, *tail)), media_type=BINARY, headers=headers)


def pack_texts(texts: Sequence[str]) -> bytes:
    """Encode texts as elements of BYTES."""
    return pack_elements([text.encode(errors="replace") for text in texts])


def pack_elements(elements: Iterable[bytes]) -> bytes:
    """Put the length of each before it."""
    return b"".join(
        part
        for element in elements
        for part in (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
    )


def _pack_tensor(tensor: OutputTensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype(_NUMPY_TYPES[tensor.datatype]).tobytes()
    return pack_texts(tensor.values)


def _split_body(http: Request) -> tuple[bytes, bytes]:
    """Return the JSON, and the bytes behind it."""
    given = http.headers.get(HEADER_LENGTH)
    if given is None:
        return http.body, b""
    length = int(given) if given.isascii() and given.isdecimal() and len(given) < 12 else -1
    if not 0 <= length <= len(http.body):
        raise HTTPError(
            "malformed",
            f"{HEADER_LENGTH} is {truncate_repr(given)}: expected the bytes of the JSON, "
            f"of a body of {len(http.body)}",
        )
    return http.body[:length], http.body[length:]


def _read_texts(tensor: InputTensor, tail: bytes, limits: Limits) -> Sequence[str]:
    if tensor.datatype != "BYTES":
        raise HTTPError(
            "malformed", f"datatype is {truncate_repr(tensor.datatype)}: expected 'BYTES', texts"
        )
    # The limit is checked on the shape, before as many elements are read from the body.
    count = math.prod(tensor.shape)
    if count > limits.max_texts:
        raise HTTPError(
            "too-large",
            f"a tensor of {count} texts, but a request holds at most {limits.max_texts}; "
            "send several requests",
        )
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if size is None:
        texts = _flatten_texts(tensor.data)
    elif size == len(tail):  # the one input owns all bytes behind the JSON
        texts = list(_unpack_texts(tail))
    else:
        raise HTTPError(
            "malformed",
            f"binary_data_size = {truncate_repr(size)}, but {len(tail)} bytes stand behind "
            "the JSON",
        )
    if len(texts) != count:
        raise HTTPError(
            "malformed", f"{len(texts)} texts, but the shape {tensor.shape} holds {count}"
        )
    return texts


def _unpack_texts(tail: bytes) -> Iterator[str]:
    """Yield the elements of BYTES."""
    offset = 0
    while offset < len(tail):
        start = offset + _LENGTH_BYTES
        end = start + int.from_bytes(tail[offset:start], "little")
        if end > len(tail) or start > len(tail):
            raise HTTPError(
                "malformed",
                f"the element at byte {offset} of the tensor ends at byte {end}, "
                f"but the tensor has {len(tail)}",
            )
        yield decode_utf8(tail[start:end], f"the element at byte {offset} of the tensor")
        offset = end


def _flatten_texts(data: Any) -> list[str]:
    """Return the texts of nested lists."""
    level = data if isinstance(data, list) else [data]
    for _ in range(_MAX_DIMENSIONS):
        if all(isinstance(each, str) for each in level):
            return level
        if not all(isinstance(each, list) for each in level):
            break
        level = [inner for each in level for inner in each]
    raise HTTPError(
        "malformed", f"data = {truncate_repr(data)}: expected a list of texts, as the shape says"
    )
