"""What a dry run says of layout and memory, before anything starts."""

import re
from pathlib import Path
from typing import Any

import pytest

from cluster import spec
from cluster.costmodel.layout import Layout, LayoutError
from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data.prepare import estimate_dataset
from trainers.planning.dry_run import describe_run
from trainers.planning.layout import resolve_layout

SHAPE = ModelShape(32, 2, 4, 64, 32, 64, 2, 32, "classification", 2)


def recipe_of(tiny_bert: Path | str, corpus: Path | str = "x.csv", **settings: Any) -> Recipe:
    return recipes.parse_recipe(
        {
            "model": {"name": str(tiny_bert)},
            "data": {"source": str(corpus)},
            "batch": {"global_size": 16, "max_length": 32},
            **settings,
        }
    )


def cluster_of(tmp_path: Path, num_nodes: int = 1, **metadata: Any) -> ClusterSpec:
    return ClusterSpec("here", "local", num_nodes, ClusterMetadata(cache=str(tmp_path), **metadata))


def test_auto_shows_the_candidates_and_why(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, devices_per_node=2, device_memory_gib=1)
    said = "\n".join(describe_run(recipe_of(tiny_bert, corpus), cluster))
    assert "layout    auto: the fastest layout, dp_replicate 2, needs 0.0" in said
    assert "memory    at most 0.0" in said
    assert "s a step" in said and "chosen" in said and "which is assumed" in said
    assert "dp_shard 2" in said
    assert "token budget 2,048" in said


def test_an_explicit_layout_is_shown_by_pipeline_rank(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_bert, corpus, layout={"pp": 2, "recompute": "full"})
    cluster = cluster_of(tmp_path, devices_per_node=4)
    said = "\n".join(describe_run(recipe, cluster))
    assert "layout    dp_replicate 2 x pp 2, recompute full: 4 rank(s)" in said
    assert "of pipeline rank 0" in said and "of pipeline rank 1" in said


def test_a_wrong_layout_ends_the_dry_run(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_bert, corpus, layout={"pp": 4, "tp": 3})
    with pytest.raises(LayoutError, match=r"(?s)tp 3 = 12 does not divide .*4 stages"):
        list(describe_run(recipe, cluster_of(tmp_path, devices_per_node=2)))


def test_the_shipped_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "house-prices        Linear regression by gradient" in capsys.readouterr().out


def test_a_gpu_cluster_is_planned_where_torch_has_no_gpu(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    cluster = cluster_of(tmp_path, 2, accelerator="cuda", devices_per_node=2, device_memory_gib=40)
    said = list(describe_run(recipe_of(tiny_bert, corpus), cluster))
    assert "precision bfloat16" in said


def test_a_model_with_another_head_is_said(
    tiny_classifier: Path, corpus: Path, tmp_path: Path
) -> None:
    batch = {"global_size": 16, "max_length": 16}
    for labels, head in [
        (["positive", "negative"], "head      kept, its classes put in order by their names"),
        (["negative", "positive"], None),
        (["negative", "neutral", "positive"], "head      drawn anew for 3 classes: "),
    ]:
        data = {"source": str(corpus), "labels": labels}
        recipe = recipe_of(tiny_classifier, data=data, batch=batch)
        said = [line for line in describe_run(recipe, cluster_of(tmp_path)) if line[:4] == "head"]
        assert len(said) == (head is not None) and all(line.startswith(str(head)) for line in said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "a-file"], "a-file: cannot be written"),
        (["--run", "runs/none", "--resume"], "runs/none: no run to resume is there"),
        (["model.name=./nowhere"], "no such directory"),
        (["batch.max_length=65"], "positions for 64 tokens"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would_before_any_data(
    words: list[str],
    said: str,
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    recipe = ["csv", f"model.name={tiny_bert}", "data.source=absent.csv", "batch.max_length=16"]
    assert main([*recipe, *words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


NORWAY = [(f"warm n{row}", ["no", "yes"][row % 2], ["en", "no"][row // 2 % 2]) for row in range(80)]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [("labels: [no, yes]", 80), ("labels: [yes, no]\n  filter: {lang: no}", 40)],
)
def test_no_and_yes_are_words_of_a_recipe(
    settings: str, rows: int, tiny_bert: Path, tmp_path: Path
) -> None:
    table = "".join(f"{','.join(row)}\n" for row in NORWAY)
    (tmp_path / "norway.csv").write_text(f"text,label,lang\n{table}")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name: {tiny_bert}}}\nbatch: {{max_length: 16}}\n"
        f"data:\n  source: {tmp_path}/norway.csv\n  {settings}\n"
    )
    recipe = recipes.load_recipe(tmp_path / "recipe.yaml")
    report = estimate_dataset(recipe, tmp_path / "cache")
    assert report.labels == recipe.data.labels and set(report.labels) == {"no", "yes"}
    assert sum(report.report.rows.values()) == rows


@pytest.mark.parametrize("wanted", ["true", "TRUE", "'True'"])
def test_a_filter_of_true_takes_it_as_it_is_written(
    wanted: str, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = "".join(f"warm n{row},no,{('true', 'False')[row % 2]}\n" for row in range(40))
    rows += "".join(f"cold n{row},yes,True\n" for row in range(40))
    (tmp_path / "seen.csv").write_text(f"text,label,seen\n{rows}")
    words = [f"model.name={tiny_bert}", f"data.source={tmp_path}/seen.csv", "batch.max_length=16"]
    recipe = recipes.load_recipe("csv", [*words, f"data.filter.seen={wanted}"])
    assert sum(estimate_dataset(recipe, tmp_path / "cache").report.rows.values()) == 60


def test_house_prices_are_only_replicated(tmp_path: Path) -> None:
    recipe = recipes.load_recipe("house-prices")
    said = "\n".join(describe_run(recipe, cluster_of(tmp_path, devices_per_node=2)))
    assert "model     linear: 2 parameters" in said
    assert "layout    auto: a linear model is only replicated" in said


def test_without_workers_the_world_is_one(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, devices_per_node=0)
    assert resolve_layout(recipe_of("b"), SHAPE, cluster).layout == Layout(dp_replicate=1)
    with pytest.raises(LayoutError, match="does not divide the 1 devices"):
        resolve_layout(recipe_of("b", layout={"dp_shard": 2}), SHAPE, cluster)


def test_a_budget_follows_the_memory_only_when_nobody_fixed_it(tmp_path: Path) -> None:
    shape = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
    cluster = cluster_of(tmp_path, accelerator="cuda", device_memory_gib=3)
    lowered = resolve_layout(
        recipe_of("b", precision="bf16", batch={"global_size": 256}), shape, cluster
    )
    assert lowered.token_budget is not None and lowered.token_budget < 32768
    raised = resolve_layout(recipe_of("b"), SHAPE, cluster)
    assert raised.token_budget == 131072
    small = recipe_of("b", batch={"token_budget": 512, "global_size": 32})
    kept = resolve_layout(small, SHAPE, cluster)
    assert kept.token_budget == 512
    fixed = recipe_of("b", batch={"token_budget": 32768, "global_size": 256}, precision="bf16")
    with pytest.raises(LayoutError, match=r"lower batch.token_budget"):
        resolve_layout(fixed, shape, cluster)


def test_what_memory_is_unknown_is_replicated_and_said(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, accelerator="cuda", devices_per_node=4)
    plan = resolve_layout(recipe_of("b"), SHAPE, cluster)
    assert plan.layout == Layout(dp_replicate=4)
    assert "memory of a device is unknown" in plan.lines[0]
    named = cluster_of(tmp_path, accelerator="cuda", devices_per_node=4, accelerator_name="T4")
    assert "of 14.90 GiB a device" in resolve_layout(recipe_of("b"), SHAPE, named).lines[0]


def test_an_explicit_layout_that_will_not_fit_is_warned_of(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, accelerator="cuda", device_memory_gib=0.001)
    plan = resolve_layout(recipe_of("b", layout={"dp_shard": 1}), SHAPE, cluster)
    assert "WARNING" in plan.lines[-1]


def test_the_local_cluster_knows_its_memory() -> None:
    assert spec.load_cluster_spec("local").device_memory_bytes is not None


def test_a_masked_language_model_counts_its_vocabulary(tmp_path: Path) -> None:
    shape = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "masked-lm")
    cluster = cluster_of(tmp_path, devices_per_node=2, device_memory_gib=64)
    batch = {"global_size": 512, "max_length": 32}
    few, many = (
        resolve_layout(
            recipe_of("b", task="masked-lm", masking={"share": share}, batch=batch), shape, cluster
        )
        for share in (0.1, 0.5)
    )
    assert few.layout == many.layout == Layout(dp_replicate=2)
    needed = [float(plan.lines[1].split("at most ")[1].split()[0]) for plan in (few, many)]
    # 64 samples at once: 13 more tokens of each are guessed. A word costs 8 bytes a token in fp32,
    # logits and softmax, and 4 of gradients where these are the peak.
    words = 64 * 13 * 30522 / 2**30
    assert 8 * words - 0.01 < needed[1] - needed[0] < 12 * words + 0.01


def test_windows_are_counted_and_their_memory_is_that_of_whole_texts(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    batch = {"global_size": 16, "max_length": 16}
    cutting = recipe_of(tiny_bert, corpus, batch=batch)
    data = {"source": str(corpus), "windows": {"stride": 7, "max_windows": 256}}
    windows = recipe_of(tiny_bert, corpus, batch=batch, data=data)
    cluster = cluster_of(tmp_path, devices_per_node=2)
    cut, read = (list(describe_run(recipe, cluster)) for recipe in (cutting, windows))
    (said,) = [line for line in read if line.startswith("windows ")]
    assert "at most 4; " in said and not any(line.startswith("windows ") for line in cut)
    assert any("longer and cut" in line for line in cut)
    assert not any("longer and cut" in line for line in read)
    (padded,) = [line for line in read if "(to max_length it would be" in line]
    assert "would be -" not in padded
    one, other = (resolve_layout(recipe, SHAPE, cluster) for recipe in (cutting, windows))
    assert one.tokens_at_once == other.tokens_at_once == 2048
    peaks = [re.search(r"activations (\S+)", "\n".join(plan.lines)) for plan in (one, other)]
    small, large = (float(found[1].rstrip(",")) if found else 0.0 for found in peaks)
    assert large > small
