"""Libraries that are imported when they are needed, and OpenVINO without its telemetry.

OpenVINO reports its use to its makers from the moment it is imported, unless the package that does
so is not to be found.
"""

import importlib
import sys
from typing import Any


def library(name: str) -> Any:
    """The module `name`, as "openvino", "onnx" or "onnxruntime"."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module(name)
