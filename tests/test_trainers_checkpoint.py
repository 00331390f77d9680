"""Sealed directories and checkpoints: whole, or not there."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers import checkpoint
from trainers.sealed import digests, flaw, written_aside


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    advance(model, optimizer, steps)
    return model, optimizer


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
    model, optimizer = trained(5)
    checkpoint.save(tmp_path, 5, model, optimizer, {"step": 5})
    undisturbed = advance(model, optimizer, 5)
    other, fresh = trained(0)
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.state() == {"step": 5}
    found.restore(other, fresh)
    assert advance(other, fresh, 5) == undisturbed


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("optimizer.safetensors", lambda path: path.unlink()),
        ("state.json", lambda path: path.write_text('{"step": 9}')),
        ("checkpoint.json", lambda path: path.write_text('{"model.safe')),
        ("checkpoint.json", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, file: str, damage: object
) -> None:
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, 1, model, optimizer, {})
    newest = checkpoint.save(tmp_path, 2, model, optimizer, {})
    damage(newest.directory / file)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=f"skipping .*step-00000002: {file} is"):
        found = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 1


def test_pruning_keeps_the_best_and_the_newest(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, model, optimizer, {})
    (tmp_path / ".step-00000007.1.tmp").mkdir()
    checkpoint.prune(tmp_path, keep=2, best_step=3)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "5", "6"]


def test_what_fails_in_mid_writing_never_appears(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with pytest.raises(OSError, match="disk full"), written_aside(target) as aside:
        (aside / "half").write_text("ha")
        raise OSError("disk full")
    assert not target.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.latest(tmp_path) is None


def test_a_changed_byte_is_named(tmp_path: Path) -> None:
    with written_aside(tmp_path / "thing") as aside:
        (aside / "a").write_bytes(b"one")
        (aside / "b").write_bytes(b"two")
    listed = digests(tmp_path / "thing")
    assert flaw(tmp_path / "thing", listed) is None
    (tmp_path / "thing" / "b").write_bytes(b"twO")
    assert (
        flaw(tmp_path / "thing", listed)
        == "b is not the file that was written (its SHA-256 differs)"
    )
