"""Inference over gRPC as `oip` has it over HTTP: a head in JSON, and raw tensors behind it.

Raw contents are the binary tensors of HTTP, byte by byte, so that both are read by one rule.
Outputs are raw, as Triton's are.
"""

import json
from typing import Any

from google.protobuf.message import Message

from serving.http.messages import HTTPError, Request, Response
from serving.protocols.json_bodies import dump_json
from serving.protocols.oip_grpc.messages import message_class, parameters_to_dict
from serving.protocols.oip_tensors import HEADER_LENGTH, pack_elements


def to_http_request(message: Any, http: Request) -> Request:
    """Return the request over HTTP that asks as a ModelInferRequest does. Raises HTTPError."""
    tail = _raw_input(message)
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": parameters_to_dict(tensor.parameters)
                | {"binary_data_size": len(tail)},
            }
            for tensor in message.inputs
        ],
        "outputs": [
            {
                "name": output.name,
                "parameters": parameters_to_dict(output.parameters) | {"binary_data": True},
            }
            for output in message.outputs
        ],
        "parameters": parameters_to_dict(message.parameters) | {"binary_data_output": True},
    }
    if message.id:
        head["id"] = message.id
    body = dump_json(head)
    return http._replace(
        path_params=model_params(message.model_name, message.model_version),
        headers={**http.headers, HEADER_LENGTH: str(len(body))},
        body=body + tail,
    )


def to_infer_response(response: Response) -> Message:
    """Return the ModelInferResponse that says what a response over HTTP says."""
    length = int(dict(response.headers)[HEADER_LENGTH])
    head, offset = json.loads(response.body[:length]), length
    message = message_class("ModelInferResponse")(
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    for key, value in head.get("parameters", {}).items():
        _set_parameter(message.parameters[key], value)
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        message.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        message.raw_output_contents.append(response.body[offset : offset + size])
        offset += size
    return message


def model_params(name: str, version: str) -> dict[str, str]:
    """Return what the path of a call over HTTP would say of the model."""
    return {"model": name, "version": version} if version else {"model": name}


def _raw_input(message: Any) -> bytes:
    """Return the bytes of the one input, raw or of its contents. Raises HTTPError."""
    raw, inputs = message.raw_input_contents, message.inputs
    given = [tensor.name for tensor in inputs if tensor.HasField("contents")]
    if raw and (given or len(raw) != len(inputs)):
        raise HTTPError(
            "malformed",
            f"raw_input_contents holds {len(raw)} tensors beside {len(given)} with contents, of "
            f"{len(inputs)} inputs: expected those of all inputs, or none",
        )
    if raw:
        return b"".join(raw)
    if len(inputs) != 1:
        return b""  # refused with the number of inputs
    contents = inputs[0].contents
    others = [field.name for field, _ in contents.ListFields() if field.name != "bytes_contents"]
    if others:
        raise HTTPError(
            "malformed",
            f"inputs[0].contents has {', '.join(others)}: expected bytes_contents, texts in UTF-8",
        )
    return pack_elements(contents.bytes_contents)


def _set_parameter(parameter: Any, value: Any) -> None:
    """Set an InferParameter, which has no lists: those of numbers become text, as 0,3."""
    if isinstance(value, list):
        parameter.string_param = ",".join(map(str, value))
    else:
        parameter.int64_param = value
