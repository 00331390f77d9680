"""What a search will take, by the cluster's cost model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import BerthaError
from cluster.planning import probe
from cluster.planning.probe import Measurement, Probe, ProbeCase
from tuning import forecast, study
from tuning.__main__ import main
from tuning.execution.controller import PreparedSearch
from tuning.forecast import ForecastError
from tuning.store.config import SearchConfig

from trainers.config import recipe as recipes  # isort: skip

SHAPES = [(64, 2, 128, 16), (64, 2, 128, 64), (128, 4, 512, 32), (256, 4, 1024, 64)]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of a machine that computes 50 GFLOP/s, whatever it is asked."""
    found = []
    for hidden, layers, wide, tokens in SHAPES:
        trial = ProbeCase(hidden, layers, wide, 1000, tokens, 16, 512)
        products = 2 * layers * (4 * hidden * hidden + 2 * hidden * wide) * tokens * 16
        found.append(Measurement(trial, 1, 3 * products / 50e9 + 2e-3))
    path = tmp_path_factory.mktemp("probe") / "probe.json"
    probe.write_probe(path, Probe("cpu", "A processor", "fp32", 8e9, tuple(found)))
    return path


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path
) -> PreparedSearch:
    return make_prepared(tmp_path_factory.mktemp("place"), tiny_bert, corpus)


def make_prepared(
    place: Path, bert: Path, corpus: Path, *overrides: str, cluster: Any = None, **asked: Any
) -> PreparedSearch:
    """A search of a tiny model that would do."""
    metadata = {"devices_per_node": 1, "cache": str(place / "cache"), "price_usd_per_hour": 3.6}
    metadata |= {"accelerator": "cuda"} if cluster else {}
    path = place / "cluster.yaml"
    path.write_text(
        yaml.safe_dump((cluster or {"provider": {"type": "local"}}) | {"metadata": metadata})
    )
    words = [f"model.name={bert}", f"data.source={corpus}", "batch.max_length=32", "seed=0"]
    recipe = recipes.load_recipe("csv", [*words, *overrides]).with_absolute_paths()
    config = SearchConfig(recipe=recipe, cluster=str(path), **asked)
    return study.prepare_search(config, estimate=True)


def test_work_adds_up(prepared: PreparedSearch, probed: Path) -> None:
    found = forecast.forecast_search(prepared, probed)
    config = prepared.config
    assert config.trials == 16 and config.seeds == 3 and prepared.capacity.slots == 1
    assert found.search_seconds == pytest.approx(found.trial_seconds * (16 + 2 * 3))
    share = forecast.expected_work_share(prepared)
    assert found.expected_seconds == pytest.approx(found.trial_seconds * (1 + 6 + 15 * share))
    assert "A processor" in found.origin


def test_twice_the_epochs_take_twice_as_long(
    tmp_path: Path, tiny_bert: Path, corpus: Path, prepared: PreparedSearch, probed: Path
) -> None:
    epochs = prepared.config.recipe.epochs
    longer = make_prepared(tmp_path, tiny_bert, corpus, f"stopping.epochs={2 * epochs}")
    once, twice = (
        forecast.forecast_search(each, probed).trial_seconds for each in (prepared, longer)
    )
    assert twice == pytest.approx(2 * once, rel=0.15), "but for how often it is evaluated"


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("none", 1.0), ("asha", 1 / 4 + 1 / 3 / 4 + 1 / 9 / 2), ("median", 1 / 4 + 1 / 8 + 1 / 8)],
)
def test_what_is_stopped_is_not_trained(
    prepared: PreparedSearch, scheduler: str, expected: float
) -> None:
    schedule = replace(prepared.schedule, num_evals=4)
    config = prepared.config.model_copy(update={"scheduler": scheduler})
    changed = replace(prepared, schedule=schedule, config=config)
    assert forecast.expected_work_share(changed) == pytest.approx(expected)


def rented(instance: str) -> dict[str, Any]:
    """A cluster of machines of a kind."""
    kinds: dict[str, Any] = {
        "head": {"node_config": {"InstanceType": "m5.large"}},
        "worker": {"node_config": {"InstanceType": instance}, "min_workers": 1},
    }
    provider = {"type": "aws", "region": "us-east-1"}
    return {"provider": provider, "head_node_type": "head", "available_node_types": kinds}


def test_rented_machines_are_in_the_catalogue(
    tmp_path: Path, tiny_bert: Path, corpus: Path
) -> None:
    seconds = {}
    for instance in ("g4dn.xlarge", "g5.xlarge"):
        prepared = make_prepared(tmp_path, tiny_bert, corpus, cluster=rented(instance))
        found = forecast.forecast_search(prepared, None)
        assert instance in found.origin
        seconds[instance] = found.trial_seconds
    assert 0 < seconds["g5.xlarge"] < seconds["g4dn.xlarge"], "an A10G is faster than a T4"


def test_of_a_machine_nobody_knows_nothing_is_said(
    tmp_path: Path, tiny_bert: Path, corpus: Path, prepared: PreparedSearch
) -> None:
    with pytest.raises(ForecastError, match=r"bertha probe"):
        forecast.forecast_search(prepared, None)
    strange = make_prepared(tmp_path, tiny_bert, corpus, cluster=rented("z9.huge"))
    with pytest.raises(BerthaError, match=r"z9\.huge"):
        forecast.forecast_search(strange, None)


def test_a_dry_run_says_what_it_costs(
    tmp_path: Path,
    tiny_bert: Path,
    corpus: Path,
    probed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_prepared(tmp_path, tiny_bert, corpus)
    words = ["csv", f"model.name={tiny_bert}", f"data.source={corpus}", "batch.max_length=32"]
    asked = [*words, "--cluster", str(tmp_path / "cluster.yaml"), "--dry-run"]
    assert main(asked) == 0
    assert "time      not known" in capsys.readouterr().out
    assert main([*asked, "--probed", str(probed), "--register", "tiny", "--deployment"]) == 0
    said = capsys.readouterr().out
    assert "nine in ten" in said and "$" in said and "at most" in said
    assert "tiny@best" in said and "p95" in said
    assert main([*asked, "--probed", str(tmp_path / "cluster.yaml")]) == 2
    assert "bertha probe" in capsys.readouterr().err
