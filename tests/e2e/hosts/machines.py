"""EC2 on the hosts' network: a host that answers for AWS, and one for each instance that runs.

What a hypervisor is to EC2. An instance's host has the addresses that moto gave it, lets in the
half of the key pair that moto keeps, and is gone when EC2 says terminated.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.e2e.hosts.hosts import STATE, Host
from tests.e2e.hosts.lan import etc_hosts

HERE = Path(__file__).parent
NUMBER = "123456789012"  # of moto's account
METADATA = "169.254.169.254"
AWS = Host("aws", "172.31.255.254", login="", also=(METADATA,), shares=False)
# What the image of a machine and the laptop are set up with; of the region they know nothing.
PROFILE = f"""
export AWS_ENDPOINT_URL=https://{AWS.address} AWS_CA_BUNDLE=/etc/authority.pem
"""
LAPTOP = Host("laptop", "172.31.255.2", login="", shares=False, profile=PROFILE)
OWNER = "[default]\naws_access_key_id = owner\naws_secret_access_key = of-the-account\n"


class Ec2Hosts:
    """One host per running instance, kept up to date by a thread of this process."""

    def __init__(self) -> None:
        self._on: dict[str, Host] = {}
        self._over = threading.Event()
        self._slow = False

    @property
    def state(self) -> dict[str, Any]:
        """The emulator's state: instances, launches, refused actions."""
        told: dict[str, Any] = json.loads((AWS.home / "aws" / "state.json").read_text())
        return told

    def running_instances(self) -> list[dict[str, Any]]:
        """Return the running instances, oldest first."""
        return [each for each in self.state["instances"] if each["state"] == "running"]

    def host_of(self, instance: str) -> Host:
        """Return the host of a running instance."""
        return self._on[instance]

    def all_hosts(self) -> list[Host]:
        """Return the hosts of all running instances."""
        return list(self._on.values())

    def announce_interruption(self, instance: str, seconds: float = 120) -> None:
        """Announce the interruption of a spot instance through its metadata service."""
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        notice = {"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        place = AWS.home / "aws" / "notices.json"
        place.with_suffix(".new").write_text(json.dumps({instance: notice}))
        place.with_suffix(".new").rename(place)

    @contextmanager
    def boot_delayed(self) -> Iterator[None]:
        """Delay the boot of instances launched within the block until its end."""
        self._slow = True
        try:
            yield
        finally:
            self._slow = False

    def follow_states(self) -> None:
        """Power hosts on and off as the instances' states say, until `stop_following`."""
        while not self._over.wait(0.3):
            self._apply_states()

    def _apply_states(self) -> None:
        running = {each["name"]: each for each in self.running_instances()}
        for name in [name for name in self._on if name not in running]:
            self._on.pop(name).destroy()
        for name, each in running.items():
            if name not in self._on and not self._slow:
                host = _make_host(each)
                host.power_on()
                self._on[name] = host

    def stop_following(self) -> None:
        """Stop following the instances' states."""
        self._over.set()


def _make_host(instance: dict[str, Any]) -> Host:
    public = (instance["public"],) if instance["public"] else ()
    name = instance["name"][-8:]
    key, address = instance["key"], instance["address"]
    return Host(name, address, "ubuntu", public, key, shares=False, profile=PROFILE)


@contextmanager
def emulated_ec2() -> Iterator[Ec2Hosts]:
    """Run AWS on the network, and a laptop whose user owns the account."""
    _make_certificate()
    for host in (AWS, LAPTOP):
        host.power_on(etc_hosts([AWS, LAPTOP]))
    shutil.copytree(HERE / "aws", AWS.home / "aws")
    for name in ("certificate.pem", "key.pem"):
        shutil.copy(STATE / name, AWS.home / "aws" / name)
    (LAPTOP.home / ".aws").mkdir()
    (LAPTOP.home / ".aws" / "credentials").write_text(OWNER)
    words = f"cd aws && PYTHONPATH=.. exec python -m aws.main {AWS.address} certificate.pem key.pem"
    with (STATE / "aws.log").open("w") as log:
        serving = subprocess.Popen(
            AWS.command("bash", "-c", words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        there = Ec2Hosts()
        keeper = threading.Thread(target=there.follow_states, name="ec2", daemon=True)
        try:
            _wait_until_ready(there, serving)
            keeper.start()
            yield there
        finally:
            there.stop_following()
            if keeper.is_alive():
                keeper.join()
            serving.kill()
            serving.wait()


def _make_certificate() -> None:
    """A certificate for AWS, which is its own authority, in the network's directory."""
    words = (
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-noenc", "-days", "2", "-subj", "/CN=aws", "-addext", f"subjectAltName=IP:{AWS.address}",
        "-keyout", str(STATE / "key.pem"), "-out", str(STATE / "certificate.pem"),
    )  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    shutil.copy(STATE / "certificate.pem", STATE / "authority.pem")


def _wait_until_ready(there: Ec2Hosts, serving: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 120
    while True:
        with suppress(FileNotFoundError):
            there.running_instances()
            return
        told = (STATE / "aws.log").read_text()
        assert serving.poll() is None and time.monotonic() < give_up, f"no AWS: {told}"
        time.sleep(0.2)
