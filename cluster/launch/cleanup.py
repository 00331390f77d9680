"""What `ray down` leaves running on machines of one's own: the Ray of each worker; how it is ended.

Only processes that were started for this cluster's head are ended: they have its address on their
command line. Pure: commands out, for launch/launcher.py to run.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from typing import Any

PORT = 6379  # of a head that says no other
SSH = (
    "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
    # As Ray's own launcher has it: machines are set up anew, and their keys change.
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
)  # fmt: skip


def stops(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each worker's address, and the command that ends this cluster's Ray there."""
    provider, auth = settings["provider"], settings.get("auth") or {}
    reached = list(SSH)
    if auth.get("ssh_private_key"):
        reached += ["-i", str(auth["ssh_private_key"]), "-o", "IdentitiesOnly=yes"]
    if auth.get("ssh_proxy_command"):
        reached += ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"]
    ending = end_command(str(provider["head_ip"]), _port(settings))
    for address in provider.get("worker_ips") or []:
        yield str(address), [*reached, f"{auth.get('ssh_user')}@{address}", ending]


def end_command(head: str, port: int) -> str:
    """A line of shell that ends what was started for `head`: asked first, after 10 s made to.

    The brackets keep the pattern from matching the shell that it stands in. A raylet's agents have
    renamed themselves, environment and all, and outlive it; they are known as its children.
    """
    names = "|".join(re.escape(name) for name in dict.fromkeys((head, _numeric(head))))
    pattern = f"[g]cs[-_]address=({names}):{port}( |$)"
    return (
        f'p={shlex.quote(pattern)}; own=$(pgrep -d , -f -- "$p"); '
        'agents=$([ -z "$own" ] || pgrep -P "$own"); '
        'pkill -TERM -f -- "$p"; n=0; '
        'while pgrep -f -- "$p" > /dev/null && [ $n -lt 20 ]; do sleep 0.5; n=$((n+1)); done; '
        'pkill -KILL -f -- "$p"; [ -z "$agents" ] || kill -KILL $agents 2> /dev/null; true'
    )


def _numeric(name: str) -> str:
    """The address behind a name, by which Ray calls the head; the name where none is known."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name


def _port(settings: Mapping[str, Any]) -> int:
    commands = settings.get("head_start_ray_commands") or []
    found = re.search(r"--head\b.*--port[= ](\d+)", " ".join(str(each) for each in commands))
    return int(found[1]) if found else PORT
