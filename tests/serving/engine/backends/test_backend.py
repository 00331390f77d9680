"""Libraries that may be absent are imported by name, and OpenVINO's telemetry never."""

import importlib
import sys
from types import ModuleType

import pytest

from serving.engine.backends.backend import import_optional


def test_a_part_of_a_library_is_that_part() -> None:
    assert import_optional("xml.dom.minidom") is sys.modules["xml.dom.minidom"]


def test_a_library_that_is_absent_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_engine") as missing:
        import_optional("no_such_engine")
    assert missing.value.name == "no_such_engine"


def test_telemetry_cannot_be_imported_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    import_optional("xml.dom")
    with pytest.raises(ModuleNotFoundError, match=r"None in sys\.modules"):
        importlib.import_module("openvino_telemetry")


def test_telemetry_that_somebody_else_imported_stays_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    import_optional("xml.dom")
    assert sys.modules["openvino_telemetry"] is theirs
