"""Judge all-reduce bandwidths against the catalog, the network cards' rates, and each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.costmodel.collectives import all_reduce_seconds
from cluster.costmodel.constants import CALIBRATED, NETWORK_SHARE
from cluster.doctor.allreduce import Link
from cluster.doctor.observations import Observations
from cluster.hardware.nics import NetworkInterface
from cluster.hardware.types import Machine, Topology

# Of the expected rate: a card that negotiated the next lower speed falls below.
SLOW_SHARE = 0.5
# Most bytes/s expected of gloo on any card: it copies through the kernel, on one connection; this
# is what it reached over a virtual card. NCCL is held to what its cards can do.
GLOO_MAX_RATE = 0.7e9


def format_rate(num_bytes: float) -> str:
    """Format bytes/s."""
    return f"{num_bytes / 1e9:.2f} GB/s" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB/s"


def find_suspects(seen: Observations, machine: Machine | None) -> list[Link]:
    """Return links that failed or look slow, perhaps from the traffic of pairs timed meanwhile."""
    return [
        link
        for link in seen.links
        if link.seconds is None or _missed_expectation(link, seen, machine)
    ]


def find_bad_links(seen: Observations, machine: Machine | None) -> Iterator[tuple[str, str, str]]:
    """Yield subject, finding and fix of every link that failed or is slow."""
    slow = {}
    for link in seen.links:
        if link.seconds is None:
            yield link.name, f"no all-reduce: {link.trouble}", _failed_fix(link, seen)
        elif missed := _missed_expectation(link, seen, machine):
            slow[link] = missed
    common = _common_node([link for link in slow if len(link.ends) == 2])
    for link, (expected, source) in slow.items():
        measured = f"all-reduces run at {format_rate(link.bus_bandwidth)}"
        yield (
            link.name,
            f"{measured}, where {source} give {format_rate(expected)}",
            _slow_fix(link, common),
        )


def find_wrong_interfaces(seen: Observations) -> Iterator[tuple[str, str, str]]:
    """Yield nodes whose all-reduces went over a card while a much faster one is up."""
    used = {
        end: card
        for link in seen.links
        if len(link.ends) == 2 and link.cards
        for end, card in zip(link.ends, link.cards, strict=True)
    }
    for node, name in used.items():
        cards = _cards_of(seen, node)
        if name not in cards:
            continue
        best = max(cards.values(), key=lambda card: card.rate or 0.0)
        if (cards[name].rate or math.inf) < SLOW_SHARE * (best.rate or 0.0):
            yield (
                node,
                f"all-reduces go over {_describe_card(cards[name])}, though {_describe_card(best)} "
                "is up",
                f"name the nodes by their addresses on {best.name} in the cluster's file, or set "
                f"NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to {best.name}",
            )


def _missed_expectation(
    link: Link, seen: Observations, machine: Machine | None
) -> tuple[float, str] | None:
    """Return the rate the link should reach and its source, if the link is slower."""
    for rate, source in _expected_rates(link, seen, machine):
        if link.bus_bandwidth < SLOW_SHARE * rate:
            return rate, source
    return None


def _expected_rates(
    link: Link, seen: Observations, machine: Machine | None
) -> Iterator[tuple[float, str]]:
    most = GLOO_MAX_RATE if link.backend == "gloo" else math.inf
    modelled = None if machine is None else _modelled_rate(link, machine)
    if machine is not None and modelled is not None:
        yield min(most, modelled), f"the catalog's figures of {machine.name}"
    if len(link.ends) < 2:
        return
    used = [
        _cards_of(seen, node).get(name) for node, name in zip(link.ends, link.cards, strict=False)
    ]
    rates = [card.rate for card in used if card is not None and card.rate is not None]
    if rates:
        yield min(most, NETWORK_SHARE * min(rates)), "the network cards' own rates"
    pairs = [other for other in seen.links if len(other.ends) == 2]
    others = sorted(other.bus_bandwidth for other in pairs if other.bus_bandwidth)
    if len(others) > 2:  # of two, nobody knows which is usual
        yield others[math.ceil(0.75 * len(others)) - 1], "the faster pairs here"


def _modelled_rate(link: Link, machine: Machine) -> float | None:
    """Return bytes/s on the wire by the cost model; None where the catalog lacks the figures."""
    nodes = len(link.ends)
    place = Topology.from_machine(machine, nodes)
    if (nodes > 1 and not machine.network) or (nodes == 1 and not machine.accelerator.link_rate):
        return None
    seconds = all_reduce_seconds(link.buffer_bytes, place, link.num_ranks, CALIBRATED)
    return replace(link, seconds=seconds).bus_bandwidth


def _cards_of(seen: Observations, node: str) -> Mapping[str, NetworkInterface]:
    return {card.name: card for card in seen.facts[node].cards}


def _common_node(slow: Sequence[Link]) -> str | None:
    """Return the one node that all slow pairs share, if there is one."""
    if len(slow) < 2:
        return None
    shared = set(slow[0].ends).intersection(*(link.ends for link in slow))
    return next(iter(shared)) if len(shared) == 1 else None


def _slow_fix(link: Link, common: str | None) -> str:
    if len(link.ends) == 1:
        return "nvidia-smi topo -m: are all devices connected as the catalog says?"
    if common is not None:
        card = link.cards[link.ends.index(common)] if link.cards else ""
        return (
            f"{common} is in all slow pairs: look at its card, cable and switch port "
            f"(ethtool {card or 'CARD'} shows the negotiated speed)"
        )
    return "look at what lies between the two: switch, cable, another user's traffic"


def _failed_fix(link: Link, seen: Observations) -> str:
    reachable = [
        {card.name for card in seen.facts[end].cards if card.address}
        for end in link.ends
        if end in seen.facts
    ]
    shared = sorted(set.intersection(*reachable)) if reachable else []
    card = shared[0] if shared else "CARD"
    return (
        f"set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the card that connects them, as {card}, "
        "where Ray is started; NCCL_DEBUG=INFO shows which was used"
    )


def _describe_card(card: NetworkInterface) -> str:
    return f"{card.name} ({8 * card.rate / 1e9:g} Gb/s)" if card.rate else card.name
