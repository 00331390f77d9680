"""Sealed directories and checkpoints: whole, or not there; saved by one layout, read by another."""

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from cluster.costmodel.layout import Layout
from tests.support.ranks import spawn_ranks
from trainers.checkpoint import checkpoint, sharded_tensors
from trainers.checkpoint.stores import CheckpointStore
from trainers.distributed.mesh import Mesh
from trainers.storage import safetensors
from trainers.storage.atomic import atomic_directory, file_sha256, find_corruption, hash_files
from trainers.storage.lease import LeaseError
from trainers.storage.store import LocalStore

ALONE = Mesh(Layout().resolve_for(1), None)
LAYOUTS = (
    Layout(dp_shard=4),  # 3 rows: a rank with nothing
    Layout(dp_shard=2, dp_replicate=2),
    Layout(tp=2, dp_replicate=2),
    Layout(dp_shard=2, tp=2),
    Layout(pp=2, tp=2),
    Layout(),
)


class LocalModel:
    """A model's parts on this rank, like a `ParallelModel`."""

    def __init__(self, model: nn.Module, mesh: Mesh = ALONE) -> None:
        self.model, self.mesh = model, mesh

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.named_parameters()


def trained(steps: int) -> tuple[LocalModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    advance(model, optimizer, steps)
    return LocalModel(model), optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    losses = []
    for _ in range(steps):
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_restored_run_goes_on_bitwise(tmp_path: Path) -> None:
    held, optimizer = trained(5)
    checkpoint.save_checkpoint(CheckpointStore(tmp_path), 5, held, optimizer, {"step": 5})
    undisturbed = advance(held.model, optimizer, 5)
    other, fresh = trained(0)
    found = checkpoint.find_latest(CheckpointStore(tmp_path))
    assert found is not None and found.load_state() == {"step": 5}
    found.restore(other, fresh)
    assert advance(other.model, fresh, 5) == undisturbed


def point_elsewhere(path: Path) -> None:
    """Replace a file by a link to a copy of it, which could change any time."""
    path.symlink_to(path.rename(path.parents[2] / path.name))


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("pieces-00000.safetensors", change_a_byte),
        ("pieces-00000.safetensors", lambda path: path.unlink()),
        ("index.json", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("state.json", lambda path: path.write_text('{"step": 9}')),
        ("checkpoint.json", lambda path: path.write_text('{"model.safe')),
        ("checkpoint.json", lambda path: path.write_text("{}")),
        ("checkpoint.json", lambda path: path.unlink()),
        ("checkpoint.json", lambda path: path.write_bytes(b"")),
        ("checkpoint.json", lambda path: path.write_bytes(bytes(range(128, 256)))),
        ("checkpoint.json", lambda path: path.write_text("[" * 1_000_000)),
        ("checkpoint.json", lambda path: path.write_text('["index.json"]')),
        ("checkpoint.json", lambda path: path.write_text('{"index.json": 5, "a\\u0000b": 6}')),
        ("index.json", lambda path: point_elsewhere(path)),
        ("pieces-00000.safetensors", lambda path: point_elsewhere(path)),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, file: str, damage: object
) -> None:
    held, optimizer = trained(1)
    checkpoint.save_checkpoint(CheckpointStore(tmp_path), 1, held, optimizer, {})
    newest = checkpoint.save_checkpoint(CheckpointStore(tmp_path), 2, held, optimizer, {})
    damage(newest.directory / file)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=f"skipping .*step-00000002: {file} is"):
        found = checkpoint.find_latest(CheckpointStore(tmp_path))
    assert found is not None and found.step == 1


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    held, optimizer = trained(1)
    saved = checkpoint.save_checkpoint(CheckpointStore(tmp_path), 1, held, optimizer, {})
    with pytest.raises(
        sharded_tensors.CheckpointError, match=r"0.weight is \[4, 3\], .* is \[5, 3\]"
    ):
        saved.restore(LocalModel(nn.Sequential(nn.Linear(3, 5))))
    with pytest.raises(
        sharded_tensors.CheckpointError, match=r"holds no 1.weight: it is of another model"
    ):
        saved.restore(LocalModel(nn.Sequential(nn.Tanh(), nn.Linear(3, 4))))


def test_pruning_keeps_the_best_and_the_newest(tmp_path: Path) -> None:
    held, optimizer = trained(1)
    for step in range(1, 7):
        checkpoint.save_checkpoint(CheckpointStore(tmp_path), step, held, optimizer, {})
    (tmp_path / ".step-00000007.1.tmp").mkdir()
    checkpoint.prune_checkpoints(CheckpointStore(tmp_path), keep=2, needed=[3])
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "5", "6"]


def test_what_fails_in_mid_writing_never_appears(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with pytest.raises(OSError, match="disk full"), atomic_directory(target) as aside:
        (aside / "half").write_text("ha")
        raise OSError("disk full")
    assert not target.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.find_latest(CheckpointStore(tmp_path)) is None


def test_a_changed_byte_is_named(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "thing") as aside:
        (aside / "a").write_bytes(b"one")
        (aside / "b").write_bytes(b"two")
    listed = hash_files(tmp_path / "thing")
    assert find_corruption(tmp_path / "thing", listed) is None
    (tmp_path / "thing" / "b").write_bytes(b"twO")
    assert (
        find_corruption(tmp_path / "thing", listed)
        == "b is not the file that was written (its SHA-256 differs)"
    )


def net() -> nn.Sequential:
    """Sizes that no layout divides, and numbers that tell where they belong."""
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3), nn.LayerNorm(3), nn.Embedding(11, 3))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            count = torch.arange(parameter.numel(), dtype=torch.float32)
            parameter.copy_((1000 * number + count).view_as(parameter))
    return model


def parallelized(mesh: Mesh) -> LocalModel:
    """The net as torch cuts it. A pipeline's stages share the embedding."""
    model, layout = net(), mesh.layout
    if layout.pp > 1:
        for name in (("1", "2"), ("0",))[mesh.pp_rank]:
            setattr(model, name, nn.Identity())
    if layout.tp > 1:
        assert mesh.device_mesh is not None
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel(), "3": RowwiseParallel()}
        here = {k: v for k, v in plan.items() if not isinstance(model[int(k)], nn.Identity)}
        parallelize_module(model, mesh.device_mesh["tp"], here)
    if layout.dp_shard > 1:
        assert mesh.device_mesh is not None
        fully_shard(model, mesh=mesh.device_mesh["dp_replicate", "dp_shard"])
    return LocalModel(model, mesh)


def moments_of(parameter: Tensor) -> dict[str, Tensor]:
    value = local(parameter).detach()
    moments = {"exp_avg": value * 2, "exp_avg_sq": value * value}
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        shape, stride = parameter.shape, parameter.stride()
        for kind, moment in moments.items():
            moments[kind] = DTensor.from_local(
                moment, mesh, placements, shape=shape, stride=stride, run_check=False
            )
    return moments | {"step": torch.tensor(3.0)}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_restores(saved: checkpoint.Checkpoint, mesh: Mesh) -> None:
    """Restoring gives what torch cuts of the net, moments of the parameter's kind, and steps on."""
    held, expected = parallelized(mesh), dict(parallelized(mesh).named_parameters())
    with torch.no_grad():
        for parameter in held.model.parameters():
            local(parameter).fill_(-1.0)
    optimizer = torch.optim.AdamW(_by_kind(held), lr=0.1, foreach=True)
    saved.restore(held, optimizer)
    for name, parameter in held.named_parameters():
        assert torch.equal(local(parameter), local(expected[name])), name
        wanted = moments_of(expected[name])
        assert optimizer.state[parameter].keys() == wanted.keys()
        for kind, moment in optimizer.state[parameter].items():
            assert torch.equal(local(moment), local(wanted[kind])), f"{name}/{kind}"
            if isinstance(parameter, DTensor) and kind != "step":
                assert isinstance(moment, DTensor) and moment.placements == parameter.placements
        parameter.grad = parameter.detach()
    if mesh.layout.dp_shard > 1 and mesh.layout.tp > 1:
        optimizer.step()


def _by_kind(held: LocalModel) -> list[dict[str, list[nn.Parameter]]]:
    """Parameters grouped by mesh: torch's optimizers refuse a mixture."""
    groups: dict[object, list[nn.Parameter]] = {}
    for parameter in held.model.parameters():
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault(mesh, []).append(parameter)
    return [{"params": group} for group in groups.values()]


def init_group(directory: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=size
    )


def save_in_every_layout(rank: int, size: int, directory: Path) -> None:
    init_group(directory, rank, size)
    alone = checkpoint.Checkpoint(1, directory / "alone" / "step-00000001")
    meshes = [Mesh.from_layout(layout, "cpu") for layout in LAYOUTS]
    for mesh, other in zip(meshes, meshes[1:] + meshes[:1], strict=True):
        held = parallelized(mesh)
        optimizer = torch.optim.AdamW(_by_kind(held), lr=0.1)
        for _, parameter in held.named_parameters():
            optimizer.state[parameter] = moments_of(parameter)
        saved = checkpoint.save_checkpoint(
            CheckpointStore(directory / str(mesh.layout)), 1, held, optimizer, {"rank": rank}
        )
        assert saved.load_state() == {"rank": 0}
        assert checkpoint.find_latest(CheckpointStore(directory / str(mesh.layout))) == saved
        assert_restores(alone, mesh)
        assert_restores(saved, other)
    dist.destroy_process_group()


@pytest.mark.multiprocess
def test_any_layout_reads_what_any_layout_saved(tmp_path: Path) -> None:
    """Four processes in six layouts, and one: weights, moments and counts, bitwise."""
    held = LocalModel(net())
    optimizer = torch.optim.AdamW(held.model.parameters(), lr=0.1)
    for parameter in held.model.parameters():
        optimizer.state[parameter] = moments_of(parameter)
    checkpoint.save_checkpoint(CheckpointStore(tmp_path / "alone"), 1, held, optimizer, {})
    spawn_ranks(save_in_every_layout, (4, tmp_path), nprocs=4)
    for layout in LAYOUTS:
        saved = checkpoint.find_checkpoint(
            CheckpointStore(tmp_path / str(layout.resolve_for(4))), 1
        )
        assert saved is not None
        assert_restores(saved, ALONE)
        whole = dict(saved.iter_tensors())
        assert whole.keys() == dict(held.named_parameters()).keys()
        for name, parameter in held.named_parameters():
            assert torch.equal(whole[name], parameter)
        assert tensor_bytes(saved.directory) == tensor_bytes(tmp_path / "alone" / "step-00000001")


def tensor_bytes(directory: Path) -> int:
    """Bytes of tensors in all files: each number once."""
    sizes = 0
    for path in directory.glob("pieces-*.safetensors"):
        content = path.read_bytes()
        sizes += len(content) - 8 - int.from_bytes(content[:8], "little")
    return sizes


def die_or_fail_writing(rank: int, size: int, directory: Path) -> None:
    """The second checkpoint meets a full disk, the third a kill, each on one rank of two."""
    init_group(directory, rank, size)
    held = parallelized(Mesh.from_layout(Layout(dp_shard=2), "cpu"))
    optimizer = torch.optim.AdamW(held.model.parameters(), lr=0.1)
    checkpoint.save_checkpoint(CheckpointStore(directory), 1, held, optimizer, {})
    whole = safetensors.write_tensors

    def full(*_: object) -> None:
        raise OSError("disk full")

    def half(path: Path, *given: object) -> None:
        whole(path, *given)  # type: ignore[arg-type]
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        safetensors.write_tensors = full  # type: ignore[assignment]
    with pytest.raises(OSError, match="rank 1: disk full"):
        checkpoint.save_checkpoint(CheckpointStore(directory), 2, held, optimizer, {})
    if rank == 1:
        safetensors.write_tensors = half  # type: ignore[assignment]
    checkpoint.save_checkpoint(CheckpointStore(directory), 3, held, optimizer, {})


@pytest.mark.multiprocess
def test_a_rank_that_dies_writing_leaves_nothing_to_see(tmp_path: Path) -> None:
    with pytest.raises(multiprocessing.ProcessExitedException):
        spawn_ranks(die_or_fail_writing, (2, tmp_path), nprocs=2)
    half = [path.name.split(".")[1] for path in tmp_path.glob(".step-*.tmp")]
    assert half == ["step-00000003"], "what failed is gone at once: the disk may be full of it"
    found = checkpoint.find_latest(CheckpointStore(tmp_path))
    assert found is not None and found.step == 1
    held, optimizer = trained(0)
    checkpoint.save_checkpoint(CheckpointStore(tmp_path), 3, held, optimizer, {})
    assert not list(tmp_path.glob(".step-*"))
    listed = json.loads((found.directory / "checkpoint.json").read_text())
    assert {"pieces-00000.safetensors", "pieces-00001.safetensors"} <= listed.keys()


def test_a_seal_whose_names_lead_elsewhere_is_none(tmp_path: Path) -> None:
    held, optimizer = trained(1)
    depot = CheckpointStore(tmp_path / "checkpoints")
    saved = checkpoint.save_checkpoint(depot, 1, held, optimizer, {"step": 1})
    (tmp_path / "other").write_text("x")
    seal = saved.directory / checkpoint.SEAL_FILE
    listed = json.loads(seal.read_text()) | {"../../other": file_sha256(tmp_path / "other")}
    seal.write_text(json.dumps(listed))
    with pytest.warns(UserWarning, match="checkpoint.json is missing or unreadable"):
        assert checkpoint.find_latest(depot) is None


STRANGERS = ("step-foo", "step-", "step-4", "step-000000004", "step-00000012.bak", "notes")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the checkpoints, with a file."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    return tmp_path / "outside"


def fill_with_strangers(directory: Path, outside: Path) -> set[str]:
    """What is no checkpoint, among them; their names."""
    for name in STRANGERS:
        (directory / name).mkdir(parents=True)
        (directory / name / "kept").write_text("x")
    (directory / "step-00000004").write_text("a file")
    (directory / "step-00000005").symlink_to(outside)
    (directory / "step-00000006").symlink_to(directory / "gone")
    (directory / "step-00000007").symlink_to(directory / "step-00000007")
    (directory / ".step-00000008.9.tmp").symlink_to(outside)
    return {path.name for path in directory.iterdir()}


def test_what_is_no_checkpoint_is_skipped_and_never_touched(tmp_path: Path, outside: Path) -> None:
    depot, (held, optimizer) = CheckpointStore(tmp_path / "checkpoints"), trained(1)
    strangers = fill_with_strangers(depot.directory, outside)
    for step in (1, 2, 3):
        checkpoint.save_checkpoint(depot, step, held, optimizer, {})
    with pytest.warns(
        UserWarning, match=r"skipping step-, step-000000004, step-00000004, \.\.\. in"
    ) as told:
        found = checkpoint.find_latest(depot)
    assert found is not None and found.step == 3 and len(told) == 1
    checkpoint.prune_checkpoints(depot, keep=1, needed=())
    assert {path.name for path in depot.directory.iterdir()} == {*strangers, "step-00000003"}
    assert (outside / "precious").read_text() == "x"
    assert all((depot.directory / name / "kept").is_file() for name in STRANGERS)


@pytest.mark.parametrize("step", [4, 5, 6, 7], ids=["file", "link", "dangling", "loop"])
def test_what_lies_in_the_place_of_a_checkpoint_is_moved(
    tmp_path: Path, outside: Path, step: int
) -> None:
    depot, (held, optimizer) = CheckpointStore(tmp_path / "checkpoints"), trained(1)
    fill_with_strangers(depot.directory, outside)
    before = os.readlink(depot.directory / f"step-0000000{step}") if step > 4 else "a file"
    saved = checkpoint.save_checkpoint(depot, step, held, optimizer, {"step": step})
    assert saved.load_state() == {"step": step} and not saved.directory.is_symlink()
    (moved,) = depot.directory.glob(f"step-0000000{step}.moved-*")
    assert (os.readlink(moved) if step > 4 else moved.read_text()) == before
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_strangers_in_a_store_are_kept(tmp_path: Path) -> None:
    """There a checkpoint without a seal is half uploaded, and pruned; any other file is not."""
    store = LocalStore(tmp_path / "home")
    depot, (held, optimizer) = CheckpointStore(tmp_path / "checkpoints", store), trained(1)
    for name in ("step-foo/kept", "notes.txt", "step-00000009/pieces-00000.safetensors"):
        store.write_bytes(f"checkpoints/{name}", b"x")
    checkpoint.save_checkpoint(depot, 1, held, optimizer, {})
    checkpoint.prune_checkpoints(depot, keep=1, needed=())
    names = {path.split("/")[1] for path in store.list_files("checkpoints")}
    assert names == {"step-00000001", "step-foo", "notes.txt"}
    with pytest.warns(UserWarning, match=r"skipping step-foo in .*: no checkpoint"):
        found = checkpoint.find_latest(depot)
    assert found is not None and found.step == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("index.json", "[]"),
        ("index.json", '{"0.weight": {"dtype": "F32"}}'),
        ("index.json", '{"0.weight": {"dtype": "F5", "shape": [4, 3], "pieces": []}}'),
        ("index.json", '{"0.weight": {"dtype": "F32", "shape": ["a"], "pieces": []}}'),
        ("index.json", '{"0.weight": {"dtype": "F32", "shape": [1], "pieces": [{"rank": 0}]}}'),
        ("state.json", "[]"),
        ("state.json", ""),
    ],
)
def test_what_a_seal_vouches_for_and_is_still_none_of_ours_is_one_sentence(
    tmp_path: Path, file: str, content: str
) -> None:
    held, optimizer = trained(1)
    depot = CheckpointStore(tmp_path)
    saved = checkpoint.save_checkpoint(depot, 1, held, optimizer, {})
    (saved.directory / file).write_text(content)
    seal = saved.directory / checkpoint.SEAL_FILE
    digests = json.loads(seal.read_text()) | {file: file_sha256(saved.directory / file)}
    seal.write_text(json.dumps(digests))
    found = checkpoint.find_latest(depot)
    assert found is not None
    with pytest.raises(sharded_tensors.CheckpointError, match=f"{file}: is no .*; remove that"):
        found.restore(held, optimizer) if file == "index.json" else found.load_state()


@pytest.mark.parametrize("is_store", [False, True], ids=["disk", "store"])
def test_whoever_lost_the_lease_changes_nothing(tmp_path: Path, is_store: bool) -> None:
    """It may be paused at any moment: before it writes, before it seals, and while it prunes."""
    (held, optimizer), left = trained(1), [100]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0 or list(tmp_path.glob("checkpoints/.step-00000003.*/checkpoint.json")):
            raise LeaseError("another process has taken it over")

    store = LocalStore(tmp_path / "home") if is_store else None
    depot = CheckpointStore(tmp_path / "checkpoints", store, check)
    home = tmp_path / "home" / "checkpoints" if is_store else depot.directory
    checkpoint.save_checkpoint(depot, 1, held, optimizer, {})
    left[0] = 100
    checkpoint.save_checkpoint(depot, 2, held, optimizer, {})
    for allowed in range(100 - left[0]):
        left[0] = allowed
        with pytest.raises(LeaseError):
            checkpoint.save_checkpoint(depot, 4, held, optimizer, {})
        assert not (home / "step-00000004" / checkpoint.SEAL_FILE).exists(), allowed
    left[0] = 100 if not is_store else 0
    with pytest.raises(LeaseError):
        checkpoint.save_checkpoint(depot, 3, held, optimizer, {})
    assert not (home / "step-00000003").exists()
    for allowed in range(2):
        left[0] = allowed
        with pytest.raises(LeaseError):
            checkpoint.prune_checkpoints(depot, keep=1, needed=())
        assert (home / "step-00000001" / checkpoint.SEAL_FILE).is_file()
