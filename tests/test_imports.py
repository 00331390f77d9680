"""Imports point one way: cluster <- trainers <- {tuning, serving}; no cycles; light doors."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAY_IMPORT = {
    "cluster": {"cluster"},
    "trainers": {"cluster", "trainers"},
    "tuning": {"cluster", "trainers", "tuning"},
    "serving": {"cluster", "trainers", "serving"},
}


@functools.cache
def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    }


@functools.cache
def imported(path: Path, at_the_top: bool) -> set[str]:
    """Our modules that `path` imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_the_top else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(modules())


def test_imports_point_one_way() -> None:
    for name, path in modules().items():
        package = name.partition(".")[0]
        reached = {other.partition(".")[0] for other in imported(path, at_the_top=False)}
        assert reached <= MAY_IMPORT[package], name


def test_there_is_no_cycle() -> None:
    graph = {
        name: imported(path, at_the_top=True) - {name, name.rpartition(".")[0]}
        for name, path in modules().items()
    }
    while leaves := [name for name, wants in graph.items() if not wants & set(graph)]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_the_rooms_of_serving_have_an_order() -> None:
    room = {name: ".".join(name.split(".")[:2]) for name in modules() if name != "serving"}
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        if name.startswith("serving.") and name != "serving.__main__":
            wants = {room[other] for other in imported(path, at_the_top=False) if other in room}
            graph.setdefault(room[name], set()).update(wants - {room[name]})
    while leaves := [name for name, wants in graph.items() if not wants & set(graph)]:
        for name in leaves:
            del graph[name]
    assert graph == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("cluster.spec", {"torch", "ray", "transformers"}),
        ("trainers.config.recipe", {"torch", "ray", "transformers"}),
        pytest.param("trainers.runtime.worker", {"ray"}, marks=pytest.mark.slow),
        pytest.param("serving.deployment.server", {"ray"}, marks=pytest.mark.slow),
    ],
)
def test_a_light_door_stays_light(module: str, heavy: set[str]) -> None:
    script = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
