"""A rehearsal against the arithmetic, and against ranks that really compute."""

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
from cluster.costmodel.memory import Regime, needs
from tests.support.ranks import spawn
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.distributed.mesh import Mesh
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.models.build import materialize
from trainers.models.shape import shape_of
from trainers.parallel.parallelize import parallelize
from trainers.parallel.pipeline import Batch, Pipeline
from trainers.planning.memory_tracker import Ledger
from trainers.planning.simulation_report import devices_of
from trainers.planning.simulator import Play, Role, rehearse
from trainers.training.optimizer import build_optimizer

# As many sequences as make the half megabyte small that gloo and Python take beside the tensors.
WORDS, SEQUENCES, TOKENS, MASKED = 512, 24, 64, 10


def sketch(task: str) -> TextModel:
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
    return recipes.parse(
        {
            "task": task,
            "model": {"name": "x"},
            "data": {"source": "x"},
            "optimizer": {"name": optimizer},
        }
    )


def play_of(
    layout: Layout,
    num_micro_batches: int = 3,
    precision: str = "fp32",
    task: str = "masked-lm",
    optimizer: str = "adamw",
) -> Play:
    regime = Regime(SEQUENCES, TOKENS, num_micro_batches, precision, optimizer, masked=MASKED)
    shape = shape_of(sketch(task).config, task, 2)
    return Play(recipe_of(task, optimizer), shape, partial(sketch, task), layout, regime)


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
    play = play_of(layout, num_micro_batches, precision)
    roles = list(rehearse(play))
    expected = needs(play.shape, layout, play.regime)
    assert len(roles) == layout.pp
    for role, memory in zip(roles, expected, strict=True):
        assert memory.total == pytest.approx(role.peak, rel=0.05)
        assert 4 * role.num_parameters == role.memory["parameters"]
        assert memory.parameters == pytest.approx(role.memory["parameters"], rel=0.005)
        assert memory.moments == pytest.approx(role.memory["moments"], rel=0.005)
    assert not dist.is_initialized()


@pytest.mark.slow
def test_exchanges_grow_with_micro_batches_as_they_do_when_all_are_played() -> None:
    """Some of them are not played; their exchanges are counted all the same."""
    layout = layout_of(dp_replicate=2, dp_shard=2, pp=2)
    few, many = (next(rehearse(play_of(layout, m))) for m in (3, 12))
    assert set(few.exchanges) == set(many.exchanges)
    for kind, per_micro_batch in {"send": 1, "recv": 1}.items():
        number, size = many.exchanges[kind, "pp"]
        assert number == 12 * per_micro_batch
        assert size == number * SEQUENCES * TOKENS * 64 * 4
    gathers = {m: r.exchanges["all_gather", "dp_shard"][0] for m, r in ((3, few), (12, many))}
    assert gathers[12] % (gathers[12] // 12) == 0 and gathers[12] > 3.5 * gathers[3]
    reduced = [role.exchanges["all_reduce", "dp_replicate"] for role in (few, many)]
    assert reduced[0] == reduced[1]  # once a step
    assert reduced[0][1] == few.memory["parameters"]


@pytest.mark.slow
def test_copies_of_a_classifier_exchange_rows_beside_their_buckets() -> None:
    (role,) = rehearse(play_of(layout_of(dp_replicate=4), task="classification"))
    _, size = role.exchanges["all_reduce", "dp_replicate"]
    assert size == pytest.approx(role.memory["parameters"], rel=0.01)


@pytest.mark.slow
def test_a_rehearsal_of_bert_large_says_what_it_assumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["model.num_hidden_layers=2", "model.hidden_size=64", "model.intermediate_size=128"]
    small += ["model.num_attention_heads=4", "batch.global_size=512", "optimizer.name=adamw"]
    command = ["bert-large-pretrain.yaml", *small, "--rehearse", "--devices", "16"]
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

    assert main([*command, "--device-memory", "much"]) == 2
    assert "--device-memory 'much': give GiB, as in 80GiB" in capsys.readouterr().err


def test_devices_come_in_whole_nodes() -> None:
    assert devices_of(None, 1024, 80, None).num_nodes == 128
    assert devices_of(None, 4, 80, None).metadata.devices_per_node == 4
    with pytest.raises(LayoutError, match="--devices 12 does not fill nodes of 8"):
        devices_of(None, 12, None, None)


LAYOUTS = [
    layout_of(dp_replicate=2),
    layout_of(dp_shard=2),
    layout_of(tp=2),
    layout_of(pp=2),
    layout_of(dp_shard=2, tp=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_that_compute_take_what_was_rehearsed(layout: Layout, tmp_path: Path) -> None:
    """By what the C library has given out, and exchange as much.

    Of so many micro-batches a rehearsal plays a few: memory does not grow with their number.
    """
    play = play_of(layout, num_micro_batches=8 if layout.pp > 1 else 3)
    roles = list(rehearse(play))
    spawn(_compute, (layout, tmp_path, play.regime.num_micro_batches), nprocs=layout.world_size)
    for role in roles:
        rank = role.pp_rank * layout.dp * layout.tp
        allocated, counted, exchanged = pickle.loads((tmp_path / f"rank{rank}").read_bytes())
        assert role.peak == pytest.approx(allocated, rel=0.05)
        assert role.peak == pytest.approx(counted, rel=0.03)
        assert exchanged == pytest.approx(_bytes(role), rel=0.01)


def _bytes(role: Role) -> dict[str, int]:
    found: dict[str, int] = {}
    for (kind, _), (_, size) in role.exchanges.items():
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
    play, ledger, heap = play_of(layout, num_micro_batches), Ledger(), Heap()
    place, masked = torch.device("cpu"), SEQUENCES * MASKED
    with ledger, heap:
        mesh = Mesh.of(layout, "cpu")
        parallel = parallelize(play.sketch(), mesh, lambda part: materialize(part, 0, place), None)
        optimizer = build_optimizer(parallel, play.recipe, fused=True)
        pipeline = Pipeline(parallel, 64, nullcontext)

        def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            losses, _ = token_losses(logits, batch.targets, parallel.vocabulary)
            return losses.sum() * batch.weight

        for _step in range(2):
            ledger.begin()
            heap.begin()
            lasting = ledger.total
            batches = [
                Batch(
                    inputs=torch.randint(5, WORDS, (SEQUENCES, TOKENS)),
                    mask=None,
                    keys=torch.arange(SEQUENCES),
                    positions=torch.arange(masked),
                    targets=torch.arange(masked),
                    weight=1 / masked,
                )
                for _ in range(num_micro_batches)
            ]
            pipeline.train(batches, loss_of)
            parallel.finish(None)
            parallel.clip(1.0)
            optimizer.step()
            optimizer.zero_grad()
    exchanged: dict[str, int] = {}
    for exchange, number in ledger.exchanged.items():
        exchanged[exchange.kind] = exchanged.get(exchange.kind, 0) + number
    exchanged.pop("broadcast", None)  # copies agree on their buckets, once
    found = (lasting + heap.grown, ledger.peak, exchanged)
    (out / f"rank{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
