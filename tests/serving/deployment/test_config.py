"""How many replicas a load asks for, and which names an endpoint answers to."""

import argparse
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.settings import SettingsError, validate_settings
from serving import commands
from serving.deployment.config import (
    EndpointConfig,
    desired_replicas,
    limit_per_node,
    suggest_replicas,
)


@pytest.mark.parametrize(
    ("replicas", "busy", "waited", "expected"),
    [
        (1, 0.0, 0.0, 1),
        (1, 0.7, 0.0, 1),
        (1, 0.9, 0.0, 2),
        (2, 0.2, 0.0, 1),
        (2, 0.69, 0.0, 2),
        (2, 0.5, 0.5, 3),  # the queue says more than the engines
        (4, 1.0, 9.0, 6),
        (1, 1.0, 9.0, 2),
        (0, 0.0, 0.0, 1),
    ],
)
def test_replicas_follow_the_load(replicas: int, busy: float, waited: float, expected: int) -> None:
    assert desired_replicas(replicas, busy, waited) == expected


@pytest.mark.parametrize(
    ("replicas", "cores", "expected"),
    [
        (2, [8], 2),
        (2, [8, 8], 2),
        (2, [8, 8, 8], 1),
        (4, [8, 8, 8], 2),
        (7, [8, 8, 8], 4),
        (1, [8] * 9, 1),
        (3, [], 3),
        (6, [8, 1, 1], 4),  # 3 each would leave one without a place
        (6, [2, 2, 1], 6),  # no limit makes room for all
    ],
)
def test_a_lost_node_takes_no_more_than_its_share(
    replicas: int, cores: list[int], expected: int
) -> None:
    assert limit_per_node(replicas, cores) == expected
    assert expected * max(1, len(cores) - 1) >= replicas  # there is room for all without one


@pytest.mark.parametrize(
    ("cores", "memory", "expected"), [(1, 64, 1), (2, 24, 2), (16, 12, 8), (8, 1, 1)]
)
def test_a_replica_a_core_where_memory_allows(cores: int, memory: float, expected: int) -> None:
    assert suggest_replicas(cores, memory) == expected


@pytest.mark.parametrize(
    ("host", "allowed", "checks"),
    [
        ("127.0.0.1", (), True),
        ("127.0.0.9", (), True),
        ("localhost", (), True),
        ("::1", (), True),
        ("0.0.0.0", (), False),
        ("::", (), False),
        ("10.0.0.1", (), False),
        ("box.lan", (), False),
        ("0.0.0.0", ("box.lan",), True),
    ],
)
def test_names_are_checked_on_loopback_and_where_some_are_given(
    host: str, allowed: tuple[str, ...], checks: bool
) -> None:
    endpoint = EndpointConfig(registry="r", host=host, allowed_hosts=allowed)
    assert (endpoint.host_names is not None) is checks


@pytest.mark.parametrize("host", ["box.lan", "10.0.0.1", "fd00::1"])
def test_an_endpoint_answers_to_its_own_address(host: str) -> None:
    names = EndpointConfig(registry="r", host=host, allowed_hosts=("other",)).host_names
    assert names is not None
    shown = f"[{host}]:8000" if ":" in host else f"{host}:8000"
    names.check_headers([(b"host", shown.encode())])


def test_hosts_are_allowed_on_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    commands.add_endpoint_arguments(parser)
    options = parser.parse_args(["--allow-host", "box.lan", "--allow-host", "Box"])
    assert commands.endpoint_from_options(options, "r").allowed_hosts == ("box.lan", "Box")
    with pytest.raises(SettingsError, match="'box:1' is no host name"):
        commands.endpoint_from_options(parser.parse_args(["--allow-host", "box:1"]), "r")


def test_grpc_is_off_until_the_command_line_asks_for_it() -> None:
    parser = argparse.ArgumentParser()
    commands.add_endpoint_arguments(parser)
    assert not commands.endpoint_from_options(parser.parse_args([]), "r").grpc
    assert commands.endpoint_from_options(parser.parse_args(["--grpc"]), "r").grpc


def test_a_link_to_keys_stays_one(tmp_path: Path) -> None:
    (tmp_path / "now").write_text("")
    (tmp_path / "keys").symlink_to(tmp_path / "now")
    parser = argparse.ArgumentParser()
    commands.add_endpoint_arguments(parser)
    options = parser.parse_args(["--keys", str(tmp_path / "keys")])
    assert commands.endpoint_from_options(options, "r").keys == tmp_path / "keys"


@pytest.mark.parametrize(
    "name", ["http://box.lan", "box.lan:80", "*.lan", "", "a b", "box.lan/x", "fd00::1", "b\u00fcx"]
)
def test_an_allowed_host_is_a_name_alone(name: str) -> None:
    with pytest.raises(SettingsError, match="is no host name; give a name or an address alone"):
        validate_settings(EndpointConfig, {"registry": "r", "allowed_hosts": (name,)}, "options")


def test_answers_are_kept_only_where_memory_is_given_for_them() -> None:
    parser = argparse.ArgumentParser()
    commands.add_endpoint_arguments(parser)
    assert commands.endpoint_from_options(parser.parse_args([]), "r").response_bytes == 0
    options = parser.parse_args(["--cache-mib", "1.5"])
    assert commands.endpoint_from_options(options, "r").response_bytes == 3 << 19
    with pytest.raises(ValidationError, match="cache_mib"):
        EndpointConfig(registry="r", cache_mib=-1)
