"""Random models and rows for the checks of `gpu.py`, and loops over them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cluster.costmodel.layout import Layout
from trainers.config.recipe import Recipe, parse_recipe
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.masking import MaskingVocabulary
from trainers.data.ragged import RaggedArray
from trainers.data.report import DataReport
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.models.build import build_on_meta, materialize
from trainers.parallel.parallelize import parallelize
from trainers.planning.fake import FakeTokenizer
from trainers.training.events import StepEvent
from trainers.training.loop import TrainingLoop

Row = dict[str, Any]
TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128
}  # fmt: skip
SMALL = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024
}  # fmt: skip
BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip
VOCABULARY = 30522


class RandomTokenizer(FakeTokenizer):
    """A tokenizer of random ids, of which five are special."""

    def masking_vocabulary(self) -> MaskingVocabulary:
        """Return ids of which none continues a word."""
        special = np.arange(self.num_tokens) < 5
        return MaskingVocabulary(self.num_tokens, 4, special, np.zeros_like(special))


def make_recipe(sizes: Row, batch: int, longest: int, **settings: Any) -> Recipe:
    """Return a recipe over random rows. settings: of the recipe, over the defaults."""
    model = {"name": "random", "vocabulary_size": VOCABULARY, **sizes}
    values: Row = {
        "task": "classification",
        "model": model | settings.pop("model", {}),
        "data": {"source": "random", "validation": 0.0, "test": 0.0},
        "batch": {"global_size": batch, "max_length": longest, **settings.pop("batch", {})},
        "optimizer": {"learning_rate": 5e-5},
        "stopping": {"epochs": 1_000_000, **settings.pop("stopping", {})},
    }
    return parse_recipe(values | settings, "check")


def draw_lengths(kind: str, count: int, longest: int) -> np.ndarray:
    """Return lengths [count]: "full", or "reviews", spread as those of film reviews."""
    if kind == "full":
        return np.full(count, longest)
    drawn = np.random.default_rng(0).lognormal(np.log(0.4 * longest), 0.55, count)
    return np.clip(drawn, 8, longest).astype(np.int64)


def make_dataset(lengths: np.ndarray, num_test: int = 0) -> PreparedDataset:
    """Return random tokens of `lengths` [n] with two labels; the first `num_test` are test rows."""
    draw = np.random.default_rng(1)

    def split(sizes: np.ndarray) -> DatasetSplit:
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        values = draw.integers(5, VOCABULARY, offsets[-1], dtype=np.int32)
        return DatasetSplit(RaggedArray(values, offsets), draw.integers(0, 2, len(sizes)))

    report = DataReport(len(lengths), (), {}, {}, {}, 0, 0, 0, 0.0, {})
    nothing = split(lengths[:0])
    return PreparedDataset(
        split(lengths[num_test:]),
        nothing,
        split(lengths[:num_test]),
        ("no", "yes"),
        report,
        "random",
    )


def make_loop(recipe: Recipe, data: PreparedDataset, device: str) -> TrainingLoop:
    """Build the training loop of one process on `device`."""
    row, encoder = DEVICES[device], RandomTokenizer(VOCABULARY)
    mesh, place = Mesh.from_layout(Layout(), device), row.torch_device()
    model = build_on_meta(recipe, data.labels, recipe.batch.max_length, encoder)
    parallel = parallelize(
        model,
        mesh,
        lambda part: materialize(part, recipe.seed, place),
        autocast_dtype(row, recipe.precision),
    )
    return TrainingLoop(recipe, data, encoder, parallel, row)


def run_steps(loop: TrainingLoop, count: int) -> list[StepEvent]:
    """Run `count` steps."""
    steps = []
    for event in loop.run(waits=True):
        if isinstance(event, StepEvent):
            steps.append(event)
        if len(steps) == count:
            break
    return steps


def synchronize(device: str) -> None:
    """Wait until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_call(function: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of a call, the device done."""
    function()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
