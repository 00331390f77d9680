"""The doctor on a node: what it tries, what it says; and a look at a real Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from cluster.__main__ import main
from cluster.doctor import node_facts
from cluster.doctor.node_agent import NOT_SHARED, NodeAgent
from cluster.doctor.node_facts import DeviceList
from cluster.hardware import nics
from tests.support.paths import ROOT


class TestNodeAgent:
    """What is tried on a node, on this one."""

    def test_storage_that_is_shared(self, tmp_path: Path) -> None:
        one, other, place = NodeAgent(), NodeAgent(), str(tmp_path / "storage" / ".doctor")
        assert one.write_file(place, "one", "1", make_directory=True) == ""
        assert other.write_file(place, "other", "2", make_directory=False) == ""
        assert one.compare_files(place, {"one": "1", "other": "2"}) == {}
        one.remove_directory(place)
        other.remove_directory(place)
        assert list((tmp_path / "storage").iterdir()) == []

    def test_storage_that_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cluster.doctor.node_agent.VISIBLE_SECONDS", 0)
        one, other = NodeAgent(), NodeAgent()
        assert one.write_file(str(tmp_path / "a"), "one", "1", make_directory=True) == ""
        assert (
            other.write_file(str(tmp_path / "b"), "other", "2", make_directory=False) == NOT_SHARED
        )
        assert not (tmp_path / "b").exists()
        assert one.compare_files(str(tmp_path / "a"), {"one": "2", "other": "2"}) == {
            "one": "has other contents",
            "other": "not there",
        }

    def test_storage_that_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        why = NodeAgent().write_file(str(tmp_path / "file" / "x"), "one", "1", make_directory=True)
        assert "directory" in why.lower() or "exists" in why.lower()

    def test_who_listens_is_reached_and_who_does_not_is_told(self) -> None:
        one, other = NodeAgent(), NodeAgent()
        port = one.open_port()
        assert port == one.open_port()
        missed = other.try_connections({"one": ("127.0.0.1", port), "nobody": ("127.0.0.1", 1)})
        assert missed == {"nobody": "Connection refused"}
        one.close_port()
        assert set(other.try_connections({"one": ("127.0.0.1", port)})) == {"one"}

    def test_nobody_at_the_door(self) -> None:
        assert NodeAgent().probe_http("http://127.0.0.1:1/") == 0


class TestNodeFacts:
    """What this machine says."""

    def test_of_a_processor(self, tmp_path: Path) -> None:
        here = node_facts.collect_node_facts("cpu", {"cache": str(tmp_path / "not" / "made")})
        assert here.versions["ray"] == ray.__version__
        assert here.driver is None and here.torch is None
        assert 0 < here.space["cache"].free <= here.space["cache"].total
        assert "lo" not in {card.name for card in here.cards}

    def test_a_missing_driver_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(
            node_facts.DRIVER_QUERIES, "cuda", (("no-such-smi",), lambda text: ())
        )  # fmt: skip
        monkeypatch.setattr(node_facts, "TORCH_QUERY", "raise SystemExit('no torch')")
        here = node_facts.collect_node_facts("cuda", {})
        assert here.driver == DeviceList(trouble="no program no-such-smi")
        assert here.torch == DeviceList(trouble="no torch")

    def test_a_driver_sees_devices_that_ray_hides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tell = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"
        asked = ((sys.executable, "-c", tell), lambda text: tuple(text.split()))
        monkeypatch.setitem(node_facts.DRIVER_QUERIES, "cuda", asked)
        monkeypatch.setattr(node_facts, "TORCH_QUERY", "print('[]')")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert node_facts.collect_node_facts("cuda", {}).driver == DeviceList(("all",))

    def test_neuron_cores_are_counted_chip_by_chip(self) -> None:
        _, read = node_facts.DRIVER_QUERIES["neuron"]
        assert len(read(json.dumps([{"nc_count": 8}, {"nc_count": 8}]))) == 16

    def test_code_that_differs_has_another_name(self, tmp_path: Path) -> None:
        copies = []
        for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
            package = tmp_path / str(len(copies)) / "cluster"
            (package / "doctor").mkdir(parents=True)
            (package / "hardware").mkdir()
            source = Path(node_facts.__file__).read_text()
            cards = Path(nics.__file__).read_text()
            (package / "doctor" / "node_facts.py").write_text(source)
            (package / "hardware" / "nics.py").write_text(cards)
            (package / "hardware" / "types.py").write_text("Kind = str\n")
            (package / "__init__.py").write_text(text)
            tell = "from cluster.doctor.node_facts import *; print(collect_versions())"
            done = subprocess.run(
                [sys.executable, "-S", "-c", tell], capture_output=True, text=True,
                cwd=package.parent, check=True,
            )  # fmt: skip
            copies.append(done.stdout)
        assert copies[0] == copies[2] != copies[1]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes of Ray on this machine."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
class TestARealRay:
    """Two nodes, which lack a token at most."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Callable[..., str]:
        def written(**metadata: Any) -> str:
            addresses = [node["NodeManagerAddress"] for node in ray.nodes()]
            provider = {"type": "local", "head_ip": addresses[0], "worker_ips": addresses[1:]}
            known = {"storage": str(tmp_path / "runs"), "cache": str(tmp_path), **metadata}
            path = tmp_path / "two.yaml"
            path.write_text(yaml.safe_dump({"provider": provider, "metadata": known}))
            return str(path)

        return written

    def test_nothing_but_the_token_is_missed(
        self,
        nodes: Cluster,
        file: Callable[..., str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        # An earlier test of this process may have made Ray ask for its token.
        missed = [] if os.environ.get("RAY_AUTH_MODE") == "token" else ["token"]
        assert main(["doctor", file(), "--json"]) == len(missed)
        known = json.loads(capsys.readouterr().out)
        assert [found["check"] for found in known["findings"]] == missed
        assert len(known["nodes"]) == 2
        (timed,) = known["links"]
        assert timed["seconds"] > 0 and timed["num_ranks"] == 2
        assert list((tmp_path / "runs").iterdir()) == []

    def test_storage_that_is_each_node_s_own(
        self, nodes: Cluster, file: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["doctor", file(storage="runs")]) == 1
        printed = capsys.readouterr().out
        assert "storage: two: metadata.storage = 'runs': each node has" in printed
        assert "fix: name a directory that all nodes mount" in printed


@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265"])
def test_without_a_ray_it_says_where_it_stands(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "doctor", "local.yaml"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert done.returncode == 2
    assert f"error: no live Ray at RAY_ADDRESS = {address}" in done.stderr
    assert "ray job submit" in done.stderr
