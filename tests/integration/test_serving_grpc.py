"""tritonclient over gRPC, unmodified: at a replica, and at the port of HTTP through HAProxy."""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from serving.deployment import haproxy as haproxy_module
from serving.deployment.config import EndpointConfig
from serving.deployment.front import Heartbeat, ReplicaTable
from serving.deployment.haproxy import HAProxy
from serving.deployment.server import ReplicaServer
from serving.engine.engine import Engine
from serving.http import keys
from serving.http.grpc_server import HOST_KEY
from serving.http.hosts import HostNames
from serving.interface import Limits
from serving.registry.registry import Registry
from tests.support.fake_models import FakeModels, fake_prediction
from tests.support.grpc_servers import serve_grpc
from tests.support.haproxies import (
    RawReplica,
    certified,
    count_requests,
    free_port,
    wait_until,
)
from tests.support.model_servers import make_registry
from tests.support.paths import ROOT
from tests.support.tiny_bundle import write_tiny_bundle

SCRIPT = ROOT / "tests/support/replica_process.py"
TEXTS = ["a warm, funny film", "ü\U0001f3ac zwei Stunden", 'a "dull" plot\nand cast']
ROUNDING = 1e-5


class Served(NamedTuple):
    """An endpoint, and the scores that its model gives when it is asked without it."""

    address: str
    scores: Callable[[Sequence[str]], Any]
    model: str


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Registry:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("grpc") / "bundle", tiny_bert)
    return make_registry(tmp_path_factory.mktemp("registry"), bundle, "sentiment")


@pytest.fixture(
    scope="module",
    params=["made up", pytest.param("behind HAProxy", marks=pytest.mark.multiprocess)],
)
def served(
    request: pytest.FixtureRequest, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    if request.param == "made up":
        with serve_grpc(FakeModels(limits=Limits())) as endpoint:

            def made_up(texts: Sequence[str]) -> list[Any]:
                return [fake_prediction(text, "classification", 2).scores for text in texts]

            yield Served(endpoint.address, made_up, "sentiment")
        return
    server = ReplicaServer(EndpointConfig(registry=registry.address, grpc=True), "127.0.0.1")
    server.start()
    engine = Engine.load(registry.fetch_bundle("sentiment", "1", Path("unused"), None))
    haproxy, port = start_haproxy(tmp_path_factory.mktemp("haproxy"))
    ReplicaTable(haproxy).heartbeat(Heartbeat(server.address, grpc_address=server.grpc_address))
    yield Served(
        f"127.0.0.1:{port}",
        lambda texts: [each.scores for each in engine.predict(list(texts))],
        "sentiment",
    )
    haproxy.stop()
    server.stop()


def start_haproxy(directory: Path, certificate: Path | None = None) -> tuple[HAProxy, int]:
    port = free_port()
    haproxy = HAProxy(directory / "run", "127.0.0.1", port, certificate, grpc=True)
    haproxy.start()
    return haproxy, port


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as found:
        yield found


def tensor(texts: Sequence[str]) -> triton.InferInput:
    found = triton.InferInput("text", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([text.encode() for text in texts], object))
    return found


def assert_scores(result: triton.InferResult, served: Served, texts: Sequence[str]) -> None:
    expected = np.array(served.scores(texts))
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=ROUNDING)
    assert result.as_numpy("label").shape == (len(texts),)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(
    served: Served, client: triton.InferenceServerClient, compression: str | None
) -> None:
    result = client.infer(
        served.model, [tensor(TEXTS)], request_id="7", compression_algorithm=compression
    )
    assert_scores(result, served, TEXTS)
    assert result.get_response().id == "7"
    outputs = [triton.InferRequestedOutput("probabilities", class_count=1)]
    (found,) = client.infer(served.model, [tensor(TEXTS[:1])], outputs=outputs).as_numpy(
        "probabilities"
    )
    assert found[0].count(b":") == 2


def test_contents_are_read_as_raw_tensors_are(
    served: Served, client: triton.InferenceServerClient
) -> None:
    request = triton.service_pb2.ModelInferRequest(model_name=served.model)
    given = request.inputs.add(name="text", datatype="BYTES", shape=[3])
    given.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    with grpc.insecure_channel(served.address) as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        result = triton.InferResult(stub.ModelInfer(request, timeout=30))
    assert_scores(result, served, TEXTS)


def test_calls_that_wait_for_none(served: Served, client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(20):
        client.async_infer(
            served.model,
            [tensor(TEXTS)],
            callback=lambda result, error: answers.put((result, error)),
        )
    for _ in range(20):
        result, error = answers.get(timeout=60)
        assert error is None
        assert_scores(result, served, TEXTS)


def test_a_stream(served: Served, client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(20):
        model = "weather" if number == 3 else served.model
        client.async_stream_infer(model, [tensor(TEXTS)], request_id=str(number))
    for number in range(20):
        result, error = answers.get(timeout=60)
        if number == 3:
            assert result is None and "weather" in error.message()
        else:
            assert error is None and result.get_response().id == str(number)
            assert_scores(result, served, TEXTS)
    # It stays open, and is asked again.
    client.async_stream_infer(served.model, [tensor(TEXTS)])
    assert_scores(answers.get(timeout=60)[0], served, TEXTS)
    client.stop_stream()


def test_what_is_known(served: Served, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(served.model) and not client.is_model_ready("weather")
    assert client.get_server_metadata().name == "bertha"
    metadata = client.get_model_metadata(served.model)
    assert [each.name for each in metadata.outputs] == ["label", "probabilities"]
    config = client.get_model_config(served.model).config
    assert config.max_batch_size == Limits().max_texts
    index = client.get_model_repository_index().models
    assert (served.model, "READY") in [(each.name, each.state) for each in index]
    before = client.get_inference_statistics(served.model).model_stats[0].inference_count
    assert before >= 0


def refusal(ask: Callable[[], Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as raised:
        ask()
    return raised.value


def test_what_is_refused(served: Served, client: triton.InferenceServerClient) -> None:
    def ask(*texts: str, model: str = served.model, **options: Any) -> str | None:
        error = refusal(lambda: client.infer(model, [tensor(texts)], **options))
        status: str | None = error.status()
        return status

    numbers = triton.InferInput("text", [1], "FP32")
    numbers.set_data_from_numpy(np.zeros(1, np.float32))
    error = refusal(lambda: client.infer(served.model, [numbers]))
    assert error.status() == "StatusCode.INVALID_ARGUMENT" and "BYTES" in error.message()
    assert ask("a", model="weather") == "StatusCode.NOT_FOUND"
    assert ask("a", model_version="99") == "StatusCode.NOT_FOUND"
    many = ["a"] * (Limits().max_texts + 1)
    assert ask(*many) == "StatusCode.INVALID_ARGUMENT"
    assert ask(" ") == "StatusCode.INVALID_ARGUMENT"
    assert ask("a" * (Limits().max_body_bytes + 1)) in (
        "StatusCode.RESOURCE_EXHAUSTED",
        "StatusCode.INVALID_ARGUMENT",
    )
    shared = triton.InferInput("text", [1], "BYTES")
    shared.set_shared_memory("region", 10)
    error = refusal(lambda: client.infer(served.model, [shared]))
    assert "shared memory is not offered" in error.message()
    error = refusal(lambda: client.register_system_shared_memory("region", "/key", 10))
    assert error.status() == "StatusCode.UNIMPLEMENTED"


class Process:
    """A replica in a process of its own."""

    def __init__(self, registry: Registry) -> None:
        command = [sys.executable, str(SCRIPT), registry.address, "grpc"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def heartbeat(self) -> Heartbeat:
        assert self.process.stdout is not None
        address, grpc_address = self.process.stdout.readline().split()
        return Heartbeat(address, grpc_address=grpc_address)


@pytest.mark.multiprocess
def test_no_call_is_lost_while_replicas_die_and_come_and_go(
    registry: Registry, tmp_path: Path
) -> None:
    haproxy, port = start_haproxy(tmp_path)
    one, two = Process(registry), Process(registry)
    replicas = ReplicaTable(haproxy)
    first, second = one.heartbeat(), two.heartbeat()
    assert (replicas.heartbeat(first), replicas.heartbeat(second)) == (1, 2)
    seen: Counter[str] = Counter()
    over = threading.Event()

    def send_calls() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not over.is_set():
                try:
                    client.infer("sentiment", [tensor(TEXTS[:1])])
                    seen["OK"] += 1
                except InferenceServerException as error:
                    seen[f"{error.status()}: {error.message()}"] += 1

    def wait_for(number: int) -> None:
        before = seen["OK"]
        wait_until(lambda: seen["OK"] >= before + number)

    threads = [threading.Thread(target=send_calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(50)
    # It takes calls and does not answer: it has them when it is killed.
    one.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: count_requests(haproxy, 1, haproxy_module.GRPC_BACKEND) > 0)
    one.process.kill()
    one.process.communicate()
    wait_for(50)
    three = Process(registry)
    third = three.heartbeat()
    replicas.heartbeat(third)
    replicas.remove_replica(first.address)
    wait_for(50)
    found = {slot.address: slot.grpc_address for slot in haproxy.list_slots()}
    assert found == {each.address: each.grpc_address for each in (second, third)}
    replicas.drain_replica(second.address)
    time.sleep(0.3)
    two.process.communicate(timeout=60)
    replicas.remove_replica(second.address)
    wait_for(50)
    over.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {"OK"}
    replicas.remove_replica(third.address)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        error = refusal(lambda: client.infer("sentiment", [tensor(TEXTS)]))
    assert error.status() == "StatusCode.UNAVAILABLE" and "no replica is ready" in error.message()
    three.process.communicate(timeout=60)
    haproxy.stop()


@pytest.mark.multiprocess
def test_tls_is_that_of_http(tmp_path: Path) -> None:
    certificate = certified(tmp_path / "both.pem")
    haproxy, port = start_haproxy(tmp_path, certificate)
    try:
        with serve_grpc(FakeModels()) as endpoint, RawReplica(b"") as replica:
            slot = Heartbeat(replica.address, grpc_address=endpoint.address)
            ReplicaTable(haproxy).heartbeat(slot)
            options = {"ssl": True, "root_certificates": str(certificate)}
            with triton.InferenceServerClient(f"localhost:{port}", **options) as client:
                assert client.is_server_live()
                assert client.infer("sentiment", [tensor(TEXTS)]).as_numpy("label").shape == (3,)
            with triton.InferenceServerClient(f"localhost:{port}") as client:
                error = refusal(client.is_server_live)
                assert error.status() == "StatusCode.UNAVAILABLE"
    finally:
        haproxy.stop()


@pytest.mark.multiprocess
def test_a_name_from_elsewhere_is_refused_through_haproxy(tmp_path: Path) -> None:
    haproxy, port = start_haproxy(tmp_path)
    try:
        hosts = HostNames(["127.0.0.1"])
        with serve_grpc(FakeModels(), hosts=hosts) as endpoint, RawReplica(b"") as replica:
            slot = Heartbeat(replica.address, grpc_address=endpoint.address)
            ReplicaTable(haproxy).heartbeat(slot)
            path = "/inference.GRPCInferenceService/ServerLive"
            for name, metadata in (("evil.example", ()), ("localhost", ((HOST_KEY, "evil"),))):
                options = [("grpc.default_authority", name)]
                with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                    ask = channel.unary_unary(path)
                    if name == "localhost":  # what a client says of it itself does not count
                        ask(b"", metadata=metadata, timeout=30)
                        continue
                    with pytest.raises(grpc.RpcError) as raised:
                        ask(b"", timeout=30)
                    assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    finally:
        haproxy.stop()


def test_http_and_grpc_share_keys_deadlines_and_answers(registry: Registry, tmp_path: Path) -> None:
    secret = keys.add_key(tmp_path / "keys.jsonl", "mine", ("inference", "metrics"))
    config = EndpointConfig(registry=registry.address, grpc=True, keys=tmp_path / "keys.jsonl")
    server = ReplicaServer(config, "127.0.0.1")
    server.start()
    headers = {"authorization": f"Bearer {secret}"}
    with triton.InferenceServerClient(server.grpc_address) as client:
        error = refusal(lambda: client.infer("sentiment", [tensor(TEXTS)]))
        assert error.status() == "StatusCode.UNAUTHENTICATED"
        result = client.infer("sentiment", [tensor(TEXTS)], headers=headers)
        late = refusal(
            lambda: client.infer("sentiment", [tensor(TEXTS)], timeout=1, headers=headers)
        )
        assert late.status() == "StatusCode.DEADLINE_EXCEEDED"
        error = refusal(lambda: client.load_model("sentiment", headers=headers))
        assert error.status() == "StatusCode.PERMISSION_DENIED"
    with triton_http.InferenceServerClient(server.address) as client:
        given = triton_http.InferInput("text", [3], "BYTES")
        given.set_data_from_numpy(np.array([text.encode() for text in TEXTS], object))
        other = client.infer("sentiment", [given], headers=dict(headers))
    expected = other.as_numpy("probabilities")
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=ROUNDING)
    metrics = httpx.get(f"http://{server.address}/metrics", headers=headers).text
    assert 'route="/inference.GRPCInferenceService/ModelInfer",status="200"' in metrics
    server.stop()
