"""Calls of gRPC in the application: keys, deadlines, clients that leave, streams, hostile bytes."""

import asyncio
import hashlib
import importlib.util
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from serving.http import grpc_server
from serving.http.grpc_server import HOST_KEY, GRPCUnavailable, check_grpc_packages
from serving.http.hosts import HostNames
from serving.http.keys import ApiKey, ApiKeys
from serving.http.messages import HTTPError, request_deadline
from serving.http.metrics import Metrics
from serving.interface import InferenceResult, Limits, Prediction
from serving.protocols.oip_grpc.messages import SERVICE, message_class
from tests.support.fake_models import FakeModels
from tests.support.grpc_servers import serve_grpc

KEY, MANAGER = "bertha_one", "bertha_two"


def infer_request(*texts: str, **more: Any) -> Any:
    request = message_class("ModelInferRequest")(**{"model_name": "sentiment", **more})
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


class Client:
    """A client whose messages are bytes, as given or of a message."""

    def __init__(self, address: str, **options: Any) -> None:
        self.address, self.channel = address, grpc.insecure_channel(address, **options)

    def unary(self, name: str) -> grpc.UnaryUnaryMultiCallable:
        return self.channel.unary_unary(f"/{SERVICE}/{name}")

    def call(self, name: str, message: Any = b"", **options: Any) -> Any:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        return message_class(f"{name}Response").FromString(
            self.unary(name)(data, timeout=30, **options)
        )

    def refusal(self, name: str, message: Any = b"", **options: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as raised:
            self.call(name, message, **options)
        return raised.value

    def stream(self, messages: Iterator[bytes], **options: Any) -> Iterator[Any]:
        call = self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answer = message_class("ModelStreamInferResponse")
        for data in call(messages, timeout=30, **options):
            yield answer.FromString(data)


class HeldModels(FakeModels):
    """Models that hold a request until it is let go, and count those that were dropped."""

    def __init__(self) -> None:
        super().__init__(limits=Limits(max_texts=4))
        self.seen = threading.Semaphore(0)
        self.dropped = threading.Semaphore(0)
        self.deadlines: list[float | None] = []
        self.go = threading.Event()

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        deadline, now = request_deadline.get(), asyncio.get_running_loop().time()
        self.deadlines.append(None if deadline is None else deadline - now)
        self.seen.release()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.dropped.release()
            raise
        return await super().predict(model, texts, truncate=truncate)


@pytest.fixture
def client() -> Iterator[Client]:
    with serve_grpc(FakeModels()) as endpoint:
        yield Client(endpoint.address)


def test_an_answer_says_in_its_metadata_what_headers_say(client: Client) -> None:
    data = infer_request("a").SerializeToString()
    metadata = (("x-request-id", "mine"), ("content-encoding", "gzip"), ("accept-encoding", "br"))
    answer, call = client.unary("ModelInfer").with_call(data, metadata=metadata)
    assert message_class("ModelInferResponse").FromString(answer).model_name == "sentiment"
    assert ("x-request-id", "mine") in [tuple(each) for each in call.trailing_metadata()]


def test_a_key_is_asked_for() -> None:
    digests = {"inference": KEY, "management": MANAGER}
    keys = [
        ApiKey(name=scope, sha256=hashlib.sha256(key.encode()).hexdigest(), scopes=(scope,))
        for scope, key in digests.items()
    ]
    with serve_grpc(FakeModels(), keys=ApiKeys(keys)) as endpoint:
        client, request = Client(endpoint.address), infer_request("a")
        assert client.call("ServerLive").live and client.call("ServerReady").ready
        for name in ("ServerMetadata", "RepositoryIndex", "ModelReady"):
            assert client.refusal(name).code() == grpc.StatusCode.UNAUTHENTICATED
        assert client.refusal("ModelInfer", request).code() == grpc.StatusCode.UNAUTHENTICATED
        for metadata in ((("authorization", f"Bearer {KEY}"),), (("x-api-key", KEY),)):
            assert client.call("ModelInfer", request, metadata=metadata).model_name == "sentiment"
            load = message_class("RepositoryModelLoadRequest")(model_name="mini")
            refused = client.refusal("RepositoryModelLoad", load, metadata=metadata)
            assert refused.code() == grpc.StatusCode.PERMISSION_DENIED
        managing = (("authorization", f"Bearer {MANAGER}"),)
        client.call("RepositoryModelLoad", load, metadata=managing)
        data = request.SerializeToString()
        with pytest.raises(grpc.RpcError) as raised:
            list(client.stream(iter([data])))
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_name_that_is_not_the_servers_is_refused() -> None:
    with serve_grpc(FakeModels(), hosts=HostNames(["box.lan"])) as endpoint:
        client = Client(endpoint.address)
        assert client.call("ServerLive").live
        assert client.call("ServerLive", metadata=((HOST_KEY, "box.lan:8000"),)).live
        refused = client.refusal("ServerLive", metadata=((HOST_KEY, "evil.example"),))
        assert refused.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "--allow-host evil.example" in refused.details()


def test_a_refusal_says_when_to_ask_again(client: Client) -> None:
    models = FakeModels()
    models.refusal = HTTPError("overloaded", "too much waits", 2)
    with serve_grpc(models) as endpoint:
        refused = Client(endpoint.address).refusal("ModelInfer", infer_request("a"))
    assert (refused.code(), refused.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too much waits",
    )
    trailing = dict(tuple(each) for each in refused.trailing_metadata())
    assert trailing["retry-after"] == "2" and trailing["grpc-retry-pushback-ms"] == "2000"


def test_a_bug_of_ours_keeps_its_details(caplog: pytest.LogCaptureFixture) -> None:
    models = FakeModels()
    models.refusal = ZeroDivisionError("secret")  # type: ignore[assignment]
    with serve_grpc(models) as endpoint:
        refused = Client(endpoint.address).refusal("ModelInfer", infer_request("a"))
    assert refused.code() == grpc.StatusCode.INTERNAL and "secret" not in refused.details()


def test_what_is_called_is_counted() -> None:
    metrics = Metrics()
    with serve_grpc(FakeModels(), metrics=metrics) as endpoint:
        client = Client(endpoint.address)
        client.call("ModelInfer", infer_request("a"))
        client.refusal("ModelInfer", infer_request("a", model_name="weather"))
    counts = {
        dict(labels)["status"]: number
        for (name, labels), number in metrics.snapshot().items()
        if name == "bertha_requests_total"
        and dict(labels)["route"] == f"/{SERVICE}/ModelInfer"
        and dict(labels)["protocol"] == "grpc"
    }
    assert counts == {"200": 1, "404": 1}


def test_the_deadline_is_the_clients_and_a_call_past_it_is_dropped() -> None:
    models, metrics = HeldModels(), Metrics()
    with serve_grpc(models, metrics=metrics) as endpoint:
        client, data = Client(endpoint.address), infer_request("a").SerializeToString()
        call = client.unary("ModelInfer").future(data, timeout=0.5)
        assert call.exception(30).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert models.dropped.acquire(timeout=30)
        assert models.deadlines[0] is not None and models.deadlines[0] <= 0.5
        models.deadlines.clear()
        call = client.unary("ModelInfer").future(data)
        assert models.seen.acquire(timeout=30) and models.seen.acquire(timeout=30)
        assert models.deadlines == [None]  # as over HTTP, where the client says nothing
        call.cancel()
        assert models.dropped.acquire(timeout=30)
    left = [
        number
        for (name, labels), number in metrics.snapshot().items()
        if name == "bertha_requests_total" and ("status", "499") in labels
    ]
    assert sum(left) == 2


def test_a_stream_that_is_cancelled_drops_all_that_it_asked() -> None:
    models = HeldModels()
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        for _ in range(100):
            yield infer_request("a").SerializeToString()
        over.wait(30)

    with serve_grpc(models) as endpoint:
        client = Client(endpoint.address)
        call = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(messages())
        for _ in range(grpc_server.MAX_ASKED_OF_STREAM):
            assert models.seen.acquire(timeout=30)
        assert not models.seen.acquire(timeout=0.2)  # no more at once
        call.cancel()
        for _ in range(grpc_server.MAX_ASKED_OF_STREAM):
            assert models.dropped.acquire(timeout=30)
        over.set()
        assert client.call("ServerLive").live


def test_a_stream_is_answered_in_order_also_behind_refusals(client: Client) -> None:
    ids = [str(number) for number in range(100)]
    models = ["weather" if number % 7 == 3 else "sentiment" for number in range(100)]
    messages = [
        infer_request("a", "b", id=id_, model_name=name).SerializeToString()
        for id_, name in zip(ids, models, strict=True)
    ]
    answers = list(client.stream(iter(messages)))
    assert [each.infer_response.id for each in answers] == ids
    assert [bool(each.error_message) for each in answers] == [name == "weather" for name in models]
    with pytest.raises(grpc.RpcError) as raised:
        list(client.stream(iter([messages[0], b"\xff"])))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_that_is_open_does_not_hold_up_the_end() -> None:
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield infer_request("a").SerializeToString()
        over.wait(60)

    with serve_grpc(FakeModels()) as endpoint:
        answers = Client(endpoint.address).stream(messages())
        assert next(answers).infer_response.model_name == "sentiment"
        endpoint.begin_end()
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "open the stream again" in raised.value.details()
    over.set()


def test_what_is_under_way_is_answered_before_the_end() -> None:
    models = HeldModels()
    with serve_grpc(models) as endpoint:
        data = infer_request("a").SerializeToString()
        call = Client(endpoint.address).unary("ModelInfer").future(data)
        assert models.seen.acquire(timeout=30)
        endpoint.begin_end()
        models.go.set()
        assert message_class("ModelInferResponse").FromString(call.result(30)).outputs


LARGE = Limits(max_texts=4, max_body_bytes=100_000)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("num_bytes", [100_000, 200_000, 20_000_000])
def test_a_large_message_is_refused_compressed_or_not(
    compression: grpc.Compression | None, num_bytes: int
) -> None:
    with serve_grpc(FakeModels(limits=LARGE)) as endpoint:
        client = Client(endpoint.address)
        refused = client.refusal(
            "ModelInfer", infer_request("a" * num_bytes), compression=compression
        )
        expected = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refused.code() in expected
        small = infer_request("a" * 90_000)
        assert client.call("ModelInfer", small, compression=compression).outputs
        data = infer_request("a" * num_bytes).SerializeToString()
        with pytest.raises(grpc.RpcError) as raised:
            list(client.stream(iter([data]), compression=compression))
        assert raised.value.code() in expected


def test_calls_that_there_are_not_are_unimplemented(client: Client) -> None:
    for path in (f"/{SERVICE}/TraceSetting", "/manage/models", "/grpc.health.v1.Health/Check"):
        with pytest.raises(grpc.RpcError) as raised:
            client.channel.unary_unary(path)(b"", timeout=30)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_message_are_refused_and_the_next_is_answered(client: Client) -> None:
    chance, seen = random.Random(0), Counter[str]()
    good = infer_request("a", "b").SerializeToString()

    def ask(data: bytes) -> str:
        try:
            client.unary("ModelInfer")(data, timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def mutate() -> bytes:
        data = bytearray(chance.choice((good, chance.randbytes(chance.randrange(80)))))
        for _ in range(chance.randrange(4) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.choice((len(data), chance.randrange(len(data) + 1)))])

    with ThreadPoolExecutor(8) as threads:
        seen.update(threads.map(ask, [mutate() for _ in range(500)]))
    assert set(seen) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert len(seen) == 3 and ask(good) == "OK"


def test_a_call_that_ends_before_its_message_is_answered(client: Client) -> None:
    call = client.channel.stream_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        call(iter([]), timeout=30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "the call ends before its message"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HOSTILE = [
    b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + b"\0\0\0\4\0\0\0\0\0"
    + b"\0\0\5\1\5\0\0\0\1"
    + b"\xff" * 5,
    b"\x16\x03\x01" + b"\0" * 200,
    b"",
]


@pytest.mark.parametrize("data", HOSTILE)
def test_bytes_that_are_no_http2_end_their_connection_alone(client: Client, data: bytes) -> None:
    assert client.call("ServerLive").live
    host, _, port = client.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(65536):
            pass
    assert client.call("ServerLive").live


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf"])
def test_a_missing_package_is_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_grpc_packages()
    find = importlib.util.find_spec

    def find_other(name: str) -> Any:
        return None if name == missing else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)
    with pytest.raises(GRPCUnavailable, match=r'install "bertha-ray\[grpc\]"'):
        check_grpc_packages()
