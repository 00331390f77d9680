"""LAMB against the paper's Algorithm 2 written out in numpy, whole and in parts."""

import copy
import multiprocessing
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from trainers.config import recipe as recipes
from trainers.training.lamb import Lamb
from trainers.training.optimizer import build_optimizer

RATE, BETAS, EPS, DECAY, STEPS = 0.02, (0.9, 0.999), 1e-6, 0.1, 5
OWN_RATE = "optimizer.learning_rate=5e-5"
SHAPES = {"weight": (6, 4), "odd": (5, 3), "few": (1, 4), "zeros": (4, 4), "bias": (4,)}


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    made = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    made["zeros"][:] = 0
    return {name: each.astype(np.float32) for name, each in made.items()}


def gradient(name: str, step: int) -> np.ndarray:
    draw = np.random.default_rng([step, *name.encode()])
    return draw.normal(size=SHAPES[name]).astype(np.float32)


def by_hand(name: str, adapt: bool, decay: float) -> np.ndarray:
    """The weights of `name` after STEPS, in fp64."""
    w = weights()[name].astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(name, t).astype(np.float64)
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        r = m / (1 - BETAS[0] ** t) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
        u = r + decay * w
        norms = np.linalg.norm(w), np.linalg.norm(u)
        ratio = norms[0] / norms[1] if adapt and min(norms) > 0 else 1.0
        w = w - RATE * ratio * u
    return w


def trained(parameters: dict[str, nn.Parameter]) -> Lamb:
    """The optimizer after STEPS on `parameters`; a DTensor gets its part of the gradient."""
    groups = [
        {"params": [parameters[n] for n in SHAPES if n != "bias"], "weight_decay": DECAY},
        {"params": [parameters["bias"]], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = Lamb(groups, lr=RATE, betas=BETAS, eps=EPS)
    for step in range(1, STEPS + 1):
        for name, parameter in parameters.items():
            whole = torch.from_numpy(gradient(name, step))
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            parameter.grad = whole
        optimizer.step()
    return optimizer


def test_steps_are_those_of_algorithm_2() -> None:
    parameters = {name: nn.Parameter(torch.from_numpy(each)) for name, each in weights().items()}
    optimizer = trained(parameters)
    for name, parameter in parameters.items():
        matrix = name != "bias"
        expected = by_hand(name, adapt=matrix, decay=DECAY if matrix else 0.0)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=1e-6)
        state = optimizer.state[parameter]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.is_tensor(state["step"]) and state["step"].item() == STEPS


def test_a_state_that_was_saved_goes_on_alike() -> None:
    def made() -> dict[str, nn.Parameter]:
        return {name: nn.Parameter(torch.from_numpy(each)) for name, each in weights().items()}

    one, two = made(), made()
    first, second = trained(one), trained(two)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, parameters in ((first, one), (second, two)):
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient(name, 9))
        optimizer.step()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_tensor_without_gradient_and_a_zero_update_are_left_alone() -> None:
    still, flat = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([still, flat], lr=1.0, weight_decay=0.0)
    flat.grad = torch.zeros(2, 2)
    optimizer.step()
    assert (still == 1).all() and (flat == 1).all() and still not in optimizer.state


def test_the_recipe_builds_it() -> None:
    recipe = recipes.load_recipe(
        "csv", ["optimizer.name=lamb", "optimizer.weight_decay=0.2", OWN_RATE]
    )
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(model, recipe, fused=True)
    assert isinstance(optimizer, Lamb)
    said = [(len(g["params"]), g["weight_decay"], g["adapt"]) for g in optimizer.param_groups]
    assert said == [(1, 0.2, True), (3, 0.0, False)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _in_parts(rank: int, world_size: int, port: int, directory: Path) -> None:
    """Train sharded parameters; rank 0 writes them whole."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    line = init_device_mesh("cpu", (world_size,), mesh_dim_names=("shard",))
    placed: dict[str, tuple[DeviceMesh, list[Placement]]] = {
        name: (line, [Shard(0)]) for name in SHAPES
    }
    placed["zeros"] = (line, [Replicate()])
    if world_size == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tp"))
        placed["weight"] = (square, [Shard(0), Shard(1)])
        placed["odd"] = (square, [Replicate(), Shard(0)])
    parameters = {
        name: nn.Parameter(distribute_tensor(torch.from_numpy(each), *placed[name]))
        for name, each in weights().items()
    }
    optimizer = trained(parameters)
    assert isinstance(optimizer.state[parameters["weight"]]["exp_avg"], DTensor)
    whole = {
        name: parameter.full_tensor().detach().numpy()  # type: ignore[attr-defined]
        for name, parameter in parameters.items()
    }
    model = nn.ParameterDict(parameters)
    model["plain"] = nn.Parameter(torch.ones(2, 2))
    groups = build_optimizer(
        model, recipes.load_recipe("csv", ["optimizer.name=adamw", OWN_RATE])
    ).param_groups
    kinds = [{getattr(p, "device_mesh", None) for p in group["params"]} for group in groups]
    assert all(len(kind) == 1 for kind in kinds), "a group holds one kind of tensor"
    if rank == 0:
        np.savez(directory / "whole.npz", **whole)
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.parametrize("world_size", [2, 4])
def test_sharded_parameters_move_as_whole_ones(world_size: int, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    port = _free_port()
    workers = [
        spawn.Process(target=_in_parts, args=(rank, world_size, port, tmp_path))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * world_size
    found = np.load(tmp_path / "whole.npz")
    for name in SHAPES:
        matrix = name != "bias"
        expected = by_hand(name, adapt=matrix, decay=DECAY if matrix else 0.0)
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6)
