"""The planner's workload of a recipe: its own values, known sizes, the steps of a dry run."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

from cluster.costmodel.microbatches import Lengths
from cluster.hardware.catalog import read_table
from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.models.shape import shape_from_config
from trainers.planning.model_sizes import ModelSizesError, known_shape
from trainers.planning.workload import WorkloadError, load_workload

SHIPPED = sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml"))
SHIPPED.remove("house-prices")  # a linear model
CONFIGS = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "distilbert": DistilBertConfig,
    "electra": ElectraConfig,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_planned_with_its_own_values(name: str) -> None:
    recipe = recipes.load_recipe(name)
    workload = load_workload(name, rows=1000, tokens=20)
    recipe = choose_settings(recipe, workload.rows, workload.shape.hidden_size).recipe
    assert workload.name == name
    assert workload.global_batch == recipe.global_batch_size
    assert workload.max_length == recipe.batch.max_length
    assert workload.token_budget == recipe.batch.token_budget
    assert workload.optimizer == recipe.optimizer.name
    assert workload.precision == recipe.precision
    assert workload.attention_dropout == (recipe.model.attention_dropout > 0)
    is_masked = recipe.task == "masked-lm"
    assert workload.masked_tokens == is_masked * recipe.masking.share * recipe.batch.max_length
    whole = max(1, -(-(workload.rows or 0) // workload.global_batch)) * recipe.epochs
    assert workload.steps == min(whole, recipe.stopping.max_steps or whole)


@pytest.mark.parametrize("row", read_table("models"), ids=lambda row: row["name"])
def test_known_sizes_are_those_of_the_model_family(row: dict[str, str]) -> None:
    names = {
        "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim"),
    }
    own = names.get(row["family"], names["bert"])
    sizes = dict(
        zip(
            own,
            (int(row[n]) for n in ("hidden_size", "num_layers", "num_heads", "intermediate_size")),
            strict=True,
        )
    )
    extra = {"embedding_size": int(row["embedding_size"])} if row["family"] == "electra" else {}
    types = (
        {} if row["family"] == "distilbert" else {"type_vocab_size": int(row["type_vocab_size"])}
    )
    config = CONFIGS[row["family"]](
        vocab_size=int(row["vocab_size"]),
        max_position_embeddings=int(row["max_positions"]),
        **sizes, **extra, **types,
    )  # fmt: skip
    for task in ("classification", "masked-lm"):
        settings = {"task": task, "model": {"name": row["name"]}, "data": {"source": "x"}}
        assert known_shape(Recipe.model_validate(settings)) == shape_from_config(config, task, 2)


def test_bert_has_as_many_parameters_as_everybody_knows() -> None:
    settings = {"task": "masked-lm", "data": {"source": "x"}}
    large = Recipe.model_validate(settings | {"model": {"name": "bert-large-uncased"}})
    assert known_shape(large).num_parameters == pytest.approx(335e6, rel=0.01)


def test_a_directory_or_sizes_of_ones_own_will_do(tmp_path: Path) -> None:
    BertConfig(hidden_size=64, num_attention_heads=2, vocab_size=500).save_pretrained(tmp_path)
    asked = load_workload("imdb", [f"model.name={tmp_path}"])
    assert (asked.shape.hidden_size, asked.shape.vocab_size) == (64, 500)
    assert load_workload("tiny-pretrain").shape.num_layers == 4
    assert load_workload("imdb", ["model.layers=[0,2,4]"]).shape.num_layers == 3


def test_steps_are_those_of_a_dry_run() -> None:
    imdb = load_workload("imdb")
    assert imdb.rows == pytest.approx(19_977, rel=0.01)  # what `--dry-run` says
    assert imdb.steps == pytest.approx(3747, rel=0.01)
    assert imdb.mean_tokens == 264
    assert imdb.lengths.spread == 0.8
    assert load_workload("imdb", ["stopping.max_steps=100"]).steps == 100
    packed = load_workload("tiny-pretrain")
    assert packed.rows == pytest.approx(10_359, rel=0.01)
    assert packed.steps == pytest.approx(486, rel=0.01)
    assert packed.lengths == Lengths(128)


def test_what_is_said_of_the_data_is_taken() -> None:
    told = load_workload("imdb", ["data.source=mine"], rows=1000, tokens=50)
    assert (told.rows, told.mean_tokens, told.steps) == (1000, 50, 189)
    assert told.assumed == ()
    long = load_workload("imdb", ["data.source=mine"], rows=1000)
    assert long.mean_tokens == 512
    assert "every row fills batch.max_length" in long.assumed[0]


def test_a_run_or_a_file_tells_of_the_data(tmp_path: Path) -> None:
    record = {"data": {"rows": {"train": 640}, "lengths": {"mean": 33.0}, "sequences": {}}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    asked = load_workload("csv", ["batch.global_size=64"], run=tmp_path)
    assert (asked.rows, asked.mean_tokens) == (640, 33.0)
    assert "record.json" in asked.assumed[0]
    rows = tmp_path / "mine.csv"
    rows.write_text('text,label\n"two\nlines",a\nb,b\n')
    assert load_workload("csv", [f"data.source={rows}"]).rows == 2
    with pytest.raises(WorkloadError, match=r"holds no record\.json"):
        load_workload("csv", run=tmp_path / "nothing")


def test_of_a_file_the_rows_that_are_not_held_out_are_trained_on(tmp_path: Path) -> None:
    rows = tmp_path / "mine.csv"
    rows.write_text("body,stars\n" + f"{'x' * 45},5\n" * 95)
    settings = [
        f"data.source={rows}",
        "data.text=body",
        "batch.global_size=16",
        "stopping.epochs=2",
    ]
    told = load_workload("csv", settings)
    assert (told.rows, told.steps) == (76, 10), "five steps an epoch, the last of twelve rows"
    assert told.mean_tokens == pytest.approx(45 / 4.5 + 2)
    assert f"76 training rows of the 95 in {rows}" in told.assumed
    assert load_workload("csv", [*settings, "data.max_rows=50"]).rows == 40
    other = load_workload("csv", [*settings, "data.text=none"])
    assert other.mean_tokens == other.max_length, "a column that is not there has no length"


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("imbd", [], "did you mean imdb"),
        ("imdb", ["batch.global_sise=3"], "did you mean batch.global_size"),
        ("imdb", ["batch.global_size=0"], "greater than or equal to 1"),
        ("imdb", ["model.name=bert-bas-uncased"], "did you mean bert-base-uncased"),
        ("imdb", ["data.source=mine"], "give --rows"),
        ("imdb", ["data.source=mine.csv"], "no such file here.*set data.source, or give --rows"),
        ("house-prices", [], "a linear model"),
        ("imdb", ["model.name=random"], "needs hidden_size"),
    ],
)
def test_a_mistake_is_one_clear_error(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises((SettingsError, WorkloadError, ModelSizesError), match=said):
        load_workload(name, overrides)


def test_a_family_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelSizesError, match="a gpt2 model"):
        load_workload("imdb", [f"model.name={tmp_path}"])


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    settings = {"model": {"name": "roberta-base"}, "data": {"source": "imdb"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    asked = load_workload(str(path))
    assert asked.name == "mine"
    assert asked.shape.vocab_size == 50265


def test_windows_of_long_rows_are_counted() -> None:
    settings = ["data.source=mine", "batch.max_length=128", "data.windows.stride=64"]
    for tokens, computed in ((100, 100), (128, 128), (192, 256), (200, 200 + 2 * 64)):
        told = load_workload("imdb", settings, rows=1000, tokens=tokens)
        assert told.mean_tokens == computed
        assert any("windows" in each for each in told.assumed)
    assert load_workload("imdb", settings, rows=1000, tokens=10_000).mean_tokens == 16 * 128
    assert load_workload("imdb", settings[:2], rows=1000, tokens=10_000).mean_tokens == 128
