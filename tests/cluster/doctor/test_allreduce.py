"""Links between nodes: who is timed with whom, and what is called slow."""

from dataclasses import replace

import pytest

from cluster.doctor import bandwidth
from cluster.doctor.allreduce import MAX_ROUNDS, Link, schedule_rounds
from cluster.doctor.node_facts import NetworkInterface
from cluster.hardware import catalog
from tests.support.doctor_cases import healthy_cluster, with_facts, with_links


class TestSlowLinks:
    """Against the catalogue, the cards and each other."""

    def test_a_slow_node_is_named_for_all_its_pairs(self) -> None:
        pairs = [each.ends for each in healthy_cluster().links if "w2" in each.ends]
        seen = with_links(healthy_cluster(), dict.fromkeys(pairs, 1e9))
        found = list(bandwidth.find_bad_links(seen, None))
        assert len(found) == 3
        assert all("w2 is in all slow pairs" in fix and "ethtool eth0" in fix for *_, fix in found)

    def test_two_nodes_are_held_to_their_cards(self) -> None:
        slow = Link(("head", "w1"), "nccl", 4, 1.0, ("eth0", "eth0"))
        seen = replace(healthy_cluster(), links=(slow,))
        ((_, found, _),) = bandwidth.find_bad_links(seen, None)
        assert "the network cards' own rates" in found

    def test_gloo_is_not_held_to_a_fast_card(self) -> None:
        link = Link(("head", "w1"), "gloo", 2, 0.02, ("eth0", "eth0"))
        seen = replace(healthy_cluster(), links=(link,))
        assert list(bandwidth.find_bad_links(seen, None)) == []

    def test_a_rented_machine_is_held_to_the_catalogue(self) -> None:
        machine = catalog.load_catalog().get_machine("p4d.24xlarge")
        link = Link(("w1", "w2"), "nccl", 16, 0.0, ("eth0", "eth0"))
        virtual = replace(healthy_cluster(), links=(link,))
        for name in ("w1", "w2"):
            virtual = with_facts(virtual, name, cards=(NetworkInterface("eth0", "", None, 0),))
        by_efa, by_one_card = 40e9, 10e9  # bytes/s; 400 Gb/s are promised
        for rate, count in ((by_efa, 0), (by_one_card, 1)):
            (one,) = virtual.links
            timed = replace(one, seconds=1.0)
            seen = replace(virtual, links=(replace(timed, seconds=timed.bus_bandwidth / rate),))
            found = list(bandwidth.find_bad_links(seen, machine))
            assert len(found) == count, rate
        assert "the catalog's figures of p4d.24xlarge" in found[0][1]

    def test_a_slow_link_inside_a_node(self) -> None:
        machine = catalog.load_catalog().get_machine("p4d.24xlarge")
        inside = Link(("w1",), "nccl", 8, 1.0)
        seen = replace(healthy_cluster(), links=(inside,))
        ((subject, _, fix),) = bandwidth.find_bad_links(seen, machine)
        assert subject == "inside w1" and "topo" in fix
        fast = replace(
            inside, seconds=inside.bus_bandwidth / 230e9
        )  # stas00: 235 of 300 GB/s on A100
        assert list(bandwidth.find_bad_links(replace(seen, links=(fast,)), machine)) == []

    def test_the_doubtful_are_those_that_would_be_found(self) -> None:
        seen = with_links(healthy_cluster(), {("w1", "w2"): 1e9})
        assert [each.ends for each in bandwidth.find_suspects(seen, None)] == [("w1", "w2")]


class TestRounds:
    """Who is timed with whom."""

    @pytest.mark.parametrize("number", [0, 1, 2, 3, 8, 9, MAX_ROUNDS + 1])
    def test_every_two_meet_once(self, number: int) -> None:
        names = [str(each) for each in range(number)]
        met = [frozenset(pair) for turn in schedule_rounds(names) for pair in turn]
        assert len(met) == len(set(met)) == number * (number - 1) // 2

    @pytest.mark.parametrize("number", [3, 8, 64])
    def test_nobody_is_in_two_pairs_of_a_round(self, number: int) -> None:
        for turn in schedule_rounds([str(each) for each in range(number)]):
            busy = [name for pair in turn for name in pair]
            assert len(busy) == len(set(busy)) and len(busy) >= number - 1

    def test_a_large_cluster_takes_no_longer(self) -> None:
        assert len(list(schedule_rounds([str(each) for each in range(512)]))) == MAX_ROUNDS
