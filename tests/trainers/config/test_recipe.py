"""Recipes: what is shipped loads, what is wrong is said in one clear error."""

import json
from pathlib import Path

import pytest
import yaml

from cluster.costmodel.layout import Layout
from cluster.settings import SettingsError, apply_override
from trainers.config import recipe as recipes
from trainers.config import sections
from trainers.config.metrics import lower_is_better

SHIPPED = sorted(path.name for path in recipes.SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_survives_writing(name: str) -> None:
    recipe = recipes.load_recipe(name)
    assert recipes.parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides_reach_every_level() -> None:
    changes = [
        "optimizer.learning_rate=3e-5",
        "batch.global_size=64",
        "seed=7",
        "data.labels=[a, b]",
    ]
    recipe = recipes.load_recipe("reviews", changes)
    assert recipe.optimizer.learning_rate == 3e-5
    assert recipe.batch.global_size == 64
    assert recipe.seed == 7
    assert recipe.data.labels == ("a", "b")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "optimizer.learning_rte=1",
            "optimizer.learning_rte: no such setting; did you mean optimi",
        ),
        ("optimiser.learning_rate=1", "optimiser: no such setting; did you mean optimizer"),
        ("batch.zzz=1", "batch.zzz: no such setting; batch has global_size, max_length"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate = 'fast': .*number"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0: .*greater than 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate = inf: .*finite"),
        ("task=clasification", "task = 'clasification': .*did you mean classification"),
        ("batch.global_size=0", "batch.global_size = 0: .*samples an optimizer step"),
        ("batch.global_size=1.5", "batch.global_size = 1.5: .*integer"),
        ("batch.global_size=true", "batch.global_size = true: this setting is never true or false"),
        ("batch.token_budget=64", "token_budget 64 cannot hold one text of max_length 128"),
        ("batch=3", "batch = 3: a group of settings; did you mean batch.global_size"),
        ("data.validation=1.5", "data.validation = 1.5: .*less than 1"),
        ("data.text=[]", "data.text = \\[\\]: .*at least 1 item"),
        ("data.labels=[a, a]", "data: labels repeats a name"),
        ("data.filter=x", "data.filter = 'x': .*dictionary"),
        ("model.hidden_size=12", "hidden_size given, but the sizes of .* are fixed"),
        ("model.name=random", "a `random` model also needs hidden_size"),
        ("optimizer.momentum=0.9", "momentum belongs to sgd, not to adamw"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("evaluation.metric=mae", "evaluation.metric 'mae' does not exist for classification"),
        ("stopping.patience=0", "stopping.patience = 0: .*greater than or equal to 1"),
        ("seed=-1", "seed = -1: .*greater than or equal to 0"),
        ("schedule.warmup=1", "schedule.warmup = 1: .*less than 1"),
        ("precision=fp8", "precision = 'fp8': .*'auto', 'fp32', 'bf16' or 'fp16'"),
        ("layout=atuo", "layout = 'atuo': .*did you mean auto"),
        ("layout.tq=2", "layout.tq: no such setting; did you mean layout.tp"),
        ("layout.tp=x", "layout.tp = 'x': .*integer"),
        ("layout.tp=true", "layout.tp = true: this setting is never true or false"),
        ("masking.whole_words=3", "masking.whole_words = 3: .*boolean"),
        ("masking.share=0", "masking.share = 0: .*greater than 0"),
        ("masking.share=0.3", "masking belongs to masked-lm, but task is classification"),
        ("task=masked-lm", "data.labels names classes, but task is masked-lm"),
        ("evaluation.metric=perplexity", "'perplexity' does not exist for classification"),
        ("model.vocabulary_size=99", "vocabulary_size given, but the sizes of .* are fixed"),
        ("data.source.x=1", "source is a value, not a group of settings"),
        ("data.source", "'data.source' is not an override; write key=value"),
        ("reviews.csv", "'reviews.csv' is not an override; .* as in data.source=reviews.csv"),
        ("source=x", r"source: no such setting; did you mean data.source\?"),
        ("label=stars", r"label: no such setting; did you mean data.label\?"),
        ("epochs=3", r"epochs: no such setting; did you mean stopping.epochs\?"),
        ("data.epochs=3", r"data.epochs: no such setting; did you mean stopping.epochs\?"),
        ("epoch=3", r"did you mean stopping.epochs\?"),
        ("batch_size=8", r"did you mean batch.global_size\?"),
        ("optimizer.lr=1", r"did you mean optimizer.learning_rate\?"),
        ("name=bert", r"did you mean model.name or optimizer.name or schedule.name\?"),
        ("modle.name=x", r"modle: no such setting; did you mean model\?"),
        ("model=bert", r"model = 'bert': a group of settings; did you mean model.name\?"),
        ("data.text=", "data.text = None: input should be a valid (string|tuple) or a valid"),
    ],
)
def test_a_wrong_setting_names_key_value_and_way_out(override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        recipes.load_recipe("reviews", [override])


@pytest.mark.parametrize(
    ("overrides", "labels", "filters"),
    [
        (["data.labels=[no, yes]", "data.filter.lang=no"], ("no", "yes"), {"lang": "no"}),
        (["data.labels=[0, 1]", "data.filter={stars: 5}"], ("0", "1"), {"stars": "5"}),
        (["data.labels=[on, off]", "data.filter={0: 1.5}"], ("on", "off"), {"0": "1.5"}),
        (
            ["data.labels=[true, false]", "data.filter.seen=true"],
            ("True", "False"),
            {"seen": "True"},
        ),
        (["data.labels=[1:30, 2024-05-01]", "data.filter={}"], ("1:30", "2024-05-01"), {}),
    ],
)
def test_labels_and_filters_are_the_words_and_numbers_of_a_table(
    overrides: list[str], labels: tuple[str, ...], filters: dict[str, str], tmp_path: Path
) -> None:
    recipe = recipes.load_recipe("csv", overrides)
    assert (recipe.data.labels, recipe.data.filter) == (labels, filters)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert recipes.load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipes.parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_wrong_combinations() -> None:
    with pytest.raises(SettingsError, match=r"hold out 1\.1 of the texts"):
        recipes.load_recipe("reviews", ["data.validation=0.6", "data.test=0.5"])
    with pytest.raises(SettingsError, match="patience waits for evaluations"):
        recipes.load_recipe("csv", ["data.validation=0"])
    with pytest.raises(SettingsError, match=r"data.labels names classes.*regression"):
        recipes.load_recipe("csv", ["task=regression", "data.labels=[a, b]"])


def test_a_group_that_was_written_out_as_nothing_is_filled() -> None:
    settings = {"distillation": None}
    apply_override(settings, "distillation.weight=0.3")
    assert settings == {"distillation": {"weight": 0.3}}


def test_a_layout_is_auto_or_explicit() -> None:
    assert recipes.load_recipe("reviews").layout == "auto"
    assert recipes.load_recipe("reviews", ["layout=auto"]).layout == "auto"
    chosen = Layout(tp=2, sequence_parallel=True)
    for first in ([], ["layout=auto"]):
        changes = [*first, "layout.tp=2", "layout.sequence_parallel=true"]
        recipe = recipes.load_recipe("reviews", changes)
        assert recipe.layout == chosen
        assert recipes.parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipes.load_recipe("reviews", ["layout.tp=2", "layout=auto"]).layout == "auto"


SIZES = ["model.name=random", *(f"model.{size}=8" for size in sections.SIZES)]


def test_masked_lm() -> None:
    recipe = recipes.load_recipe("csv", ["task=masked-lm", "masking.whole_words=true"])
    assert (recipe.metric, recipe.masking.share, recipe.masking.whole_words) == ("loss", 0.15, True)
    assert recipes.parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert all(lower_is_better(metric) for metric in ("loss", "perplexity"))
    with pytest.raises(SettingsError, match=r"masked-lm guesses words, but model\.name is linear"):
        recipes.load_recipe("house-prices", ["task=masked-lm"])
    with pytest.raises(SettingsError, match="'f1' does not exist for masked-lm"):
        recipes.load_recipe("csv", ["task=masked-lm", "evaluation.metric=f1"])


def test_a_random_model_names_a_tokenizer_or_trains_one() -> None:
    assert recipes.load_recipe("csv", [*SIZES, "model.vocabulary_size=100"]).model.tokenizer is None
    with pytest.raises(SettingsError, match=r"also needs tokenizer \(or vocabulary_size"):
        recipes.load_recipe("csv", SIZES)
    with pytest.raises(SettingsError, match=r"names one; remove one of the two"):
        recipes.load_recipe("csv", [*SIZES, "model.vocabulary_size=100", "model.tokenizer=x"])
    with pytest.raises(SettingsError, match=r"vocabulary_size = 5: .*greater than or equal to 64"):
        recipes.load_recipe("csv", [*SIZES, "model.vocabulary_size=5"])


def test_a_shipped_recipe_goes_by_its_name() -> None:
    with pytest.raises(SettingsError) as caught:
        recipes.load_recipe("reviews.yaml", ["optimizer.learning_rte=3e-5"])
    assert str(caught.value) == (
        "reviews.yaml:\n"
        "  optimizer.learning_rte: no such setting; did you mean optimizer.learning_rate?"
    )


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        recipes.load_recipe("reviews", ["batch.global_size=-1", "seed=x", "tusk=1"])
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "not readable as YAML"),
        ("- a\n- b\n", "holds no `key: value` settings"),
        ("", "holds no `key: value` settings"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is written twice"),
        ("task: classification\n", "model: missing"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        recipes.load_recipe(path)


def test_a_missing_file_lists_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give a file, or one of bbc-news, bert-base"):
        recipes.load_recipe(tmp_path / "nothing.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not readable as YAML"):
        recipes.load_recipe(binary)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reviews.csv", "holds rows, and is no recipe; write csv.yaml data.source=reviews.csv"),
        ("data.source=x.csv", "is a setting, and the recipe comes first, as in csv.yaml data.sou"),
        ("revews", "did you mean reviews"),
        (".", "'.' is a directory, no recipe"),
        ("", "'' is a directory, no recipe"),
    ],
)
def test_what_is_no_recipe_is_named(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        recipes.load_recipe(name)


def test_the_recipe_of_a_run_is_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: classification\n")
    with pytest.raises(SettingsError, match=f"is a directory, no recipe; give {tmp_path}/recipe"):
        recipes.load_recipe(tmp_path)


def test_files_here_are_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").touch()
    Path("bert").mkdir()
    changes = ["data.source=mine.csv", "data.test=s3://b/t.csv", "model.name=bert"]
    rooted = recipes.load_recipe("csv", changes).with_absolute_paths()
    assert rooted.data.source == str(tmp_path / "mine.csv")
    assert rooted.model.name == str(tmp_path / "bert")
    assert (rooted.data.test, rooted.data.validation) == ("s3://b/t.csv", "auto")
    assert recipes.load_recipe("imdb").with_absolute_paths() == recipes.load_recipe("imdb")


def test_the_schema_describes_every_setting() -> None:
    schema = json.loads(recipes.recipe_schema())
    assert schema["additionalProperties"] is False
    for group in schema["$defs"].values():
        assert all("description" in setting for setting in group["properties"].values())
