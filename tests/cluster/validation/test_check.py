"""`bertha check`: each problem in a cluster file has its message."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import __main__, spec
from cluster.settings import SettingsError, read_yaml
from cluster.validation import check
from cluster.yaml_schema import dump_yaml
from tests.support.broken_clusters import BROKEN, DELETED, NODE, Edits


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the key that onprem.yaml names."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text("a key")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def shipped(name: str) -> dict[str, Any]:
    """A shipped file, with its addresses filled in."""
    settings = read_yaml(spec.SHIPPED_DIR / f"{name}.yaml")
    if name == "onprem":
        settings["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "gpu-3.lan"]}
    return settings


def edited(settings: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """`settings` with values at dotted places, some of them gone."""
    made = copy.deepcopy(settings)
    for place, value in edits.items():
        *groups, last = place.split("/")
        inner: Any = made
        for group in groups:
            inner = inner[int(group) if isinstance(inner, list) else group]
        if value is DELETED:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
    return made


def written(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(dump_yaml(settings))
    return path


@pytest.mark.parametrize(
    ("name", "edits", "said"), BROKEN, ids=[f"{n}-{case[0]}" for n, case in enumerate(BROKEN)]
)
def test_each_mistake_has_its_words(home: Path, name: str, edits: Edits, said: str) -> None:
    path = written(home / "c.yaml", edited(shipped(name), edits))
    with pytest.raises(SettingsError) as raised:
        check.check_cluster_file(path)
    assert re.search(said, str(raised.value)), raised.value
    assert "very_secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["local", "onprem", "aws-gpu", "aws-trainium"])
def test_a_file_without_mistakes_is_told_in_a_line(
    home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(home / "c.yaml", shipped(name))
    assert __main__.main(["check", str(path)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_all_mistakes_come_at_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = edited(
        shipped("aws-gpu"),
        {"max_worker": 2, f"{NODE}/ImageId": DELETED, "metadata/storage": "runs", "auth": {}},
    )
    assert __main__.main(["check", str(written(home / "c.yaml", broken))]) == 2
    said = capsys.readouterr().err
    assert "4 mistake(s)" in said and len(said.splitlines()) == 5


def test_the_shipped_file_for_own_machines_asks_for_its_addresses(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["check", "onprem"]) == 2
    said = capsys.readouterr().err
    assert "3 mistake(s)" in said and said.count("fill in") == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "the key 'a' is written twice"),
        ("a: [1\n", "not readable as YAML"),
        ("- a\n", "holds no `key: value` settings"),
        ("{}\n", "provider.type: missing"),
        (
            "{metadata: 3, provider: {type: local}, cluster_name: a}\n",
            "metadata = 3: must be a map",
        ),
        ("{provider: aws, cluster_name: a}\n", "provider = 'aws': must be a mapping"),
        (
            "{provider: {type: aws}, available_node_types: [], cluster_name: a}\n",
            "must be a mapping",
        ),
        (
            "{provider: {type: local, head_ip: a, worker_ips: b}, cluster_name: a}\n",
            "must be a list",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(said)):
        check.check_cluster_file(path)


def test_a_provider_of_ray_that_is_not_ours_is_checked_as_far_as_it_goes(home: Path) -> None:
    settings = {**shipped("onprem"), "provider": {"type": "gcp", "region": "us-central1"}}
    assert list(check.find_problems(settings)) == []


def test_what_ray_accepts_and_refuses_is_what_the_schema_says() -> None:
    from ray.autoscaler._private.util import validate_config

    broken = edited(shipped("onprem"), {"max_worker": 3})
    with pytest.raises(Exception, match="max_worker"):
        validate_config(broken)
    assert yaml.safe_load(dump_yaml(broken)) == broken


@pytest.mark.parametrize("name", ["onprem", "aws-trainium"])
def test_no_value_in_any_place_breaks_the_check(home: Path, name: str) -> None:
    settings = shipped(name)
    for place in places(settings):
        for value in (None, 3, "x", [3], {"x": 3}):
            for mistake in check.find_problems(edited(settings, {place: value})):
                assert str(mistake)


def places(value: Any, above: str = "") -> list[str]:
    """Every dotted place of a file."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [above] if above else []
    for name, each in inner:
        found += places(each, f"{above}/{name}" if above else str(name))
    return [place for place in found if "~" not in place]
