"""An endpoint under test, and what its models answer when they are asked without it."""

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from serving import protocols
from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer
from serving.engine.engine import Engine
from serving.http.asgi import App
from serving.interface import Limits, Prediction
from serving.optimize import export_embedder
from serving.registry.registry import Registry
from tests.support.fake_models import PROMPTS, TASKS, FakeModels, fake_prediction, fake_vector
from tests.support.servers import serve_app
from tests.support.tiny_bundle import write_tiny_bundle

ROUNDING = 1e-5  # what a text is batched with changes no more
TEXTS = ["a warm, funny film", "ü\U0001f3ac zwei Stunden", 'a "dull" plot\nand cast']


class Served(NamedTuple):
    """The address of an endpoint, and its models."""

    address: str
    predict: Callable[[str, Sequence[str]], list[Prediction]]
    embed: Callable[[Sequence[str]], np.ndarray]
    labels: Callable[[str], Sequence[str]]
    prompts: Mapping[str, str] = PROMPTS  # of the embedder

    def url(self, path: str = "") -> str:
        return f"http://{self.address}{path}"

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """What a client of the standard library hears."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        request = urllib.request.Request(self.url(path), data, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def serve_engines(tiny_bert: Path, place: Path) -> Iterator[Served]:
    registry, engines = Registry.open(str(place / "registry")), {}
    for name, (task, _) in TASKS.items():
        bundle = place / name / "bundle"
        if task == "embedding":
            source = shutil.copytree(tiny_bert, place / "sentence-bert")
            prompts = json.dumps({"prompts": PROMPTS})
            (source / "config_sentence_transformers.json").write_text(prompts, encoding="utf-8")
            export_embedder.write_embedder_bundle(source, bundle, max_length=16)
        else:
            write_tiny_bundle(bundle, tiny_bert, task)
        engines[name] = Engine.load(bundle)
        registry.deploy(name, registry.register(bundle, name))
    again = registry.register(place / "sentiment" / "bundle", "sentiment")
    registry.deploy("sentiment", again)
    registry.set_alias("sentiment", "best", again)
    registry.make_default("sentiment")
    listener = ReplicaServer(EndpointConfig(registry=registry.address), "127.0.0.1")
    listener.start()
    yield Served(
        listener.address,
        lambda name, texts: engines[name].predict(texts),
        lambda texts: np.array(engines["mini"].predict(texts)),
        lambda name: TASKS[name][1] or ("value",),
    )
    listener.stop()


def serve_fakes() -> Iterator[Served]:
    def predict(name: str, texts: Sequence[str]) -> list[Prediction]:
        task, labels = TASKS[name]
        return [fake_prediction(text, task, len(labels)) for text in texts]

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([fake_vector(text) for text in texts])

    models = FakeModels(limits=Limits(max_texts=32))
    with serve_app(App(protocols.ALL, models)) as address:
        yield Served(address, predict, embed, lambda name: TASKS[name][1] or ("value",))


def ranked(served: Served, name: str, text: str) -> list[tuple[str, float]]:
    (expected,) = served.predict(name, [text])
    pairs = zip(served.labels(name), expected.scores, strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])


def same(found: Sequence[Any], expected: Sequence[tuple[str, float]]) -> None:
    """Labels in the same order with the same scores."""
    assert [each["label"] for each in found] == [label for label, _ in expected]
    scores = [score for _, score in expected]
    assert [each["score"] for each in found] == pytest.approx(scores, abs=ROUNDING)
