"""Lists of owned machines that are right, or wrong at their edges."""

from typing import Any

import pytest

from cluster.validation.onprem import check_onprem
from cluster.validation.problem import ConfigProblem


def find(head: Any = "10.0.0.1", workers: Any = ("10.0.0.2",), **settings: Any) -> list[str]:
    listed = list(workers) if isinstance(workers, tuple) else workers
    provider = {"type": "local", "head_ip": head, "worker_ips": listed}
    return [str(problem) for problem in check_onprem({"provider": provider, **settings})]


@pytest.mark.parametrize("address", ["10.0.0.2", "gpu-2", "gpu-2.lan", "8gpus", "fd00::2"])
def test_addresses_and_host_names_are_right(address: str) -> None:
    assert find(workers=(address,)) == []


@pytest.mark.parametrize("address", ["8", "10.0.0", "10.0.0.256"])
def test_numbers_alone_must_be_an_address(address: str) -> None:
    (problem,) = find(workers=(address,))
    assert problem == (
        f"provider.worker_ips = '{address}': is not an address: four numbers up to 255"
    )


@pytest.mark.parametrize("address", ["192.0.2.7", "198.51.100.7", "203.0.113.7"])
def test_addresses_of_documentation_are_placeholders(address: str) -> None:
    (problem,) = find(workers=(address,))
    assert problem == (
        f"provider.worker_ips = '{address}': is a placeholder; fill in your machine's address"
    )
    assert find(workers=("198.51.101.7",)) == []


@pytest.mark.parametrize("name", ["gpu_2", "-gpu", "gpu-", "http://gpu"])
def test_a_word_that_is_no_host_name_is_refused(name: str) -> None:
    (problem,) = find(head=name)
    assert problem == f"provider.head_ip = '{name}': is neither an address nor a host name"


def test_a_loopback_head_is_wrong_only_where_there_are_workers() -> None:
    assert find(head="localhost", workers=()) == []
    (problem,) = find(head="::1")
    assert problem.startswith("provider.head_ip = '::1': is a loopback address")


def test_a_coordinator_lists_the_machines_itself() -> None:
    settings = {"provider": {"type": "local", "coordinator_address": "10.0.0.1:80"}}
    assert list(check_onprem(settings)) == []
    (problem,) = check_onprem({**settings, "worker_nodes": {"a": 1}})
    assert problem.field == "worker_nodes", "what Ray rejects is told all the same"


def test_max_workers_that_equals_the_list_is_right() -> None:
    assert find(max_workers=1) == []
    for number in (0, 2):
        (problem,) = find(max_workers=number)
        assert "1 machine(s) are listed in provider.worker_ips; remove max_workers" in problem


def test_each_repeated_worker_is_told_once_with_its_count() -> None:
    twice, thrice = "10.0.0.2", "10.0.0.3"
    problems = find(workers=(twice, thrice, twice, thrice, thrice))
    assert [problem.split(";")[0] for problem in problems] == [
        f"provider.worker_ips = '{twice}': is listed 2 times",
        f"provider.worker_ips = '{thrice}': is listed 3 times",
    ]


def test_a_file_without_machines_lacks_both_lists() -> None:
    missing = check_onprem({"provider": {"type": "local"}})
    assert list(missing) == [
        ConfigProblem("provider.head_ip", "missing; the address of the head node"),
        ConfigProblem("provider.worker_ips", "missing; a list of the other machines, [] for none"),
    ]
