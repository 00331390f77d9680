"""A probe: the model fitted to steps finds the hardware that they were made on."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.costmodel.constants import CALIBRATED, PACKED, TORCH
from cluster.costmodel.layout import Layout
from cluster.costmodel.step_time import predict_step
from cluster.hardware import catalog
from cluster.hardware.types import Accelerator, Topology
from cluster.planning import probe, report
from cluster.planning.plan import Constraints, plan_hardware
from cluster.planning.probe import Measurement, Probe, ProbeCase, ProbedDevices, ProbeError
from trainers.distributed.device import DEVICES
from trainers.planning.probe import TRIALS, build_probe, measure_trials
from trainers.planning.workload import load_workload

OTHERS = (
    ProbeCase(256, 4, 1024, 5000, 96, 24, 2048),
    ProbeCase(384, 6, 1536, 30522, 40, 32, 2048),
    ProbeCase(512, 4, 2048, 1000, 384, 10, 2048),
)


def hardware(workers: int) -> ProbedDevices:
    """A processor that is unlike the one where fitting begins."""
    accelerator = Accelerator(
        "made up", "cpu", peaks=(("fp32", 150e9),), memory=32e9, memory_rate=25e9, link="memory",
        link_rate=3e9,
    )  # fmt: skip
    constants = replace(CALIBRATED, attention=0.3, launch_seconds=8e-6, passes_eager=40.0)
    stack = replace(TORCH, captured=True)
    return ProbedDevices(Topology(accelerator, workers, 1, None), constants, stack, "fp32")


def probed(*workers: int) -> Probe:
    timed = [
        Measurement(trial, n, hardware(n).predict_step(trial.step_work("cpu")).total)
        for n in workers
        for trial in TRIALS
    ]
    return Probe("cpu", "made up", "fp32", 32e9, tuple(timed))


@pytest.mark.parametrize("workers", [1, 2])
def test_other_models_lengths_and_batches_are_predicted(workers: int) -> None:
    local = probed(1, 2).fit_devices(workers)
    for trial in OTHERS:
        true = hardware(workers).predict_step(trial.step_work("cpu")).total
        assert local.predict_step(trial.step_work("cpu")).total == pytest.approx(true, rel=0.05)


def test_one_disturbed_measurement_changes_little() -> None:
    known = probed(1)
    first = known.measurements[2]
    disturbed = replace(first, seconds=3 * first.seconds)
    rest = (*known.measurements[:2], disturbed, *known.measurements[3:])
    local = replace(known, measurements=rest).fit_devices(1)
    for trial in OTHERS:
        true = hardware(1).predict_step(trial.step_work("cpu")).total
        assert local.predict_step(trial.step_work("cpu")).total == pytest.approx(true, rel=0.12)


def test_a_probe_is_kept_and_read(tmp_path: Path) -> None:
    probe.write_probe(tmp_path / "probe.json", probed(1))
    assert probe.read_probe(tmp_path / "probe.json") == probed(1)
    with pytest.raises(ProbeError, match="tried 1 worker"):
        probed(1).fit_devices(4)
    (tmp_path / "wrong.json").write_text('{"measurements": 3}')
    with pytest.raises(ProbeError, match=r"bertha probe"):
        probe.read_probe(tmp_path / "wrong.json")


def test_a_plan_tells_how_long_it_takes_here() -> None:
    told = list(report.format_probe(load_workload("reviews"), probed(1, 2)))
    assert len(told) == 2
    assert told[0].startswith("here      1 x made up (cpu): ")
    assert probe.relative_speeds(load_workload("reviews"), catalog.load_catalog(), probed(1)) == {}


def test_a_probed_accelerator_corrects_its_own_row() -> None:
    known = catalog.load_catalog()
    t4, asked = known.get_accelerator("T4"), load_workload("imdb")
    slow = replace(CALIBRATED, speed=0.8)
    timed = [
        Measurement(trial, 1, predict_step(
            replace(trial.step_work("cuda"), precision="fp16"), Layout(dp_replicate=1),
            Topology(t4, 1, 1, None), PACKED, slow,
        ).total)
        for trial in (*TRIALS, *OTHERS)
    ]  # fmt: skip
    found = probe.relative_speeds(
        asked, known, Probe("cuda", "Tesla T4", "fp16", 15.6e9, tuple(timed))
    )
    assert found["T4"] == pytest.approx(0.8, rel=0.15)
    made = plan_hardware(asked, known, Constraints("time"), found)
    plain = plan_hardware(asked, known, Constraints("time"))
    slower, before = (
        next(o for o in each.best if o.machine.name == "g4dn.xlarge") for each in (made, plain)
    )
    assert slower.seconds > before.seconds


@pytest.mark.multiprocess
def test_real_steps_are_timed_here_on_one_worker_and_two() -> None:
    few = (ProbeCase(32, 2, 64, 100, 16, 4, 64), ProbeCase(64, 1, 128, 200, 32, 4, 64))
    found = [each for n in (1, 2) for each in measure_trials("cpu", n, 0.2, few)]
    assert [each.workers for each in found] == [1, 1, 2, 2]
    assert all(each.seconds > 0 for each in found)
    known = build_probe(DEVICES["cpu"], found)
    assert known.workers == (1, 2)
    assert known.fit_devices(2).predict_step(few[0].step_work("cpu")).total > 0
