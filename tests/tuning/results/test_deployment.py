"""The winner under a name that serving knows."""

from pathlib import Path

import pytest
import yaml

from cluster.errors import BerthaError
from serving.registry.registry import Registry
from tests.support.tiny_bundle import write_tiny_bundle
from tuning.__main__ import main
from tuning.results import deployment


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "mine", tiny_bert)


def test_the_newest_winner_is_the_best(bundle: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "registry")
    deployment.check_registration("sentiment", address)
    assert not (tmp_path / "registry").exists(), "asking changes nothing"
    assert deployment.register_winner(bundle, "sentiment", address, "a note") == "sentiment:1"
    assert deployment.register_winner(bundle, "sentiment", address, "a better one") == "sentiment:2"
    state = Registry.open(address).read_state("sentiment")
    assert state.aliases == {"best": "2"} and state.live is None, "what answers stays as it is"
    assert state.versions["2"].note == "a better one"


@pytest.mark.parametrize(
    ("name", "registry", "said"),
    [
        ("Sentiment!", "registry", "'Sentiment!' is no name of a model"),
        ("sentiment@best", "registry", "is no name of a model"),
        ("sentiment", "file", "file is not a directory; name another"),
        ("sentiment", "file/below", "file is not a directory; name another"),
        ("sentiment", "ftp://host/registry", "ftp://host/registry"),
    ],
)
def test_a_name_or_a_registry_that_will_not_do(
    name: str, registry: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    address = registry if "://" in registry else str(tmp_path / registry)
    with pytest.raises(BerthaError) as refused:
        deployment.check_registration(name, address)
    assert said in str(refused.value)


def test_it_is_refused_before_anything_is_trained(
    tmp_path: Path, tiny_bert: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"devices_per_node": 1, "cache": str(tmp_path / "cache")}
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    words = ["csv", f"model.name={tiny_bert}", f"data.source={corpus}", "batch.max_length=32"]
    run = tmp_path / "search"
    asked = [*words, "--cluster", str(cluster), "--run", str(run), "--register", "Sentiment"]
    assert main(asked) == 2
    assert "is no name of a model" in capsys.readouterr().err and not run.exists()
