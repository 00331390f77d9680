"""Plans: limits held, the best chosen, what is refused has its reason, the front is one."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster import __main__
from cluster.costmodel.constants import CALIBRATED, NINE_IN_TEN
from cluster.costmodel.layout_search import (
    FREE_MEMORY_SHARE,
    LayoutCandidate,
    first_fitting,
    rank_candidates,
)
from cluster.hardware import catalog
from cluster.hardware.catalog import Catalog
from cluster.hardware.types import Topology
from cluster.planning import figures
from cluster.planning.plan import (
    BOOT_SECONDS,
    Constraints,
    Offer,
    PlanError,
    find_violation,
    make_offers,
    plan_hardware,
)
from cluster.planning.workload import Workload
from tests.support.paths import ROOT
from trainers.planning.workload import load_workload

KNOWN = catalog.load_catalog()
IMDB, LARGE = load_workload("imdb"), load_workload("bert-large-pretrain")


def of(*names: str) -> Catalog:
    return Catalog(KNOWN.accelerators, tuple(m for m in KNOWN.machines if m.name in names))


def place_on(topology: Topology, workload: Workload) -> LayoutCandidate | None:
    return first_fitting(rank_candidates(workload.job_on(topology)))


def reasons(constraints: Constraints | None = None, workload: Workload = IMDB) -> dict[str, str]:
    plan = plan_hardware(workload, KNOWN, constraints or Constraints())
    return {each.machine.name: each.reason for each in plan.rejected}


def test_the_cheapest_the_fastest_and_the_most_frugal_are_chosen() -> None:
    for objective in ("money", "time", "energy"):
        plan = plan_hardware(LARGE, KNOWN, Constraints(objective))  # type: ignore[arg-type]
        values = [offer.objective_value(objective) for offer in plan.best]  # type: ignore[arg-type]
        assert values == sorted(values)
        assert values[0] == min(offer.objective_value(objective) for offer in plan.offers)  # type: ignore[arg-type]
    names = [offer.machine.label for offer in plan.best]
    assert len(names) == len(set(names))


def test_limits_are_held_against_the_slow_end() -> None:
    plan = plan_hardware(LARGE, KNOWN, Constraints(deadline=4 * 3600, budget=1200, power=40_000))
    for offer in plan.offers:
        assert offer.seconds * NINE_IN_TEN <= 4 * 3600
        assert offer.price.dollars is not None and offer.price.dollars * NINE_IN_TEN <= 1200
        assert offer.watts is not None and offer.watts * offer.nodes <= 40_000
    told = " ".join(each.reason for each in plan.rejected)
    assert "past the deadline" in told


def test_the_front_is_what_nothing_beats() -> None:
    plan = plan_hardware(LARGE, KNOWN)

    def beaten(offer: Offer) -> bool:
        cost = offer.objective_value("money")
        return any(
            o.seconds <= offer.seconds
            and o.objective_value("money") <= cost
            and (o.seconds, o.objective_value("money")) != (offer.seconds, cost)
            for o in plan.offers
        )

    assert set(map(id, plan.pareto_front)) == {
        id(offer) for offer in plan.offers if not beaten(offer)
    }
    assert len(plan.pareto_front) > 5


def test_what_cannot_train_here_is_refused_with_the_reason() -> None:
    told = reasons()
    assert told["trn1.32xlarge"].startswith("Trainium1 has only the older environment")
    assert told["inf2.xlarge"] == "Inferentia2 does not train"
    assert told["p6-b300.48xlarge"].startswith("unknown of B300-SXM-288GB: peak FLOP/s")
    assert "no price is published" in told["trn2.48xlarge"]
    assert "power is not published" in reasons(Constraints("energy"))["g5.xlarge"]
    assert "trn2.48xlarge" not in reasons(Constraints("time"))


def test_old_cards_have_no_bf16() -> None:
    wants = load_workload("imdb", ["precision=bf16"])
    told = reasons(workload=wants)
    assert told["g4dn.xlarge"] == "T4 has no bf16; set precision=auto"
    assert "p3.2xlarge" in told
    auto = next(make_offers(KNOWN.get_machine("g4dn.xlarge"), IMDB))
    assert auto.precision == "fp16"


def test_a_region_is_kept_to() -> None:
    told = reasons(Constraints("time", region="us-east-2"), LARGE)
    assert told["p5.48xlarge"] == "offered in us-east-1, not in us-east-2"
    best = plan_hardware(LARGE, KNOWN, Constraints("time", region="us-east-2")).best
    assert [offer.machine.name for offer in best] == ["trn2.48xlarge"]


def test_the_chosen_layout_fits_and_each_device_has_a_sample() -> None:
    for name in ("g4dn.xlarge", "p4d.24xlarge", "p5en.48xlarge"):
        machine = KNOWN.get_machine(name)
        for offer in make_offers(machine, LARGE):
            assert machine.accelerator.memory is not None
            assert offer.candidate.memory <= machine.accelerator.memory * (1 - FREE_MEMORY_SHARE)
            assert offer.layout.world_size == offer.devices <= 4096
            assert offer.layout.dp <= LARGE.global_batch
    assert [offer.devices for offer in make_offers(KNOWN.get_machine("g4dn.xlarge"), IMDB)] == [
        1, 2, 4, 8, 16,
    ]  # fmt: skip


def test_layers_are_divided_only_where_nothing_else_fits() -> None:
    tight = Topology(replace(KNOWN.get_accelerator("A100-SXM4-80GB"), memory=1.5e9), 8, 1, 50e9)
    placed = place_on(tight, LARGE)
    assert placed is not None and placed.layout.tp * placed.layout.pp * placed.layout.dp_shard > 1
    roomy = place_on(replace(tight, accelerator=KNOWN.get_accelerator("A100-SXM4-80GB")), LARGE)
    assert roomy is not None and roomy.layout.dp_replicate == 8
    nothing = replace(tight.accelerator, memory=1e7)
    assert place_on(replace(tight, accelerator=nothing), LARGE) is None


def test_more_machines_are_faster_and_dearer() -> None:
    offers = list(make_offers(KNOWN.get_machine("p5.48xlarge"), LARGE))
    assert [o.nodes for o in offers] == [2**n for n in range(10)]
    seconds = [o.seconds for o in offers]
    assert seconds == sorted(seconds, reverse=True)
    dollars = [o.price.dollars or 0.0 for o in offers]
    assert dollars == sorted(dollars)


def test_a_plan_for_trainium_counts_chips_and_lays_out_cores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chip, machine = (
        KNOWN.get_accelerator("Trainium2"),
        KNOWN.get_machine("trn2.48xlarge", "us-east-2"),
    )
    assert (chip.memory, chip.peak_flops("bf16"), chip.watts) == (96e9, 667e12, None)
    offers = list(make_offers(machine, LARGE))
    assert [(o.accelerators, o.devices) for o in offers[:3]] == [(16, 64), (32, 128), (64, 256)]
    assert offers[-1].accelerators == 4096
    assert all(o.layout.world_size == o.devices for o in offers)
    assert all(o.candidate.memory <= 24e9 * (1 - FREE_MEMORY_SHARE) for o in offers)
    wanted = ("--region", "us-east-2", "--objective", "time")
    _, out, _ = run(capsys, "bert-large-pretrain", *wanted)
    assert f"{offers[-1].accelerators} x Trainium2" in out
    assert "of 22.4 GiB a device" in out and "a device is a core of Trainium2" in out


def test_nothing_that_meets_the_wishes_is_said_with_each_reason() -> None:
    with pytest.raises(PlanError) as refused:
        plan_hardware(LARGE, of("g4dn.xlarge", "p5.48xlarge"), Constraints(deadline=60.0))
    said = str(refused.value)
    assert "g4dn.xlarge (us-east-1): takes up to" in said
    assert "loosen one of them" in said


def test_owned_machines_cost_their_share_and_are_as_many_as_there_are(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    box = {"instance": "box", "accelerator": "RTX 4090", "count": 4, "network_gbps": 25, "nodes": 2}
    box |= {"owned": {"purchase_usd": 12000, "lifetime_years": 4, "usd_per_kwh": 0.32}}
    own.write_text(yaml.safe_dump({"machines": [box]}))
    known = catalog.load_catalog(own)
    offers = list(make_offers(known.get_machine("box"), LARGE))
    assert [offer.nodes for offer in offers] == [1, 2]
    rented = next(make_offers(known.get_machine("g6e.12xlarge"), LARGE))
    assert (
        rented.seconds - rented.training_seconds
        > BOOT_SECONDS
        > offers[0].seconds - offers[0].training_seconds
    )
    assert 0 < (offers[0].price.dollars or 0) < rented.price.dollars  # type: ignore[operator]
    plan = plan_hardware(LARGE, known, Constraints(region="us-east-2", objective="time"))
    assert "box" in {offer.machine.name for offer in plan.best}  # a region is no limit to it


def test_broken_says_the_first_limit() -> None:
    offer = next(make_offers(KNOWN.get_machine("p4d.24xlarge"), LARGE))
    assert find_violation(offer, Constraints()) == ""
    assert "above the power limit" in find_violation(offer, Constraints(power=100.0))
    unknown = next(make_offers(KNOWN.get_machine("g5.xlarge"), IMDB))
    assert "there is a power limit" in find_violation(unknown, Constraints(power=100.0))


def test_a_speed_of_a_probe_slows_its_machines_alone() -> None:
    both = of("p4d.24xlarge", "p5.48xlarge")
    plain = {
        o.machine.name: o.seconds for o in plan_hardware(LARGE, both, Constraints("time")).best
    }
    slowed = plan_hardware(LARGE, both, Constraints("time"), {"A100-SXM4-40GB": 0.5}).best
    after = {o.machine.name: o.seconds for o in slowed}
    assert after["p5.48xlarge"] == plain["p5.48xlarge"]
    assert after["p4d.24xlarge"] > 1.2 * plain["p4d.24xlarge"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = __main__.main(["plan", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_answers_which_hardware_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "imdb.yaml", "--deadline", "2h", "batch.global_size=32")
    assert status == 0
    lines = out.splitlines()
    chosen = [line for line in lines if line.lstrip().startswith("=>")]
    assert len(chosen) == 1
    why = next(line for line in lines if line.startswith("why"))
    assert "is the cheapest of" in why and "done within 2.0 h" in why
    assert "trn1.2xlarge (us-east-1)" in out[out.index("refused:") :]
    assert f"within a factor {NINE_IN_TEN:.2f}" in out
    assert "assumed   19,922 training rows" in out


def test_another_row_may_be_picked_and_serving_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "imdb", "--pick", "3", "--serve", "2000", "--p95", "20ms")
    assert "=>* g5.xlarge" in out and "is your pick" in out
    assert "serving   2,000 texts/s, p95 within 20 ms" in out
    serving = out[out.index("serving ") :]
    assert "g5.xlarge" in serving and "inf2" not in serving
    assert "  not offered: serving has no engine for Inferentia2, Trainium1, Trainium2" in serving


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "bert-base-pretrain", "--json", "--objective", "time")
    told = json.loads(out)
    assert told["chosen"]["seconds"] == min(offer["seconds"] for offer in told["offers"])
    assert told["refused"]["inf2.xlarge (us-east-1)"] == "Inferentia2 does not train"
    first = told["offers"][0]
    assert sum(first["step"].values()) == pytest.approx(first["step_seconds"])


def test_figures_are_drawn_when_asked_for(tmp_path: Path) -> None:
    plan = plan_hardware(LARGE, of("p5.48xlarge", "g6e.xlarge", "p4d.24xlarge"))
    drawn = figures.draw_figures(LARGE, plan, tmp_path / "plots")
    assert [path.name for path in drawn] == ["cost-time.svg", "step.svg", "scaling.svg"]
    assert all(path.read_text().lstrip().startswith("<?xml") for path in drawn)
    costs, steps, scaling = (set(re.findall(r">([^<>]+)</text>", p.read_text())) for p in drawn)
    assert {f"{each.nodes} x {each.machine.name}" for each in plan.pareto_front} <= costs
    assert len(costs & set(figures.TIMES.values())) > 3, "in units of day to day"
    assert {"$1,000", "$3,000"} <= costs
    assert not [text for text in costs | scaling if "10^" in text or "mathdefault" in text]
    assert [text for text in steps if re.fullmatch(r"[\d,.]+ m?s", text.strip())]
    assert {"1M", "64", "4,096"} <= scaling


def test_no_two_kinds_look_alike_and_each_stands_out_of_the_page() -> None:
    marks = list(figures._marks())
    assert len(set(marks)) == len(marks) == 50
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(marks))
    for shade in figures.SHADES:
        light = [int(shade[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in light
        )
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 3, shade


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imbd"], "did you mean imdb"),
        (["imdb", "--region", "us-eest-1"], "did you mean us-east-1"),
        (["imdb", "--deadline", "2x"], "--deadline '2x': a number and one of s, m, min, h, d"),
        (["imdb", "--budget", "lots"], "as in 50USD"),
        (["imdb", "--power-limit", "3"], "as in 10kW"),
        (["imdb", "--pick", "99"], "--pick 99: there are"),
        (["imdb", "--owned", "nowhere.yaml"], "No such file"),
        (["imdb", "--probed", "nowhere.json"], "bertha probe"),
        (["imdb", "--budget", "0.001USD"], "no hardware meets the constraints"),
    ],
)
def test_a_mistake_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and said in err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "imdb", "--dedline", "2h")


def test_the_command_needs_neither_torch_nor_matplotlib() -> None:
    script = "import sys, cluster.__main__ as m; m.main(['plan', 'imdb']); "
    script += "sys.exit(bool({'torch', 'ray', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_constants_have_not_been_touched_by_planning() -> None:
    assert CALIBRATED.speed == 1.0
