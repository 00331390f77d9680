"""Which links are slow: against the catalogue, against the card's own rate, against each other.

Pure: links in, words out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from cluster.costmodel.collectives import all_reduce
from cluster.costmodel.constants import CALIBRATED, NETWORK_SHARE
from cluster.doctor.allreduce import Link
from cluster.doctor.observations import Observed
from cluster.hardware.nics import Card
from cluster.hardware.types import Machine, Place

SLOW = 0.5  # of what is expected: a card that fell back to the next lower speed is below
# Bytes/s that gloo is held to at most, whatever the card: it copies through the kernel, on one
# connection; this is what it reached over a virtual card. NCCL is held to what its cards can do.
GLOO_RATE = 0.7e9
RELATIVE = "the faster pairs here"


def rate_of(num_bytes: float) -> str:
    """Bytes/s in words."""
    return f"{num_bytes / 1e9:.2f} GB/s" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB/s"


def doubtful(seen: Observed, machine: Machine | None) -> list[Link]:
    """Links that failed or look slow; timed beside others, they may only have been hindered."""
    return [link for link in seen.links if not link.rate or _slow(link, seen, machine)]


def found(seen: Observed, machine: Machine | None) -> Iterator[tuple[str, str, str]]:
    """Subject, finding and fix of every link that failed or is slow."""
    for link in seen.links:
        if link.seconds is None:
            yield link.name, f"no all-reduce: {link.trouble}", _failed_fix(link, seen)
    slow = {link: why for link in seen.links if link.rate and (why := _slow(link, seen, machine))}
    common = _common([link for link in slow if len(link.ends) == 2])
    for link, (expected, source) in slow.items():
        said = f"all-reduces run at {rate_of(link.rate)}, where {source} give {rate_of(expected)}"
        yield link.name, said, _slow_fix(link, common)


def wrong_cards(seen: Observed) -> Iterator[tuple[str, str, str]]:
    """Nodes whose all-reduces went over a card while a faster one is up."""
    carried = {
        end: card
        for link in seen.links
        if len(link.ends) == 2 and link.cards
        for end, card in zip(link.ends, link.cards, strict=True)
    }
    for node, name in carried.items():
        cards = {card.name: card for card in seen.vitals[node].cards}
        if name not in cards:
            continue
        best = max(cards.values(), key=lambda card: card.rate or 0.0)
        if (cards[name].rate or math.inf) < SLOW * (best.rate or 0.0):
            yield (
                node,
                f"all-reduces go over {_told(cards[name])}, though {_told(best)} is up",
                f"name the nodes by their addresses on {best.name} in the cluster's file, or set "
                f"NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to {best.name}",
            )


def _slow(link: Link, seen: Observed, machine: Machine | None) -> tuple[float, str] | None:
    """What the link should reach, and who says so, where it does not."""
    for rate, source in _expectations(link, seen, machine):
        if link.rate < SLOW * rate:
            return rate, source
    return None


def _expectations(
    link: Link, seen: Observed, machine: Machine | None
) -> Iterator[tuple[float, str]]:
    most = GLOO_RATE if link.backend == "gloo" else math.inf
    if machine is not None:
        modelled = _modelled(link, machine)
        if modelled is not None:
            yield min(most, modelled), f"the catalogue's figures of {machine.name}"
    if len(link.ends) < 2:
        return
    rates = [_card_rate(seen, end, card) for end, card in zip(link.ends, link.cards, strict=False)]
    known = [rate for rate in rates if rate is not None]
    if known:
        yield min(most, NETWORK_SHARE * min(known)), "the network cards' own rates"
    others = sorted(other.rate for other in seen.links if len(other.ends) == 2 and other.rate)
    if len(others) > 2:  # of two, nobody knows which is usual
        yield others[math.ceil(0.75 * len(others)) - 1], RELATIVE


def _modelled(link: Link, machine: Machine) -> float | None:
    """Bytes/s on the wire by planning/collectives.py; None where the catalogue does not tell."""
    nodes = len(link.ends)
    place = Place.of(machine, nodes)
    if (nodes > 1 and not machine.network) or (nodes == 1 and not machine.accelerator.link_rate):
        return None
    seconds = all_reduce(link.num_bytes, place, link.num_ranks, CALIBRATED)
    return 2 * (link.num_ranks - 1) / link.num_ranks * link.num_bytes / seconds


def _card_rate(seen: Observed, node: str, name: str) -> float | None:
    cards: Mapping[str, Card] = {card.name: card for card in seen.vitals[node].cards}
    return cards[name].rate if name in cards else None


def _common(slow: Sequence[Link]) -> str | None:
    """The one node that all slow pairs share."""
    if len(slow) < 2:
        return None
    shared = set(slow[0].ends).intersection(*(link.ends for link in slow))
    return next(iter(shared)) if len(shared) == 1 else None


def _slow_fix(link: Link, common: str | None) -> str:
    if len(link.ends) == 1:
        return "nvidia-smi topo -m: are all devices joined as the catalogue says?"
    if common is not None:
        card = link.cards[link.ends.index(common)] if link.cards else ""
        return (
            f"{common} is in all slow pairs: look at its card, cable and switch port "
            f"(ethtool {card or 'CARD'} tells the speed that was agreed on)"
        )
    return "look at what lies between the two: switch, cable, another user's traffic"


def _failed_fix(link: Link, seen: Observed) -> str:
    held = [
        {card.name for card in seen.vitals[end].cards if card.address}
        for end in link.ends
        if end in seen.vitals
    ]
    both = sorted(set.intersection(*held)) if held else []
    card = both[0] if both else "CARD"
    return (
        f"set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the card that joins them, as in {card}, "
        "where Ray is started; NCCL_DEBUG=INFO tells which was taken"
    )


def _told(card: Card) -> str:
    return f"{card.name} ({8 * card.rate / 1e9:g} Gb/s)" if card.rate else card.name
