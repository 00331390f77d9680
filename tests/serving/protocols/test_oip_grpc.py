"""Messages of gRPC as bytes: what each says, what it is refused for, and whose numbers it has."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from serving.http.messages import (
    DEFAULT_STATUSES,
    GRPC_CODES,
    ErrorKind,
    HTTPError,
    Request,
    note_truncated,
    truncated_texts,
)
from serving.interface import InferenceResult, Limits, Prediction
from serving.protocols.oip_grpc.messages import (
    DESCRIPTOR_FILE,
    SERVICE,
    descriptor_pool,
    message_class,
)
from serving.protocols.oip_grpc.service import PROTOCOL
from tests.support.fake_models import FakeModels, fake_prediction

HANDLERS = {route.path.rpartition("/")[2]: route for route in PROTOCOL.routes}
RAW = b"\x06\0\0\0a film\x04\0\0\0dull"
TEXTS = ["a film", "dull"]


def ask(call: str, data: Any, models: FakeModels | None = None) -> Any:
    """Return the message that answers a message, or bytes."""
    data = data if isinstance(data, bytes) else data.SerializeToString()
    http = Request("POST", f"/{SERVICE}/{call}", {}, {}, {}, data)
    response = asyncio.run(HANDLERS[call].handler(http, models or FakeModels()))
    assert response.status == 200 and response.media_type == "application/grpc"
    answer = "ModelStreamInfer" if call == "ModelStreamInfer" else call
    return message_class(f"{answer}Response").FromString(response.body)


def refusal(call: str, data: Any, models: FakeModels | None = None) -> tuple[str, str]:
    """Return the code and the message that a message is refused with."""
    with pytest.raises(HTTPError) as raised:
        ask(call, data, models)
    error = json.loads(PROTOCOL.error_response(raised.value).body)
    assert error["message"] == raised.value.message
    return error["code"], error["message"]


def infer_request(texts: list[str] | None = None, raw: bytes | None = RAW, **more: Any) -> Any:
    request = message_class("ModelInferRequest")(model_name="sentiment", **more)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts or TEXTS)])
    if texts is not None:
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    elif raw is not None:
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize("texts", [TEXTS, None])
def test_texts_are_read_raw_and_as_contents(texts: list[str] | None) -> None:
    answer = ask("ModelInfer", infer_request(texts, id="7"))
    assert (answer.model_name, answer.model_version, answer.id) == ("sentiment", "2", "7")
    label, probabilities = answer.outputs
    assert (label.name, label.datatype, [*label.shape]) == ("label", "BYTES", [2])
    assert (probabilities.name, probabilities.datatype) == ("probabilities", "FP32")
    assert [*probabilities.shape] == [2, 2]
    expected = [fake_prediction(text, "classification", 2).scores for text in TEXTS]
    found = np.frombuffer(answer.raw_output_contents[1], "<f4").reshape(2, 2)
    assert found.tolist() == np.float32(expected).tolist()
    assert answer.raw_output_contents[0].count(b"tive") == 2


def test_outputs_are_those_that_are_asked_for() -> None:
    request = infer_request()
    wanted = request.outputs.add(name="probabilities")
    wanted.parameters["classification"].int64_param = 1
    answer = ask("ModelInfer", request)
    (output,) = answer.outputs
    assert (output.name, output.datatype, [*output.shape]) == ("probabilities", "BYTES", [2, 1])
    request.outputs.add(name="weather")
    assert refusal("ModelInfer", request)[0] == "INVALID_ARGUMENT"


def test_a_version_is_the_one_that_is_named() -> None:
    assert ask("ModelInfer", infer_request(model_version="1")).model_version == "1"
    code, message = refusal("ModelInfer", infer_request(model_version="9"))
    assert code == "NOT_FOUND" and "sentiment:9" in message
    assert refusal("ModelInfer", message_class("ModelInferRequest")())[0] == "INVALID_ARGUMENT"
    request = infer_request()
    request.model_name = ""
    assert refusal("ModelInfer", request)[0] == "NOT_FOUND"


def test_parameters_are_those_of_http() -> None:
    request = infer_request()
    request.parameters["top_k"].int64_param = 1
    request.parameters["count_tokens"].bool_param = True
    request.parameters["nothing"].SetInParent()
    answer = ask("ModelInfer", request)
    assert [*answer.outputs[0].shape] == [2, 1]
    assert answer.parameters["num_tokens"].string_param == "4,3"
    assert answer.parameters["max_tokens"].int64_param == 64


class CuttingModels(FakeModels):
    """Models that read the second text in part."""

    async def predict(
        self, model: str | None, texts: Any, *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        note_truncated([1])
        return await super().predict(model, texts, truncate=truncate)


def test_a_text_that_was_cut_is_named() -> None:
    truncated_texts.set([])
    answer = ask("ModelInfer", infer_request(), CuttingModels())
    assert answer.parameters["truncated"].string_param == "1"
    truncated_texts.set(None)


def with_parameter(key: str, **value: Any) -> Any:
    request = infer_request()
    request.parameters[key].CopyFrom(message_class("InferParameter")(**value))
    return request


def with_shared_memory() -> Any:
    request = infer_request(raw=None)
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


def with_numbers() -> Any:
    request = infer_request(raw=None)
    request.inputs[0].contents.int_contents.append(3)
    return request


def with_both() -> Any:
    request = infer_request(TEXTS)
    request.raw_input_contents.append(RAW)
    return request


def with_two_inputs() -> Any:
    request = infer_request(TEXTS)
    request.inputs.add(name="more", datatype="BYTES", shape=[1])
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (with_parameter("sequence_id", int64_param=3), "sequence_id = 3"),
        (with_parameter("top_k", string_param="two"), "top_k"),
        (with_parameter("top_k", double_param=1.5), "top_k"),
        (with_shared_memory(), "shared memory is not offered"),
        (with_numbers(), "int_contents: expected bytes_contents"),
        (with_both(), "raw_input_contents holds 1 tensors beside 1"),
        (with_two_inputs(), "inputs holds 2 tensors"),
        (infer_request(raw=b"\xff\xff\xff\xffa"), "the element at byte 0"),
        (infer_request(raw=b"\x02\0\0\0\xff\xfe"), "not UTF-8"),
        (infer_request(raw=RAW[:10]), "1 texts, but the shape [2]"),
        (infer_request(raw=None), "0 texts, but the shape [2]"),
        (infer_request(["a"] * 5), "a tensor of 5 texts"),
        (infer_request(["a", " "]), "text 2 of inputs[0] is empty"),
        (b"\x0a\x02\xff\xff", "the message is no ModelInferRequest"),
        (b"\xff" * 20, "the message is no ModelInferRequest"),
    ],
)
def test_what_cannot_be_answered_says_why(request_: Any, words: str) -> None:
    code, message = refusal("ModelInfer", request_)
    assert code == "INVALID_ARGUMENT" and words in message


def test_a_stream_goes_on_behind_a_refusal() -> None:
    answer = ask("ModelStreamInfer", infer_request(model_version="9", id="4"))
    assert "sentiment:9" in answer.error_message
    assert answer.infer_response.id == "4" and not answer.infer_response.outputs
    answer = ask("ModelStreamInfer", infer_request(id="5"))
    assert answer.error_message == "" and answer.infer_response.id == "5"
    assert refusal("ModelStreamInfer", b"\xff")[0] == "INVALID_ARGUMENT"


def test_health_is_an_answer_and_no_error() -> None:
    models = FakeModels()
    assert ask("ServerLive", b"").live
    assert ask("ServerReady", b"", models).ready
    models.sound = False
    assert not ask("ServerReady", b"", models).ready
    about = message_class("ModelReadyRequest")
    assert ask("ModelReady", about(name="sentiment", version="1")).ready
    assert not ask("ModelReady", about(name="weather")).ready
    models.refusal = HTTPError("overloaded", "later", 2)
    assert refusal("ModelReady", about(name="sentiment"), models) == ("RESOURCE_EXHAUSTED", "later")


def test_what_is_known_is_what_http_tells() -> None:
    about = {"name": "topics", "version": "1"}
    server = ask("ServerMetadata", b"")
    assert server.name == "bertha" and "classification" in server.extensions
    metadata = ask("ModelMetadata", message_class("ModelMetadataRequest")(**about))
    assert [*metadata.versions] == ["1"] and metadata.inputs[0].datatype == "BYTES"
    outputs = {each.name: [*each.shape] for each in metadata.outputs}
    assert outputs == {"label": [-1], "probabilities": [-1, 3], "chosen": [-1, 3]}
    config = ask("ModelConfig", message_class("ModelConfigRequest")(**about)).config
    assert config.max_batch_size == 4 and config.parameters["labels"].string_value
    types = message_class("ModelOutput").DESCRIPTOR.fields_by_name["data_type"].enum_type
    found = [types.values_by_number[each.data_type].name for each in config.output]
    assert found == ["TYPE_STRING", "TYPE_FP32", "TYPE_BOOL"]
    (statistics,) = ask(
        "ModelStatistics", message_class("ModelStatisticsRequest")(**about)
    ).model_stats
    assert statistics.inference_count == 12 and statistics.inference_stats.success.count == 10
    assert statistics.inference_stats.queue.ns == 200_000_000
    assert len(ask("ModelStatistics", b"").model_stats) == len(FakeModels().list_models())


def test_the_repository_is_listed_loaded_and_unloaded() -> None:
    models = FakeModels()
    index = ask("RepositoryIndex", b"", models).models
    assert [(each.name, each.version) for each in index][:2] == [
        ("sentiment", "2"),
        ("topics", "1"),
    ]
    assert {each.state for each in index} == {"READY"}
    load, unload = (message_class(f"RepositoryModel{each}Request") for each in ("Load", "Unload"))
    ask("RepositoryModelLoad", load(model_name="mini"), models)
    request = unload(model_name="mini")
    request.parameters["unload_dependents"].bool_param = True
    ask("RepositoryModelUnload", request, models)
    assert models.managed is not None
    assert models.managed.calls == [("load", "mini"), ("unload", "mini")]
    request = load(model_name="mini")
    request.parameters["file:1/model.onnx"].bytes_param = b"\xff"
    code, message = refusal("RepositoryModelLoad", request, models)
    assert code == "INVALID_ARGUMENT" and "files are not taken" in message
    other = message_class("RepositoryIndexRequest")(repository_name="other")
    assert "there is one" in refusal("RepositoryIndex", other)[1]
    models.managed = None
    assert refusal("RepositoryModelLoad", load(model_name="mini"), models)[0] == "UNIMPLEMENTED"


def test_every_kind_of_error_has_a_code() -> None:
    assert set(GRPC_CODES) == set(DEFAULT_STATUSES) == set(get_args(ErrorKind))
    assert set(GRPC_CODES.values()) <= set(grpc.StatusCode.__members__) - {"OK", "UNKNOWN"}
    ours = {kind for kind, code in GRPC_CODES.items() if code == "INTERNAL"}
    assert ours == {"failed", "internal"}


def test_the_scopes_are_those_of_http() -> None:
    scopes = {name: route.scope for name, route in HANDLERS.items()}
    assert {name for name in scopes if scopes[name] == "open"} == {"ServerLive", "ServerReady"}
    changing = {name for name in scopes if scopes[name] == "management"}
    assert changing == {"RepositoryModelLoad", "RepositoryModelUnload"}


def describe(message: Any) -> dict[str, Any]:
    """Return what of a message is on the wire: numbers, types and messages below it."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
        )
        for field in message.fields
    }


def test_names_and_numbers_are_those_of_an_unmodified_client() -> None:
    pool = descriptor_pool()
    theirs = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    ours = pool.FindFileByName("inference.proto")
    waiting = [(message, theirs[name]) for name, message in ours.message_types_by_name.items()]
    assert len(waiting) > 30
    for mine, other in waiting:
        assert describe(mine).items() <= describe(other).items(), mine.full_name
        waiting += [(each, other.nested_types_by_name[each.name]) for each in mine.nested_types]
    for name, enum in ours.enum_types_by_name.items():
        numbers = {each.name: each.number for each in enum.values}
        known = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]
        assert numbers.items() <= {each.name: each.number for each in known.values}.items()
    service = pool.FindServiceByName(SERVICE)
    assert {method.name for method in service.methods} == HANDLERS.keys()
    known = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        other = known.methods_by_name[method.name]
        for mine, its in (
            (method.input_type, other.input_type),
            (method.output_type, other.output_type),
        ):
            assert mine.full_name == its.full_name
        streams = (method.client_streaming, method.server_streaming)
        assert streams == (other.client_streaming, other.server_streaming)


def test_the_compiled_messages_are_those_of_the_source(tmp_path: Path) -> None:
    """Run `make proto` where this fails."""
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_out={made}"]
    source = DESCRIPTOR_FILE.with_suffix(".proto")
    subprocess.run([*command, "-I", str(source.parent), source.name], check=True)
    expected = FileDescriptorSet.FromString(made.read_bytes())
    assert FileDescriptorSet.FromString(DESCRIPTOR_FILE.read_bytes()) == expected


PARAMETER = st.one_of(
    st.builds(dict, bool_param=st.booleans()),
    st.builds(dict, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(dict, string_param=st.text(max_size=5)),
    st.builds(dict, double_param=st.floats()),
    st.builds(dict, uint64_param=st.integers(0, 2**64 - 1)),
)
NAMES = st.sampled_from(["sentiment", "mini", "topics", "filler", "", "/", "a/b", "label", "\0"])
OPTIONS = ["top_k", "count_tokens", "timeout", "sequence_id", "priority", "classification", "x"]
KEYS = st.sampled_from([*OPTIONS, "binary_data_size", "binary_data", "shared_memory_region"])
PARAMETERS = st.dictionaries(KEYS, PARAMETER, max_size=2)
REQUESTS = st.fixed_dictionaries(
    {"model_name": NAMES, "model_version": st.sampled_from(["", "1", "9", "x:@"]), "id": st.text()}
)
TENSORS = st.lists(
    st.tuples(
        st.sampled_from(["BYTES", "FP32", ""]),
        st.lists(st.integers(-2, 3) | st.just(2**62), max_size=3),
        st.lists(st.binary(max_size=6), max_size=3),
        PARAMETERS,
    ),
    max_size=2,
)


@given(
    REQUESTS, TENSORS, st.lists(st.binary(max_size=12), max_size=2), PARAMETERS, NAMES, st.data()
)
def test_any_message_is_answered_or_refused(
    head: dict[str, Any],
    tensors: Any,
    raw: list[bytes],
    parameters: Any,
    output: str,
    data: st.DataObject,
) -> None:
    request = message_class("ModelInferRequest")(**head, raw_input_contents=raw)
    for datatype, shape, contents, options in tensors:
        tensor = request.inputs.add(name="text", datatype=datatype, shape=shape)
        tensor.contents.bytes_contents.extend(contents)
        set_parameters(tensor.parameters, options)
    set_parameters(request.parameters, parameters)
    if output:
        set_parameters(request.outputs.add(name=output).parameters, parameters)
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 2)) if message else 0):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    answered_or_refused("ModelInfer", bytes(message))


@given(st.sampled_from(sorted(HANDLERS)), st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(call: str, data: bytes) -> None:
    answered_or_refused(call, data)


def set_parameters(parameters: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        parameters[key].CopyFrom(message_class("InferParameter")(**value))


def answered_or_refused(call: str, data: bytes) -> None:
    try:
        ask(call, data, FakeModels(limits=Limits(max_texts=4)))
    except HTTPError as error:
        assert GRPC_CODES[error.kind] not in ("INTERNAL", "UNKNOWN"), error
