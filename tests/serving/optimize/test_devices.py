"""A build for a GPU: judged by torch fp32 there, beside the engines of the CPU, for that card."""

import time
from pathlib import Path
from typing import Any

import pytest

from serving.__main__ import main
from serving.engine.engine import Engine
from serving.optimize import throughput
from serving.optimize.eval_texts import EvalRows, load_eval_rows
from serving.optimize.optimize import build_engines
from tests.support.engine_builds import QUICK
from tests.support.fake_gpu import CARD, install_gpu
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models import bundle
from trainers.models.card import BundleError, read_card

pytestmark = pytest.mark.slow
ON_CUDA = ["torch fp32 cuda", "torch bf16 cuda", "torch bf16 graphs cuda", "torch fp16 cuda",
           "torch fp16 graphs cuda"]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", tiny_bert)


def load_rows(place: Path, texts: Path) -> EvalRows:
    card = read_card(place)
    return load_eval_rows(card, bundle.load_encoder(place, card), texts)


def test_each_kind_of_device_keeps_its_engines(
    place: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_rows(place, texts)
    build_engines(place, rows=rows, candidates=["torch fp32"], **QUICK)
    (of_cpu,) = read_card(place).engines
    assert (of_cpu.device, of_cpu.device_name, of_cpu.chosen) == ("cpu", "", True)
    install_gpu(monkeypatch)
    monkeypatch.setattr(throughput, "DEVICE_BUDGETS", (512, 1024))
    options: dict[str, Any] = QUICK | {"threshold": 0.9}
    for _ in range(2):  # a second build takes the place of the first
        found = build_engines(place, rows=rows, device="cuda", **options)
        assert [each.name for each in found] == ON_CUDA
        first, *others = read_card(place).engines
        assert first == of_cpu
        assert [each.name for each in others] == ON_CUDA
    for record in others:
        assert (record.device, record.device_name) == ("cuda", CARD)
        assert record.batch_tokens in (512, 1024) and record.tokens_per_second > 0
        assert record.agreement >= 0.9
    assert others[0].agreement == 1 and others[0].max_logit_difference == 0
    assert [each.chosen for each in others].count(True) == 1
    chosen = next(each for each in others if each.chosen)
    engine = Engine.load(place, device="cuda")
    assert (engine.backend, engine.remark) == (chosen.name, "")
    assert Engine.load(place).backend == "torch fp32"
    build_engines(place, rows=rows, candidates=["torch fp32"], **QUICK)
    assert {each.device for each in read_card(place).engines} == {"cpu", "cuda"}


def test_time_is_of_the_wall_beside_the_host_and_of_the_cpu_on_it(
    place: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks: list[Any] = []
    measure = throughput.measure_interleaved

    def remember(*given: Any) -> Any:
        clocks.append((sorted({budget for _, budget in given[0]}), given[-1]))
        return measure(*given)

    monkeypatch.setattr(throughput, "measure_interleaved", remember)
    install_gpu(monkeypatch)
    for device in ("cpu", "cuda"):
        name = "torch fp32" if device == "cpu" else "torch fp32 cuda"
        rows = load_rows(place, texts)
        build_engines(place, rows=rows, candidates=[name], device=device, **QUICK)
    assert clocks == [
        ([64, 128, 256, 512], time.process_time),
        ([512, 1024, 2048, 4096, 8192, 16384], time.perf_counter),
    ]


@pytest.mark.parametrize(
    ("device", "named", "message"),
    [
        ("cuda", ["onnxruntime int8"], "computes on cpu, and this build is for cuda; build again"),
        ("cpu", ["torch bf16 cuda"], "computes on cuda, and this build is for cpu; build again"),
        ("cuda", ["tensorrt"], "no engine is called 'tensorrt'; there is torch fp32 cuda, torch"),
    ],
)
def test_an_engine_of_another_device_is_named(
    device: str, named: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch)
    with pytest.raises(BundleError, match=message):
        build_engines(place, candidates=named, device=device, **QUICK)


def test_a_student_is_of_the_cpu(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpu(monkeypatch)
    with pytest.raises(BundleError, match=r"--student .* build again with --device cpu"):
        build_engines(place, student=place, device="cuda", **QUICK)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_command_builds_for_what_is_here(
    gpu: bool,
    place: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if gpu:
        install_gpu(monkeypatch)
    assert main(["build", str(place), "--texts", str(texts), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert ("  torch bf16 graphs cuda: would be measured" in said) is gpu
    assert (f", on cuda: {CARD}\n" in said) is gpu
    assert ("  torch fp32: would be measured" in said) is not gpu
    status = main(["build", str(place), "--texts", str(texts), "--dry-run", "--device", "cuda"])
    assert status == (0 if gpu else 2)
    message = "error: --device cuda: torch "
    assert (message in capsys.readouterr().err) is not gpu
