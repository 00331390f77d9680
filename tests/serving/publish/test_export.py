"""Bundles for other libraries: they load there, and compute what the bundle computes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engine.engine import Engine
from serving.interface import Prediction
from serving.publish import export
from serving.publish.export import ExportError, export_bundle
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.models.card import BundleError

TEXTS = ["a warm funny film", "dull", "a dull long film a warm funny film"]
TASKS = ["classification", "multi-label", "regression", "embedding"]


def expected(bundle: Path) -> np.ndarray:
    values = Engine.load(bundle).predict(TEXTS)
    return np.array([each.logits if isinstance(each, Prediction) else each for each in values])


def encode(directory: Path, tensors: str) -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors=tensors)
    return {name: batch[name] for name in export.INPUTS}


@pytest.mark.parametrize("task", TASKS)
def test_onnx_computes_the_same(task: str, tiny_bert: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task), tmp_path / "out"
    export_bundle(bundle, out, "onnx")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    found = session.run(None, encode(out, "np"))[0]
    assert found == pytest.approx(expected(bundle), abs=1e-4)
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize("task", TASKS)
def test_openvino_computes_the_same(task: str, tiny_bert: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task), tmp_path / "out"
    export_bundle(bundle, out, "openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(out / "openvino_model.xml", "CPU", exact)
    assert model(encode(out, "np"))[0] == pytest.approx(expected(bundle), abs=1e-4)


def test_transformers_loads_the_folder(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, pipeline

    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert), tmp_path / "out"
    export_bundle(bundle, out)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    logits = model(**encode(out, "pt")).logits.detach().numpy()
    assert logits == pytest.approx(expected(bundle), abs=1e-4)
    answers = pipeline("text-classification", str(out))(TEXTS)
    names = {0: "negative", 1: "positive"}
    assert [each["label"] for each in answers] == [names[row] for row in logits.argmax(axis=1)]
    assert not (out / "bundle.json").exists()


@pytest.mark.parametrize("task", [*TASKS, "masked-lm"])
def test_the_pipeline_of_the_readme_runs(task: str, tiny_bert: Path, tmp_path: Path) -> None:
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task), tmp_path / "out"
    export_bundle(bundle, out)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    code = code.replace("DIRECTORY", str(out)).replace("A text.", "film " * 600)
    names: dict[str, Any] = {}
    exec(code.replace("A {", "film {").replace("} text.", "}"), names)
    found = names["outputs"]
    if task == "regression":
        ours = Engine.load(bundle).predict(["film " * 600])[0].scores[0]
        assert found[0]["score"] == pytest.approx(ours, abs=1e-4)
    elif task == "embedding":
        vector = np.array(found[0]).mean(axis=0)
        ours = Engine.load(bundle).predict(["film " * 600])[0]
        assert vector / np.linalg.norm(vector) == pytest.approx(ours, abs=1e-4)
    elif task == "multi-label":
        assert len(found[0]) == 3


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_code_of_the_readme_runs(format: str, tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if format == "onnx" else format)
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert), tmp_path / "out"
    export_bundle(bundle, out, format)  # type: ignore[arg-type]
    text = (out / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(code.replace("DIRECTORY", str(out)), names)
    assert names["outputs"].shape == (1, 2)
    assert "softmax gives the probabilities" in " ".join(text.split())


def test_thresholds_and_cleaning_are_said(tiny_bert: Path, tmp_path: Path) -> None:
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert), tmp_path / "out"
    card = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(card | {"thresholds": {"positive": 0.25}}))
    export_bundle(bundle, out)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "| positive | 0.25 |" in text and "with Transformers compare the score" in text
    assert "tags of HTML are removed" in text


def test_a_graph_that_computes_something_else_is_not_kept(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"the onnx graph differs from torch .* --format transf"):
        export_bundle(bundle, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(tiny_bert: Path, tmp_path: Path) -> None:
    bundle, out = write_tiny_bundle(tmp_path / "bundle", tiny_bert), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(ExportError, match="is there already; name a new directory"):
        export_bundle(bundle, out)
    assert (out / "mine").read_text() == "mine"


def test_a_linear_model_is_refused(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path / "bundle", [1.0])
    with pytest.raises(ExportError, match="a linear model has no form"):
        export_bundle(bundle, tmp_path / "out")


def test_a_damaged_bundle_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    (bundle / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"config\.json is not the file that was written"):
        export_bundle(bundle, tmp_path / "out")
