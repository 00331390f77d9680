"""A simulation against the arithmetic, and against ranks that really compute."""

import ctypes
import pickle
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from cluster.costmodel.layout import Layout, LayoutError
from cluster.costmodel.memory import TrainingSetup, memory_by_rank
from tests.support.ranks import spawn_ranks
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.distributed.mesh import Mesh
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.models.build import materialize
from trainers.models.packed import PackedTexts
from trainers.models.shape import shape_from_config
from trainers.parallel.parallelize import parallelize
from trainers.parallel.pipeline import DeviceBatch, Pipeline
from trainers.planning.memory_tracker import MemoryTracker
from trainers.planning.simulation_report import simulated_cluster
from trainers.planning.simulator import RankReport, SimulationSpec, simulate
from trainers.training.optimizer import build_optimizer

# As many sequences as make the half megabyte small that gloo and Python take beside the tensors.
WORDS, SEQUENCES, TOKENS, MASKED = 512, 24, 64, 10


def build_model(task: str) -> TextModel:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=TOKENS,
        attention_probs_dropout_prob=0.0,
    )
    with torch.device("meta"):
        kind = BertForMaskedLM if task == "masked-lm" else BertForSequenceClassification
        return TextModel(kind(config)).train()


def recipe_of(task: str = "masked-lm", optimizer: str = "adamw") -> Recipe:
    return recipes.parse_recipe(
        {
            "task": task,
            "model": {"name": "x"},
            "data": {"source": "x"},
            "batch": {"global_size": 32},
            "optimizer": {"name": optimizer, "learning_rate": 5e-5},
        }
    )


def simulation_of(
    layout: Layout,
    num_micro_batches: int = 3,
    precision: str = "fp32",
    task: str = "masked-lm",
    optimizer: str = "adamw",
) -> SimulationSpec:
    setup = TrainingSetup(SEQUENCES, TOKENS, num_micro_batches, precision, optimizer, masked=MASKED)
    shape = shape_from_config(build_model(task).config, task, 2)
    return SimulationSpec(
        recipe_of(task, optimizer), shape, partial(build_model, task), layout, setup
    )


def layout_of(**degrees: object) -> Layout:
    return Layout.model_validate({"dp_replicate": 1, **degrees})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "precision", "num_micro_batches"),
    [
        (layout_of(dp_replicate=1000), "fp32", 3),
        (layout_of(dp_replicate=4, dp_shard=8), "fp32", 1),
        (layout_of(dp_shard=8, recompute="full"), "bf16", 3),
        (layout_of(tp=4, sequence_parallel=True), "fp32", 3),
        (layout_of(dp_shard=2, pp=2, tp=2, recompute="selective"), "fp32", 5),
    ],
)
def test_the_arithmetic_is_within_a_twentieth(
    layout: Layout, precision: str, num_micro_batches: int
) -> None:
    simulation = simulation_of(layout, num_micro_batches, precision)
    reports = list(simulate(simulation))
    expected = memory_by_rank(simulation.shape, layout, simulation.setup)
    assert len(reports) == layout.pp
    for rank_report, memory in zip(reports, expected, strict=True):
        assert memory.total == pytest.approx(rank_report.peak, rel=0.05)
        assert 4 * rank_report.num_parameters == rank_report.memory["parameters"]
        assert memory.parameters == pytest.approx(rank_report.memory["parameters"], rel=0.005)
        assert memory.moments == pytest.approx(rank_report.memory["moments"], rel=0.005)
    assert not dist.is_initialized()


@pytest.mark.slow
def test_exchanges_grow_with_micro_batches_as_they_do_when_all_are_simulated() -> None:
    """Some of them are not simulated; their collectives are counted all the same."""
    layout = layout_of(dp_replicate=2, dp_shard=2, pp=2)
    few, many = (next(simulate(simulation_of(layout, m))) for m in (3, 12))
    assert set(few.collectives) == set(many.collectives)
    for kind, per_micro_batch in {"send": 1, "recv": 1}.items():
        number, size = many.collectives[kind, "pp"]
        assert number == 12 * per_micro_batch
        assert size == number * SEQUENCES * TOKENS * 64 * 4
    gathers = {m: r.collectives["all_gather", "dp_shard"][0] for m, r in ((3, few), (12, many))}
    assert gathers[12] % (gathers[12] // 12) == 0 and gathers[12] > 3.5 * gathers[3]
    reduced = [rank_report.collectives["all_reduce", "dp_replicate"] for rank_report in (few, many)]
    assert reduced[0] == reduced[1]  # once a step
    assert reduced[0][1] == few.memory["parameters"]


@pytest.mark.slow
def test_copies_of_a_classifier_exchange_rows_beside_their_buckets() -> None:
    (rank_report,) = simulate(simulation_of(layout_of(dp_replicate=4), task="classification"))
    _, size = rank_report.collectives["all_reduce", "dp_replicate"]
    assert size == pytest.approx(rank_report.memory["parameters"], rel=0.01)


@pytest.mark.slow
def test_a_simulation_of_bert_large_says_what_it_assumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["model.num_hidden_layers=2", "model.hidden_size=64", "model.intermediate_size=128"]
    small += ["model.num_attention_heads=4", "batch.global_size=512", "optimizer.name=adamw"]
    command = ["bert-large-pretrain.yaml", *small, "--simulate", "--devices", "16"]
    assert main([*command, "--device-memory", "80GiB", "layout.tp=2", "layout.dp_shard=4"]) == 0
    said = capsys.readouterr().out
    assert "16 device(s) of 80.00 GiB, 8 a node" in said
    assert "nothing of it has run on hardware" in said
    assert "vocabulary 30,522: that of BERT, as bert-large-uncased is not here" in said
    assert "dp_replicate 2 x dp_shard 4 x tp 2" in said
    assert "all_gather      dp_shard" in said and "all_reduce      tp" in said
    assert "fits " in said

    assert main([*command, "--device-memory", "0.05GiB", "layout.tp=2"]) == 2
    refusal = capsys.readouterr().err
    assert "error: layout: does not fit: a device of pipeline rank 0 needs 0." in refusal
    assert "of 0.05 GiB" in refusal and "or give devices of" in refusal

    command[command.index("--simulate")] = "--rehearse"  # the old spelling
    assert main([*command, "--device-memory", "much"]) == 2
    assert "--device-memory 'much': give GiB, as in 80GiB" in capsys.readouterr().err


def test_devices_come_in_whole_nodes() -> None:
    assert simulated_cluster(None, 1024, 80, None).num_nodes == 128
    assert simulated_cluster(None, 4, 80, None).metadata.devices_per_node == 4
    with pytest.raises(LayoutError, match="--devices 12 does not fill nodes of 8"):
        simulated_cluster(None, 12, None, None)


LAYOUTS = [
    layout_of(dp_replicate=2),
    layout_of(dp_shard=2),
    layout_of(tp=2),
    layout_of(pp=2),
    layout_of(dp_shard=2, tp=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_that_compute_take_what_was_simulated(layout: Layout, tmp_path: Path) -> None:
    """By what the C library has given out, and exchange as much.

    Of so many micro-batches a simulation runs a few: memory does not grow with their number.
    """
    simulation = simulation_of(layout, num_micro_batches=8 if layout.pp > 1 else 3)
    reports = list(simulate(simulation))
    spawn_ranks(
        _compute, (layout, tmp_path, simulation.setup.num_micro_batches), nprocs=layout.world_size
    )
    for rank_report in reports:
        rank = rank_report.pp_rank * layout.dp * layout.tp
        allocated, counted, exchanged = pickle.loads((tmp_path / f"rank{rank}").read_bytes())
        assert rank_report.peak == pytest.approx(allocated, rel=0.05)
        assert rank_report.peak == pytest.approx(counted, rel=0.03)
        assert exchanged == pytest.approx(_bytes(rank_report), rel=0.01)


def _bytes(rank_report: RankReport) -> dict[str, int]:
    found: dict[str, int] = {}
    for (kind, _), (_, size) in rank_report.collectives.items():
        found[kind] = found.get(kind, 0) + size
    return found


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library, which keeps count of itself over all threads."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
    _fields_ = tuple((name, ctypes.c_size_t) for name in (*NAMES, "fordblks", "keepcost"))


class Heap(TorchDispatchMode):
    """What the C library has given out at most, seen after each operation, since `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self._read = ctypes.CDLL(None).mallinfo2
        self._read.restype = _Allocated
        self._before = self.grown = 0

    def begin(self) -> None:
        self._before, self.grown = self._bytes(), 0

    def _bytes(self) -> int:
        now = self._read()
        return int(now.uordblks + now.hblkhd)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented
        result = function(*args, **(kwargs or {}))
        self.grown = max(self.grown, self._bytes() - self._before)
        return result


def _compute(rank: int, layout: Layout, out: Path, num_micro_batches: int) -> None:
    """Two steps on gloo, as the loop does them; what was allocated, counted, exchanged.

    What lives from step to step is counted by its storages; what the second step takes on top of
    it, by the heap.
    """
    torch.set_num_threads(1)
    size = layout.world_size
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=size)
    simulation, tracker, heap = simulation_of(layout, num_micro_batches), MemoryTracker(), Heap()
    place, masked = torch.device("cpu"), SEQUENCES * MASKED
    with tracker, heap:
        mesh = Mesh.from_layout(layout, "cpu")
        parallel = parallelize(
            simulation.build_model(), mesh, lambda part: materialize(part, 0, place), None
        )
        optimizer = build_optimizer(parallel, simulation.recipe, fused=True)
        pipeline = Pipeline(parallel, 64, nullcontext)

        def loss_of(logits: torch.Tensor, batch: DeviceBatch) -> torch.Tensor:
            losses, _ = token_losses(logits, batch.targets, parallel.vocab_shard)
            return losses.sum() * batch.weight

        for _step in range(2):
            tracker.begin_step()
            heap.begin()
            lasting = tracker.total
            batches = [
                DeviceBatch(
                    inputs=torch.randint(5, WORDS, (1, SEQUENCES * TOKENS)),
                    packed=PackedTexts.from_lengths(
                        [TOKENS] * SEQUENCES,
                        reads=torch.arange(masked),
                        keys=torch.arange(SEQUENCES),
                    ),
                    targets=torch.arange(masked),
                    weight=1 / masked,
                )
                for _ in range(num_micro_batches)
            ]
            pipeline.forward_backward(batches, loss_of)
            parallel.finalize_gradients(None)
            parallel.clip_gradients(1.0)
            optimizer.step()
            optimizer.zero_grad()
    exchanged: dict[str, int] = {}
    for exchange, number in tracker.collective_bytes.items():
        exchanged[exchange.kind] = exchanged.get(exchange.kind, 0) + number
    exchanged.pop("broadcast", None)  # copies agree on their buckets, once
    found = (lasting + heap.grown, tracker.peak, exchanged)
    (out / f"rank{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
