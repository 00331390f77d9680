"""The checks for a GPU, in their CPU form: the same code, tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from trainers.parallel.parallelize import ParallelModel

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
import gpu_checks


@pytest.mark.slow
def test_every_check_runs_in_a_process_of_its_own_and_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device=cpu", "--tiny", f"--out={out}"])
    assert gpu.main() == 0, capsys.readouterr().out
    stored = json.loads(out.read_text())
    assert [each["check"] for each in stored["checks"]] == [check.name for check in gpu.CHECKS]
    assert all(each["rows"] and not each["error"] for each in stored["checks"])
    assert (stored["device"], stored["tiny"]) == ("cpu", True)


def test_a_wait_in_a_step_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row["holds"] for row in gpu_checks.count_waits("cpu", True))
    clip = ParallelModel.clip_gradients
    monkeypatch.setattr(
        ParallelModel, "clip_gradients", lambda *given: torch.tensor(clip(*given).item())
    )
    assert not any(row["holds"] for row in gpu_checks.count_waits("cpu", True))


def test_other_numbers_fail_their_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_checks.TOLERANCES, "bf16", 1e-9)
    rows = gpu_checks.compare_with_cpu("cpu", True)
    assert [row["holds"] for row in rows] == [True, False, True, False]


def test_a_check_that_ends_badly_or_takes_too_long_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = gpu.Check("parity", 0.05, gpu_checks.compare_with_cpu)
    assert "more than 0.05 s" in gpu.run_alone(slow, "cpu", True)["error"][0]
    unknown = gpu.Check("nothing", 300, gpu_checks.compare_with_cpu)
    assert "invalid choice" in gpu.run_alone(unknown, "cpu", True)["error"][0]


def test_checks_need_neither_ray_nor_what_reads_data() -> None:
    """A bare GPU machine has torch and Transformers."""
    absent = ("ray", "datasets", "captum", "optuna", "sklearn", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}];"
        "import gpu, gpu_checks; print(gpu_checks.count_waits('cpu', True)[0]['holds'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "has no CUDA GPU; --device cpu --tiny" in capsys.readouterr().out
