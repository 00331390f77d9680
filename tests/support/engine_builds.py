"""What tests of building engines share."""

from typing import Any

import pytest

from serving.engine.backends.registry import BACKENDS, ONNX_INT8

GRAPHS = ["onnxruntime fp32", "openvino fp32"]
TEXTS = ["a warm funny film", "dull", "the plot is thin but the cast is good " * 3]
QUICK: dict[str, Any] = {"rounds": 1, "seconds": 0.01, "log": lambda line: None}

needs_graphs = pytest.mark.skipif(
    any(BACKENDS[name].missing_requirement(to_build=True) for name in [*GRAPHS, ONNX_INT8]),
    reason="the engines extra is not installed",
)
