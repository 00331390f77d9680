"""Network interfaces of this machine, as its kernel reports them, and the one gloo should use."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "linux":
    import fcntl

SIOCGIFADDR = 0x8915  # linux/sockios.h: get the address of an interface


@dataclass(frozen=True)
class NetworkInterface:
    """A network interface. rate: bytes/s each way, None where unknown; sent: bytes since boot."""

    name: str
    address: str
    rate: float | None
    sent: int


def list_interfaces() -> tuple[NetworkInterface, ...]:
    """List the network interfaces that are up, without loopback."""
    interfaces = []
    for device in sorted(Path("/sys/class/net").glob("*")):
        name, state = device.name, _read_sysfs(device / "operstate")
        if name != "lo" and state in ("up", "unknown"):
            sent = int(_read_sysfs(device / "statistics" / "tx_bytes") or 0)
            address, rate = _ipv4_address(name), _link_rate(device)
            interfaces.append(NetworkInterface(name, address, rate, sent))
    return (*interfaces, *_list_infiniband())


def find_interface(address: str) -> str:
    """Return the interface, maybe loopback, whose first IPv4 address this is, or ""."""
    names = (name for _, name in socket.if_nameindex())
    return next((name for name in names if address and _ipv4_address(name) == address), "")


def bind_gloo_interface(address: str) -> None:
    """Make gloo in this process use the interface of `address`, unless the user named one.

    By default gloo uses the interface that the host name resolves to. On a fresh Debian that is
    127.0.1.1, which no other machine can reach.
    """
    name = find_interface(address)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _list_infiniband() -> list[NetworkInterface]:
    """List InfiniBand and EFA ports, whose traffic /sys/class/net does not count."""
    interfaces = []
    for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*")):
        words = _read_sysfs(port / "counters" / "port_xmit_data")  # of four bytes
        if words.isdigit():
            sent = 4 * int(words)
        else:
            sent = int(_read_sysfs(port / "hw_counters/tx_bytes") or 0)
        gigabits = _read_sysfs(port / "rate").partition(" ")[0]  # 100 Gb/sec (4X EDR)
        is_number = gigabits.replace(".", "", 1).isdigit()
        rate = float(gigabits) * 1e9 / 8 if is_number else None
        interfaces.append(NetworkInterface(port.parts[-3], "", rate, sent))
    return interfaces


def _link_rate(device: Path) -> float | None:
    """Return bytes/s; None for a virtual interface, whose reported speed means nothing."""
    megabits = _read_sysfs(device / "speed")
    real = (device / "device").exists() or (device / "bonding").exists()
    return int(megabits) * 1e6 / 8 if real and megabits.isdigit() and int(megabits) else None


def _read_sysfs(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ipv4_address(name: str) -> str:
    """Return the first IPv4 address of a network interface, or ""."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            answer = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
