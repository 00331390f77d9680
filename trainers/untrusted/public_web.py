"""Files of public web servers, and of no others: not of this machine, its network or its cloud.

A recipe may come from a stranger, and a machine in a cloud hands out keys to whoever asks it over
HTTP. The address is checked where a connection is made, so neither a name that means another
address the next time nor a redirect gets around it.
"""

import ipaddress
import socket
from typing import Any

# Public by number, but answered by the cloud for its own machines: Azure's.
CLOUD_ADDRESSES = ("168.63.129.16",)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class BlockedAddress(OSError):
    """A server that no recipe may read from; the message says which, and the way out."""

    @staticmethod
    def find_cause(error: BaseException | None) -> "BlockedAddress | None":
        """Return the blocked address that an error of the client comes from, if one does."""
        while error is not None and not isinstance(error, BlockedAddress):
            error = error.__cause__ or error.__context__
        return error


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and (ip in _NAT64 or ip in _COMPATIBLE):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and str(ip) not in CLOUD_ADDRESSES


def _open_public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Open a socket to connect to an address as from `getaddrinfo`. Raises BlockedAddress."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise BlockedAddress(
            f"the server has the address {address[0]}, which is no public one; download the file "
            "and name its path, or put it into S3"
        )
    return socket.socket(family=family, type=kind, proto=protocol)


async def open_public_session(**settings: Any) -> Any:
    """Open a session of aiohttp, as fsspec asks for, that connects to public addresses alone."""
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_open_public_socket)
    return aiohttp.ClientSession(connector=connector, **settings)
