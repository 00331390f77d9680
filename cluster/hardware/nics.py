"""The network cards of a machine, as its kernel tells them, and the one that has an address."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "linux":
    import fcntl

ADDRESS_OF = 0x8915  # SIOCGIFADDR of linux/sockios.h


@dataclass(frozen=True)
class Card:
    """A network card. rate: bytes/s each way, by the card itself; None where it does not tell.

    sent: bytes since it is up.
    """

    name: str
    address: str
    rate: float | None
    sent: int


def cards() -> tuple[Card, ...]:
    """The network cards of this machine that are up, without loopback."""
    found = []
    for place in sorted(Path("/sys/class/net").glob("*")):
        state = _word(place / "operstate")
        if place.name != "lo" and state in ("up", "unknown"):
            sent = int(_word(place / "statistics" / "tx_bytes") or 0)
            found.append(Card(place.name, _address_of(place.name), _rate(place), sent))
    return (*found, *_fabric())


def card_of(address: str) -> str:
    """The card, loopback among them, whose first IPv4 address this is; "" where none is known."""
    names = (name for _, name in socket.if_nameindex())
    return next((name for name in names if address and _address_of(name) == address), "")


def meet_over(address: str) -> None:
    """Let gloo in this process use the card that has `address`, unless its user has named one.

    gloo takes the card of whatever address the machine's own name has. On Debian as it is installed
    that is 127.0.1.1, where no other machine can reach it.
    """
    card = card_of(address)
    if card:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", card)


def _fabric() -> list[Card]:
    """InfiniBand and EFA, whose traffic the kernel's cards do not count."""
    found = []
    for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*")):
        words = _word(port / "counters" / "port_xmit_data")  # of four bytes
        sent = 4 * int(words) if words.isdigit() else int(_word(port / "hw_counters/tx_bytes") or 0)
        rate = _word(port / "rate").partition(" ")[0]  # 100 Gb/sec (4X EDR)
        told = float(rate) * 1e9 / 8 if rate.replace(".", "", 1).isdigit() else None
        found.append(Card(port.parts[-3], "", told, sent))
    return found


def _rate(card: Path) -> float | None:
    """Bytes/s. A virtual card names a speed that nothing holds it to, so it is not believed."""
    megabits = _word(card / "speed")
    real = (card / "device").exists() or (card / "bonding").exists()
    return int(megabits) * 1e6 / 8 if real and megabits.isdigit() and int(megabits) else None


def _word(path: Path) -> str:
    """What a file of the kernel says; "" where it says nothing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _address_of(card: str) -> str:
    """The first IPv4 address of a network card; "" without one."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, ADDRESS_OF, struct.pack("256s", card[:15].encode()))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
