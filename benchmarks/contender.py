"""Describe a server before it runs: its environment, its command and its requests.

Each rival has a virtual environment of its own, outside this repository, made by `--install`.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path("~/.cache/bertha/rivals").expanduser()  # an environment for each rival

Body = Callable[[str], str]


@dataclass(frozen=True)
class LaunchContext:
    """The values of a command: Python of its environment, port and bundle."""

    python: str
    port: int
    bundle: Path

    @property
    def bin_directory(self) -> Path:
        """Directory of the environment's commands."""
        return Path(self.python).parent


@dataclass(frozen=True)
class Contender:
    """One server.

    requirements: of its environment; () is this project's own. needs: a command that must exist.
    venv_name: its directory under `CACHE`. uses_chosen_engine: serves the bundle with engines.
    settings: described for readers of the table.
    """

    name: str
    title: str
    command: Callable[[LaunchContext], list[str]]
    path: str
    body: Body
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    venv_name: str = ""
    needs: str = ""
    uses_chosen_engine: bool = False

    @property
    def python(self) -> Path:
        """Python of its environment."""
        return CACHE / self.venv_name / "bin" / "python" if self.venv_name else Path(sys.executable)

    def missing_requirement(self) -> str | None:
        """Return why it cannot run here, or None."""
        if self.needs and shutil.which(self.needs) is None:
            return f"needs {self.needs}"
        if self.venv_name and (CACHE / self.venv_name / "failed").exists():
            return (CACHE / self.venv_name / "failed").read_text()
        if self.venv_name and not (CACHE / self.venv_name / "installed").exists():
            return "not installed; --install makes its environment"
        return None

    def install(self) -> str | None:
        """Make its environment if there is none yet; return why that failed, or None."""
        directory = CACHE / self.venv_name
        if not self.venv_name or (directory / "installed").exists():
            return None
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        command = [str(self.python), "-m", "pip", "install", "-q", *self.requirements]
        result = subprocess.run(command, capture_output=True, text=True)
        errors = result.stderr.strip().splitlines()
        marker = "failed" if result.returncode else "installed"
        (directory / marker).write_text(
            f"pip: {errors[-1][:300]}" if result.returncode and errors else marker
        )
        return None if marker == "installed" else (directory / marker).read_text()
