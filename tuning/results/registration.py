"""The winner's bundle under a name, where serving finds it: `sentiment@best`.

It is registered and called best; which version answers requests changes by `python -m serving
deploy` alone. The bundle is all that goes from here to serving, so its command line is asked. Knows
no search.
"""

import subprocess
import sys
from pathlib import Path

from cluster.errors import BerthaError

ALIAS = "best"


class RegistrationError(BerthaError):
    """A bundle that cannot be registered so; the text says the way out."""


def check(name: str, address: str) -> None:
    """Raise RegistrationError where a bundle could not be registered so: before any training."""
    _register(Path("bundle"), name, address, "--dry-run")


def register(bundle: Path, name: str, address: str, note: str) -> str:
    """Register `bundle` as the next version of `name`, and call it best: `sentiment:3`."""
    return _register(bundle, name, address, "--alias", ALIAS, "--note", note)


def _register(bundle: Path, name: str, address: str, *more: str) -> str:
    """What `python -m serving register` says. Raises RegistrationError with what it refuses."""
    command = [sys.executable, "-m", "serving", "register", str(bundle), f"--as={name}"]
    asked = [*command, f"--registry={address}", *more]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RegistrationError(f"--register {name}: {last.removeprefix('error: ')}")
    return done.stdout.strip()
