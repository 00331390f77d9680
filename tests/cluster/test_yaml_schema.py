"""YAML by the core schema of 1.2, what Ray reads by 1.1, and text that both read the same."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import spec
from cluster.settings import SettingsError, apply_override, read_cluster_yaml, read_yaml
from cluster.yaml_schema import dump_yaml, load_as_ray, load_yaml

CORE: dict[str, Any] = {  # the tables of the specification, 10.3.2, and what YAML 1.1 made of it
    "1e-5": 1e-5,
    "5E3": 5000.0,
    "+.5": 0.5,
    "-2.": -2.0,
    "1.0e-05": 1e-5,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "0o14": 12,
    "0x1F": 31,
    "0123": 123,
    "089": 89,
    "-7": -7,
    "0b11": "0b11",
    "1_000": "1_000",
    "1:30": "1:30",
    "2024-05-01": "2024-05-01",
    "2024-05-01T10:00:00Z": "2024-05-01T10:00:00Z",
    "no": "no",
    "Yes": "Yes",
    "on": "on",
    "OFF": "OFF",
    "y": "y",
    "true": True,
    "FALSE": False,
    "tRUE": "tRUE",
    "null": None,
    "~": None,
    "": None,
    "nULL": "nULL",
    "=": "=",
    "1e": "1e",
    "inf": "inf",
    "'no'": "no",
    "'1e-5'": "1e-5",
    "!!str 1e-5": "1e-5",
}


@pytest.mark.parametrize("text", CORE)
def test_a_scalar_is_what_the_core_schema_says(text: str) -> None:
    value = load_yaml(text)
    assert value == CORE[text] and type(value) is type(CORE[text])


def test_nan_is_a_number() -> None:
    assert math.isnan(load_yaml(".nan"))


WORDS = [text for text in CORE if text and "'" not in text and "!" not in text]


@pytest.mark.parametrize("word", [*WORDS, "", " a", "a: b", "- a", "#", "|", "Größe"])
def test_a_written_word_is_that_word_to_ray_and_to_us(word: str) -> None:
    written = dump_yaml({word: [word]})
    assert load_yaml(written) == load_as_ray(written) == {word: [word]}


@pytest.mark.parametrize("value", [1e-5, 1e16, 5e-324, 3, -1, 2**70, True, None, math.inf, 0.1])
def test_a_written_value_is_that_value_to_ray_and_to_us(value: Any) -> None:
    written = dump_yaml([value])
    assert load_yaml(written) == load_as_ray(written) == [value]


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "a: {b: 1, b: 2}", "[" * 5000, "!!int x", "!!float x", "a: &x [*y]", "{[a]: 1}"],
)
def test_what_cannot_be_read_is_an_error_of_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    for read in (read_yaml, read_cluster_yaml):
        with pytest.raises(SettingsError, match=r"settings\.yaml: not readable as YAML"):
            read(path)


def test_a_date_that_does_not_exist_is_an_error_to_ray_alone(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: 2024-13-45")
    assert read_yaml(path) == {"a": "2024-13-45"}
    with pytest.raises(SettingsError, match="month must be in"):
        read_cluster_yaml(path)


def test_settings_are_merged_and_shared(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("base: &base {a: 1, b: no}\nother: {<<: *base, a: 2}\nbase2: *base\n")
    assert read_yaml(path)["other"] == {"a": 2, "b": "no"}
    assert read_cluster_yaml(path)["other"] == {"a": 2, "b": False}


def test_a_cluster_file_means_what_it_means_to_ray_but_for_our_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "provider: {type: local, cache_stopped_nodes: no}\n"
        "setup_commands: [off]\n"
        "metadata: {price_usd_per_hour: 1e-1, cache: on}\n"
    )
    settings = read_cluster_yaml(path)
    plain = yaml.safe_load(path.read_text())
    assert {**settings, "metadata": None} == {**plain, "metadata": None}
    assert settings["provider"]["cache_stopped_nodes"] is False
    cluster = spec.load_cluster_spec(path)
    assert (cluster.metadata.price_usd_per_hour, cluster.metadata.cache) == (0.1, "on")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a=no", "no"),
        ("a=1e-5", 1e-5),
        ("a=[1e-5, 3e-5, no]", [1e-5, 3e-5, "no"]),
        ("a=1:30", "1:30"),
        ("a=null", None),
        ("a=", None),
        ("a=|", "|"),
        ("a=;", ";"),
        ("a=-", "-"),
        ("a=\t", "\t"),
        ("a=#", "#"),
        ("a=-1", -1),
        ("a=~", None),
        ("a=@here", "@here"),
        ("a=" + "[" * 5000, "[" * 5000),
    ],
)
def test_an_override_is_read_as_a_file_is(assignment: str, value: Any) -> None:
    settings: dict[str, Any] = {}
    apply_override(settings, assignment)
    assert settings == {"a": value}
