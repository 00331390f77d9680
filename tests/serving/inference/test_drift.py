"""Drift: an index that chance leaves low and another traffic raises, over all replicas."""

from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.http.metrics import merge_snapshots, to_prometheus
from serving.inference.drift import (
    LARGE,
    MIN_TEXTS,
    MODERATE,
    MOST_OF_REQUEST,
    WINDOW_TEXTS,
    DriftWindows,
    describe_drift,
    psi_samples,
    stability_index,
)
from serving.inference.model_server import ModelServer
from serving.interface import InferenceResult, ModelInfo, Prediction
from tests.support.fake_models import fake_model_info
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.profile import Histogram, RowProfile, profile_rows

RNG = np.random.default_rng(0)


def draw(number: int, mean: float, share: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Texts of about `mean` tokens, of which `share` are positive: rows, and probabilities."""
    rows = [np.full(length, 7) for length in RNG.poisson(mean, number) + 1]
    second = np.where(RNG.random(number) < share, 0.9, 0.2) + RNG.normal(0, 0.03, number)
    return rows, np.clip(second, 0.01, 0.99)


def make_info() -> ModelInfo:
    rows, second = draw(2000, 20, 0.5)
    logits = np.log(np.stack([1 - second, second], axis=1)).astype(np.float32)
    profile = profile_rows(
        "classification", ("negative", "positive"), rows, logits, logits.argmax(axis=1), 1
    )
    return replace(fake_model_info("sentiment"), profile=profile)


def answer(info: ModelInfo, rows: list[np.ndarray], second: np.ndarray) -> InferenceResult:
    values = [Prediction((1 - float(p), float(p)), (0.0, 0.0)) for p in second]
    return InferenceResult(info, values, rows)


def record(windows: DriftWindows, info: ModelInfo, number: int, mean: float, share: float) -> None:
    rows, second = draw(number, mean, share)
    for place in range(number):
        windows.record(answer(info, rows[place : place + 1], second[place : place + 1]))


def test_the_index_is_the_divergence_of_the_shares() -> None:
    big = 1_000_000
    found = stability_index([0.5 * big, 0.5 * big], [0.75 * big, 0.25 * big])
    assert found == pytest.approx(0.25 * np.log(1.5) - 0.25 * np.log(0.5), abs=1e-5)
    assert stability_index([3, 5], [3, 5]) == 0
    assert stability_index([30, 0], [0, 30]) < np.inf


def test_the_same_traffic_is_stable_and_another_is_not() -> None:
    info = make_info()
    for mean, share, drifted in (
        (20, 0.5, set()),
        (30, 0.5, {"tokens"}),
        (20, 0.95, {"labels", "confidence"}),
    ):
        windows = DriftWindows()
        record(windows, info, 1000, mean, share)
        (about,) = describe_drift([info], dict(windows.metric_samples()))
        assert about["texts"] == 1000 and about["held_out"] == 2000
        states = {name: each["state"] for name, each in about["features"].items()}
        assert {name for name, state in states.items() if state == "large"} == drifted
        assert {name for name, state in states.items() if state == "stable"} == set(
            states
        ) - drifted
        assert about["state"] == ("large" if drifted else "stable")
        for each in about["features"].values():
            assert len(each["bins"]) == len(each["live"]) == len(each["held_out"])


def test_few_texts_are_compared_with_nothing_and_replicas_add_up() -> None:
    info, one, other = make_info(), DriftWindows(), DriftWindows()
    record(one, info, MIN_TEXTS - 1, 30, 0.5)
    counted = dict(one.metric_samples())
    assert psi_samples([info], counted) == {}
    (about,) = describe_drift([info], counted)
    assert about["state"] == "unknown" and "199 texts; from 200 on" in about["reason"]
    assert {each["state"] for each in about["features"].values()} == {"unknown"}
    record(other, info, 1, 30, 0.5)
    merged = merge_snapshots([counted, dict(other.metric_samples())])
    found = psi_samples([info], merged)
    labels = (("model", "sentiment"), ("version", "1"), ("feature", "tokens"))
    assert found["bertha_drift_psi", labels] > LARGE > MODERATE
    page = to_prometheus(merged | found)
    assert 'bertha_drift_psi{model="sentiment",version="1",feature="tokens"}' in page
    assert 'bertha_drift_texts{model="sentiment",version="1",feature="labels",bin="0"}' in page


def test_only_the_last_texts_count_and_of_long_requests_some() -> None:
    info, windows = make_info(), DriftWindows()
    record(windows, info, WINDOW_TEXTS, 60, 0.5)
    record(windows, info, WINDOW_TEXTS, 20, 0.5)
    (about,) = describe_drift([info], dict(windows.metric_samples()))
    assert about["texts"] == WINDOW_TEXTS and about["features"]["tokens"]["psi"] < MODERATE
    fresh = DriftWindows()
    fresh.record(answer(info, *draw(2048, 20, 0.5)))
    fresh.record(answer(info, [], np.empty(0)))
    (about,) = describe_drift([info], dict(fresh.metric_samples()))
    assert about["texts"] == MOST_OF_REQUEST


def test_old_bundles_say_that_they_have_no_profile() -> None:
    info, windows = fake_model_info("sentiment"), DriftWindows()
    windows.record(answer(info, *draw(5, 20, 0.5)))
    assert dict(windows.metric_samples()) == {}
    (about,) = describe_drift([info, fake_model_info("mini")], {})
    assert about["state"] == "unknown" and "train again" in about["reason"]


def test_an_endpoint_tells_the_drift_of_its_models(tiny_bert: Path, tmp_path: Path) -> None:
    features = {
        "tokens": Histogram(edges=(4.0,), counts=(50, 50)),
        "labels": Histogram(names=("negative", "positive"), counts=(50, 50)),
    }
    profile = RowProfile(rows=100, features=features)
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert, profile=profile)

    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        for _ in range(MIN_TEXTS // 25):
            texts = ["dull"] * 25
            assert (await client.post("/predict", json={"inputs": texts})).status_code == 200
        await client.post("/predict", json={"inputs": " "})  # refused: counted nowhere
        (about,) = (await client.get("/drift")).json()
        assert (about["name"], about["version"], about["texts"]) == ("tiny", "1", MIN_TEXTS)
        assert about["features"]["tokens"]["live"] == [MIN_TEXTS, 0]
        assert about["state"] == "large"
        page = (await client.get("/metrics")).text
        assert 'bertha_drift_psi{model="tiny",version="1",feature="tokens"}' in page

    run_scenario(make_registry(tmp_path / "registry", bundle), scenario)
