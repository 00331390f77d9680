"""The messages of `inference.proto`, made of what `make proto` compiles it into.

They live in a pool of their own: clients bring messages of the same names, and one pool takes them
once. A descriptor also loads in every version of protobuf, and generated modules do not.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from serving.http.messages import HTTPError
from serving.protocols.json_bodies import truncate_repr

DESCRIPTOR_FILE = Path(__file__).with_name("inference.binpb")
PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"


@functools.cache
def descriptor_pool() -> DescriptorPool:
    """Return the pool that holds the messages and the service."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTOR_FILE.read_bytes()).file:
        pool.Add(file)
    return pool


@functools.cache
def message_class(name: str) -> Any:
    """Return the class of a message, as "ModelInferRequest"."""
    return GetMessageClass(descriptor_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


def parse_message(name: str, data: bytes) -> Any:
    """Return the message that `data` holds. Raises HTTPError."""
    try:
        return message_class(name).FromString(data)
    except DecodeError as error:
        raise HTTPError("malformed", f"the message is no {name}: {error}") from None


def build_message(name: str, values: Any) -> Message:
    """Return a message with `values` by the names of its fields; others are left out."""
    try:
        message: Message = ParseDict(values, message_class(name)(), ignore_unknown_fields=True)
    except ParseError as error:
        raise ValueError(f"{name}: {error}; of {truncate_repr(values)}") from error
    return message


def parameters_to_dict(parameters: Any) -> dict[str, Any]:
    """Return the values of a map of `InferParameter`; those that hold none are left out."""
    found = {
        key: (value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()
    }
    return {key: getattr(value, choice) for key, (value, choice) in found.items() if choice}
