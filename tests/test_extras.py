"""Each extra installs what its role imports, and no role pays for another's."""

import ast
import functools
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.test_imports import imported, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extra: str | None) -> set[str]:
    """Return the requirements of an extra, or of the bare distribution."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found = set()
    for line in listed:
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:
            found |= {each for other in wanted.extras for each in requirements(other)}
        else:
            found.add(line)
    return found


@functools.cache
def _needs(distribution: str, extras: frozenset[str]) -> frozenset[tuple[str, frozenset[str]]]:
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return frozenset()
    wanted = [Requirement(line) for line in lines]
    return frozenset(
        (canonicalize_name(each.name), frozenset(each.extras))
        for each in wanted
        if each.marker is None
        or any(each.marker.evaluate({"extra": extra}) for extra in (extras or frozenset([""])))
    )


def installed_by(*extras: str) -> set[str]:
    """Return the distributions that `pip install .[extras]` brings, by what metadata says here."""
    listed = requirements(None).union(*(requirements(extra) for extra in extras))
    waiting = {
        (canonicalize_name(each.name), frozenset(each.extras)) for each in map(Requirement, listed)
    }
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        seen.add(one)
        waiting |= set(_needs(*one)) - seen
    return {name for name, _ in seen}


def third_party(*names: str) -> dict[str, str]:
    """Return what our modules, and all they import at their top, import of others: who needs it."""
    waiting, seen, found = set(names), set[str](), {}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        parents = {name.rpartition(".")[0]} & modules().keys()
        waiting |= (imported(name, at_the_top=True) | parents) - seen
        for node in ast.parse(modules()[name].read_text(encoding="utf-8")).body:
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots = [node.module.partition(".")[0]]
            found |= {root: name for root in roots}
    ours = {name.partition(".")[0] for name in modules()}
    return {root: by for root, by in found.items() if root not in ours | sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("extras", "names"),
    [
        (
            (),
            "bertha cluster.__main__ trainers.__main__ cluster.planning.plan",
        ),
        (
            ("train",),
            "trainers.runtime.fit trainers.runtime.ray_trainer trainers.planning.dry_run "
            "trainers.tracking.sinks.tensorboard_sink",
        ),
        (("tune",), "tuning.study tuning.results.dashboard tuning.execution.tuner"),
        (
            ("serve",),
            "serving.deployment.app serving.deployment.server serving.optimize.optimize "
            "serving.batch.cluster serving.batch.evaluate serving.publish.push",
        ),
        (("aws",), "cluster.launch.aws"),
        (("demo",), "trainers.runtime.fit serving.deployment.app serving.inference.attribution"),
    ],
)
def test_a_role_installs_what_it_imports(extras: tuple[str, ...], names: str) -> None:
    installed, owners = installed_by(*extras), packages_distributions()
    missing = {
        root: by
        for root, by in third_party(*names.split()).items()
        if not {canonicalize_name(each) for each in owners.get(root, ())} & installed
    }
    assert missing == {}


def test_a_missing_requirement_is_seen() -> None:
    assert third_party("trainers.runtime.ray_trainer").keys() >= {"ray", "torch", "numpy"}
    assert "ray" not in third_party("trainers.runtime.fit")  # a small run does not pay for it
    assert "torch" not in installed_by() and "torch" in installed_by("train")


def test_a_serving_machine_and_a_planning_laptop_stay_light() -> None:
    assert not {"torch", "ray", "transformers", "matplotlib"} & installed_by()
    assert not {"optuna-dashboard", "captum", "matplotlib", "datasets"} & installed_by("serve")
    assert {"scipy", "pandas"} <= installed_by("serve")  # of `evaluate`, and of Ray Data
    assert not {"moto", "schemathesis", "optuna-dashboard", "mypy"} & installed_by("demo")


def test_no_message_tells_to_install_another_project() -> None:
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for path in [*modules().values(), *documents]:
        text = path.read_text(encoding="utf-8").replace('"', "")
        assert "install bertha[" not in text, path
