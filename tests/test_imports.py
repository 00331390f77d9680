"""Imports point one way: a table of rooms, and what each may import."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Packages, lower ones first, with the packages that they may import.
PACKAGES = {
    "cluster": {"cluster"},
    "trainers": {"cluster", "trainers"},
    "serving": {"cluster", "trainers", "serving"},
    "tuning": {"cluster", "trainers", "serving", "tuning"},
    "bertha": {"cluster", "trainers", "serving", "tuning"},
}

# Of each package the rooms (folders) and loose modules, lower ones first, with what each may import
# of its own package. Whatever stands here is used, and points upwards in the table.
ROOMS: dict[str, dict[str, str]] = {
    "cluster": {
        "errors": "",
        "command_line": "",
        "private_files": "errors",
        "ray_token": "private_files",
        "local_ray": "errors private_files ray_token",
        "yaml_schema": "",
        "settings": "errors yaml_schema",
        "hardware": "errors settings",
        "spec": "settings",
        "costmodel": "errors settings hardware",
        "validation": "ray_token settings hardware spec",
        "doctor": "errors ray_token settings hardware spec costmodel",
        "launch": "command_line errors ray_token yaml_schema settings hardware spec validation",
        "planning": "errors yaml_schema settings hardware spec costmodel",
        "choices": "errors settings hardware spec",
        "__main__": "command_line errors validation doctor launch choices",
    },
    "trainers": {
        "config": "",
        "storage": "",
        "untrusted": "",
        "data": "config storage untrusted",
        "distributed": "storage",
        "checkpoint": "storage distributed",
        "models": "config storage untrusted data distributed",
        "parallel": "distributed models",
        "training": "config storage data distributed checkpoint models parallel",
        "planning": "config data distributed models parallel training",
        "tracking": "config storage checkpoint training",
        "evaluation": "config storage data distributed training tracking",
        "runtime": "config storage data distributed checkpoint models parallel training planning "
        "tracking evaluation",
        "__main__": "config data models training planning tracking evaluation runtime",
        "probe": "__main__",
    },
    "serving": {
        "client": "",
        "fetch": "",
        "interface": "",
        "registry": "",
        "engine": "interface",
        "http": "interface",
        "inference": "interface registry engine http",
        "optimize": "interface engine",
        "protocols": "interface http",
        "deployment": "interface registry engine http inference protocols",
        "batch": "client fetch interface engine protocols",
        "publish": "fetch engine optimize",
        "commands": "fetch interface registry deployment",
        "choices": "registry",
        "__main__": "client fetch interface registry engine http optimize protocols deployment "
        "batch publish commands choices",
    },
    "tuning": {
        "space": "",
        "algorithms": "space",
        "store": "space algorithms",
        "execution": "space algorithms store",
        "forecast": "algorithms execution",
        "results": "space algorithms store execution",
        "dry_run": "space algorithms store execution forecast results",
        "study": "space algorithms store execution results",
        "__main__": "algorithms store execution results dry_run study",
    },
}

# The only import of a higher package, by name and when it is called: `bertha plan`.
LAZY = {("cluster.__main__", "trainers.planning.plan_command")}


@functools.cache
def modules() -> dict[str, Path]:
    """Return all our modules by dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in [*paths, ROOT / "bertha.py"]
    }


@functools.cache
def imported(name: str, at_the_top: bool = False) -> frozenset[str]:
    """Return our modules that a module imports; those of a `from` import, not their package."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            found |= below or {node.module}
        elif isinstance(node, ast.Constant) and "." in str(node.value):
            found |= {str(node.value)}  # imported by name, when it is called
    return frozenset(found & modules().keys() - {name, name.partition(".")[0]})


def room_of(module: str) -> str:
    """Return the folder below the package, or the module's own name where it lies in none."""
    return module.split(".")[1] if "." in module else module


def test_packages_point_one_way() -> None:
    for name in modules():
        allowed = PACKAGES[name.partition(".")[0]]
        upward = {other for other in imported(name) if other.partition(".")[0] not in allowed}
        assert upward <= {target for source, target in LAZY if source == name}, name


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_what_the_table_says(package: str) -> None:
    used: dict[str, set[str]] = {}
    for name in modules():
        if name.startswith(f"{package}."):
            own = {room_of(each) for each in imported(name) if each.startswith(f"{package}.")}
            used.setdefault(room_of(name), set()).update(own - {room_of(name)})
    table = {room: set(allowed.split()) for room, allowed in ROOMS[package].items()}
    assert used == table


@pytest.mark.parametrize("package", ROOMS)
def test_the_table_points_upwards(package: str) -> None:
    rooms = list(ROOMS[package])
    for place, room in enumerate(rooms):
        assert set(ROOMS[package][room].split()) <= set(rooms[:place]), room


def test_there_is_no_cycle() -> None:
    graph = {name: set(imported(name, at_the_top=True)) for name in modules()}
    while leaves := [name for name, wants in graph.items() if not wants & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_says_what_it_holds(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


HEAVY = {"torch", "ray", "transformers", "matplotlib", "optuna", "pandas", "boto3"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("bertha", HEAVY | {"numpy", "pydantic"}),
        ("cluster.spec", HEAVY),
        ("cluster.__main__", HEAVY),
        ("trainers.config.recipe", HEAVY),
        ("trainers.__main__", HEAVY),
        ("tuning.__main__", {"torch", "ray", "transformers", "matplotlib"}),
        ("serving.__main__", {"ray", "matplotlib", "optuna"}),
        pytest.param("trainers.runtime.worker", {"ray"}, marks=pytest.mark.multiprocess),
        pytest.param("serving.deployment.server", {"ray"}, marks=pytest.mark.multiprocess),
    ],
)
def test_a_light_door_stays_light(module: str, heavy: set[str]) -> None:
    script = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
