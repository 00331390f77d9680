"""HAProxy alone: whose files and processes it trusts, its end, and the paths that it compares."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import grpc
import pytest

from cluster.private_files import UnsafePathError
from serving import protocols
from serving.deployment import haproxy as haproxy_module
from serving.deployment.haproxy import READY_PATH, HAProxy, HAProxyError, ServerSlot, render_config
from serving.http.messages import HTTPError
from serving.http.routing import Router
from serving.protocols.oip_grpc.messages import SERVICE
from tests.support.haproxies import RawReplica, balanced, find_haproxy, free_port, send_raw

pytestmark = pytest.mark.multiprocess

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


def get(target: str, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()


def status(port: int, target: str, method: str = "GET") -> int:
    return int(send_raw(port, get(target, method)).split(b" ")[1])


# Whose files and processes.


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(UnsafePathError, match="others may write"):
        HAProxy(directory, "127.0.0.1", free_port()).start()
    assert list(directory.iterdir()) == []


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        HAProxy(tmp_path / "run", "127.0.0.1", free_port()).start()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_its_files_are_closed_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with balanced(directory):
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {each.name for each in directory.iterdir()} == {"admin.sock", "haproxy.cfg", "log"}
        assert {each.stat().st_mode & 0o077 for each in directory.iterdir()} == {0}
    assert not directory.exists()


def test_a_path_too_long_for_a_socket_is_none_too_long(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 20) / ("longer" * 20)
    with balanced(directory) as (haproxy, _, port), RawReplica(OK) as replica:
        haproxy.enable_slot(ServerSlot(3, replica.address))
        assert haproxy.list_slots() == [ServerSlot(3, replica.address)]
        assert status(port, "/predict") == 200


def test_files_that_lie_there_are_replaced_and_not_followed(tmp_path: Path) -> None:
    directory, victim = tmp_path / "run", tmp_path / "victim"
    directory.mkdir()
    victim.write_text("precious")
    (directory / "haproxy.cfg").symlink_to(victim)
    (directory / "log").symlink_to(victim)
    with balanced(directory) as (_, _, port):
        assert status(port, "/") == 503
    assert victim.read_text() == "precious"


PLANTED = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    while True:
        with listener.accept()[0] as connection:
            if connection.recv(100):
                connection.sendall(b"Pid: 1\\n")
"""


def test_a_socket_of_another_program_is_not_adopted(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "haproxy.cfg").write_text(render_config(f"127.0.0.1:{port}"))
    haproxy = HAProxy(tmp_path, "127.0.0.1", port)
    command = [sys.executable, "-c", PLANTED, str(tmp_path / "admin.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"listens\n"
        haproxy.start()
        assert status(port, "/") == 503
        haproxy.stop()
        assert other.poll() is None
        other.kill()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called haproxy."""
    with subprocess.Popen(["haproxy", "600"], executable="/bin/sleep") as process:
        yield process
        process.kill()


def test_a_process_that_a_file_names_is_not_signalled(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "pid").write_text(f"{bystander.pid}\n")
    with balanced(tmp_path):
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        bystander.wait(0.2)


def test_one_of_the_same_configuration_is_adopted_and_one_of_another_replaced(
    tmp_path: Path,
) -> None:
    with balanced(tmp_path) as (haproxy, _, port):
        first = find_haproxy(tmp_path)
        haproxy.enable_slot(ServerSlot(7, "127.0.0.1:9"))
        adopter = HAProxy(tmp_path, "127.0.0.1", port)
        adopter.start()
        assert find_haproxy(tmp_path) == first
        assert adopter.list_slots() == [ServerSlot(7, "127.0.0.1:9")]
        other = free_port()
        changed = HAProxy(tmp_path, "127.0.0.1", other)
        changed.start()
        assert find_haproxy(tmp_path) != first
        assert first.wait(60) is None  # no child of this process, so no status
        assert status(other, "/") == 503 and changed.list_slots() == []
        changed.stop()


def test_that_of_another_cluster_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    port = free_port()
    theirs = HAProxy(tmp_path, "127.0.0.1", port, while_lives=bystander.pid)
    theirs.start()
    running = find_haproxy(tmp_path)
    ours = HAProxy(tmp_path, "127.0.0.1", port)
    with pytest.raises(HAProxyError, match=f"process {bystander.pid} serves there"):
        ours.start()
    ours.stop()
    assert find_haproxy(tmp_path) == running
    assert theirs.is_alive()
    bystander.kill()
    bystander.wait()
    running.wait(60)  # it ends with the process whose it is
    theirs.stop()


# Its end.


def test_it_is_started_again_with_its_replicas_and_nobody_is_refused(tmp_path: Path) -> None:
    with balanced(tmp_path) as (haproxy, _, port), RawReplica(OK) as one, RawReplica(OK) as two:
        slots = [ServerSlot(2, one.address), ServerSlot(256, two.address)]
        for _ in range(3):
            find_haproxy(tmp_path).kill()
            assert haproxy.wait_for_end(60)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as waiting:
                waiting.sendall(get("/predict"))
                haproxy.restart(slots)
                assert waiting.recv(12) == b"HTTP/1.1 200"
            assert haproxy.list_slots() == slots
            assert not haproxy.wait_for_end(0)


def test_one_that_cannot_be_started_says_why_and_can_be_later(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with balanced(directory) as (haproxy, _, port):
        config = "no such word\n"
        original, haproxy_module._CONFIG_TEMPLATE = haproxy_module._CONFIG_TEMPLATE, config
        try:
            haproxy.kill()
            assert haproxy.wait_for_end(60)
            with pytest.raises(HAProxyError, match="unknown keyword 'such'"):
                haproxy.restart()
        finally:
            haproxy_module._CONFIG_TEMPLATE = original
        assert haproxy.wait_for_end(0)
        with socket.socket() as holder:  # the port was given up, so that nobody waits there
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", port))
            holder.listen()
            with pytest.raises(HAProxyError, match="Address already in use"):
                haproxy.restart()
        haproxy.restart([ServerSlot(1, "127.0.0.1:9")])
        assert haproxy.list_slots() == [ServerSlot(1, "127.0.0.1:9")]


def test_one_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with balanced(tmp_path) as (haproxy, _, _):
        running = find_haproxy(tmp_path)
        monkeypatch.setattr(haproxy_module, "ANSWER_SECONDS", 0.1)
        running.send_signal(signal.SIGSTOP)
        assert not haproxy.is_alive()
        haproxy.stop()
        running.wait(60)


# Its own errors.


def own_error(port: int, request: bytes) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and JSON of what HAProxy itself answers."""
    head, _, body = send_raw(port, request).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["content-type"] == "application/json"
    said = json.loads(body)
    assert set(said) == {"error"} and int(headers["content-length"]) == len(body)
    return int(first.split(" ")[1]), headers, said


def test_every_error_of_its_own_is_json_and_has_the_id_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = haproxy_module._CONFIG_TEMPLATE
    for slow in ("http-request 15s", "server 600s"):
        assert slow in quick
        quick = quick.replace(slow, f"{slow.split()[0]} 300ms")
    monkeypatch.setattr(haproxy_module, "_CONFIG_TEMPLATE", quick)
    half = (
        b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nx-request-id: mine\r\n\r\nhal"
    )
    with (
        balanced(tmp_path) as (haproxy, _, port),
        RawReplica(b"") as gone,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        status, headers, _ = own_error(port, get("/predict"))
        assert status == 503 and headers["retry-after"] == "1" and headers["x-request-id"]
        own = get("/predict").replace(b"\r\n", b"\r\nx-request-id: mine\r\n", 1)
        assert own_error(port, own)[1]["x-request-id"] == "mine"
        haproxy.enable_slot(ServerSlot(1, gone.address))
        assert own_error(port, get("/predict"))[0] == 502
        haproxy.disable_slot(1)
        haproxy.enable_slot(ServerSlot(2, f"127.0.0.1:{silent.getsockname()[1]}"))
        assert own_error(port, get("/predict"))[0] == 504
        assert own_error(port, get("/-/replica"))[0] == 404
        assert own_error(port, get("/predict%"))[0] == 400
        assert (
            own_error(port, get("h:80", "CONNECT").replace(b"Host: h\r", b"Host: h:80\r"))[0] == 400
        )
        status, headers, said = own_error(port, half)
        assert status == 408 and headers["x-request-id"]
        assert said == {"error": "the request took too long to arrive"}


def test_each_error_that_it_could_write_is_json() -> None:
    config = render_config("127.0.0.1:1")
    for code in (
        400,
        401,
        403,
        404,
        405,
        407,
        408,
        410,
        413,
        421,
        422,
        425,
        429,
        500,
        501,
        502,
        503,
        504,
    ):
        assert f"http-error status {code} content-type application/json" in config


@pytest.mark.parametrize("origins", [(), ("https://app.example", "http://localhost:3000"), ("*",)])
def test_pages_that_may_read_answers_may_read_its_errors(
    origins: tuple[str, ...], tmp_path: Path
) -> None:
    shared = b"HTTP/1.1 200 OK\r\nx-request-id: theirs\r\nContent-Length: 0\r\n\r\n"
    with balanced(tmp_path, origins) as (haproxy, _, port), RawReplica(shared) as replica:
        for origin in ("https://app.example", "https://evil.example", "null", ""):
            request = get("/predict").replace(b"\r\n", f"\r\nOrigin: {origin}\r\n".encode(), 1)
            _, headers, _ = own_error(port, request)
            allowed = "*" if origins == ("*",) else origin if origin in origins else None
            assert headers.get("access-control-allow-origin") == allowed, origin
            if allowed is not None:
                assert headers["access-control-expose-headers"] == "retry-after, x-request-id"
            assert headers.get("vary") == ("Origin" if len(origins) > 1 else None)
        # What a replica wrote stays as it is: it knows which of its routes are shared.
        haproxy.enable_slot(ServerSlot(1, replica.address))
        answer = send_raw(
            port, get("/").replace(b"\r\n", b"\r\nOrigin: https://app.example\r\n", 1)
        )
        assert b"200 OK" in answer and b"access-control" not in answer
        assert answer.count(b"x-request-id: theirs") == 1 and b"vary" not in answer.lower()


# Paths.

SPELLINGS = [
    READY_PATH,
    "/%2d/replica",
    "/%2D/replica",
    "/-/%72eplica",
    "/-%2Freplica",
    "/%2d%2f%72%65%70%6c%69%63%61",
    "//-/replica",
    "/-//replica",
    "/-/replica/",
    "/-/./replica",
    "/x/../-/replica",
    "/x/%2e%2e/-/replica",
    "/-/replica?x=%zz",
    "/-/replica#x",
    "http://h/-/replica",
    "HTTP://h:80/%2d/replica",
    "/-/replica%00",
    "/%2d/replica%",
]


def test_the_readiness_of_a_replica_is_told_to_nobody(tmp_path: Path) -> None:
    with balanced(tmp_path) as (haproxy, _, port), RawReplica(OK) as replica:
        haproxy.enable_slot(ServerSlot(1, replica.address))
        seen = {target: status(port, target) for target in SPELLINGS}
        assert set(seen.values()) == {400, 404}
        assert {target for target in seen if seen[target] == 400} == {
            "/-/replica#x",
            "/%2d/replica%",
        }
        assert replica.targets == []
        body = send_raw(port, get("/%2d/replica"))
        assert b"content-type: application/json" in body and body.endswith(b'see /docs"}')
        # What is no secret arrives as it was sent.
        for target in ("/v2/models/caf%c3%a9", "/a%2Fb?x=%2d", "/%252d/replica", "/-x/replica"):
            assert status(port, target) == 200
        assert replica.targets == [
            "/v2/models/caf%c3%a9",
            "/a%2Fb?x=%2d",
            "/%252d/replica",
            "/-x/replica",
        ]


CHANGES = [
    "/manage/models?url=x",
    "/%6danage/models?url=x",
    "/%6D%61%6e%61%67%65/models",
    "/manage%2Fmodels",
    "/manage/models/%zz",
    "/%6danage/models/%",
    "/v2/repository/models/a/load",
    "/v2/%72epository/models/a/load",
    "/v2%2frepository%2fmodels%2fa%2funload",
    "http://h/%6danage/models",
    "/team/bertha/manage/models?url=x",
    "/team/%6danage/models",
    "/feedback",
    "/%66eedback",
]


def changes_something(target: str) -> bool:
    """Whether a replica finds a route there that changes the registry or adds a row."""
    path = unquote(target.removeprefix("http://h").partition("?")[0])
    try:
        route = Router(protocols.ALL).match("POST", path).route
        return route.scope == "management" or route.path == "/feedback"
    except HTTPError:
        return False


def test_what_changes_something_is_never_sent_twice(tmp_path: Path) -> None:
    assert sum(map(changes_something, CHANGES)) >= 7  # and below a prefix those behind it
    with balanced(tmp_path) as (haproxy, _, port), RawReplica(b"") as one, RawReplica(b"") as two:
        haproxy.enable_slot(ServerSlot(1, one.address))
        haproxy.enable_slot(ServerSlot(2, two.address))
        for target in CHANGES:
            answered = status(port, target, "POST")
            assert answered in (400, 502)
            assert [*one.targets, *two.targets] == [target] * (answered == 502), target
            assert answered == 502 or not changes_something(target)
            one.targets.clear()
            two.targets.clear()
        assert status(port, "/predict", "POST") == 502
        assert len(one.targets) + len(two.targets) == 4  # it is tried again three times
        assert one.targets and two.targets


def test_grpc_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = f"/{SERVICE}/ServerLive"
    with (
        balanced(tmp_path) as (haproxy, _, port),
        RawReplica(NOT_FOUND) as replica,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        haproxy.enable_slot(ServerSlot(1, replica.address, replica.address))
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(b"", timeout=30)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert replica.targets == [path]  # of HTTP, where there is no such route
    assert "grpc" not in render_config("127.0.0.1:1")


def test_every_route_that_changes_something_is_among_those() -> None:
    routes = [route for protocol in protocols.ALL for route in protocol.routes]
    changing = [route.path for route in routes if route.scope == "management"]
    assert changing
    assert all(path.startswith(("/manage", "/v2/repository")) for path in changing)


def test_an_address_of_ipv6_has_brackets(tmp_path: Path) -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    haproxy = HAProxy(tmp_path, "::1", free_port())
    haproxy.start()
    try:
        assert "[::1]:" in (tmp_path / "haproxy.cfg").read_text()
    finally:
        haproxy.stop()
