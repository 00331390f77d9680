"""What is known of a server before it runs: its environment, its command, how it is asked.

Each rival lives in an environment of its own, outside this repository, made when it is asked for.
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
class Place:
    """What a command is made of: the Python of its environment, and the port."""

    python: str
    port: int
    bundle: Path

    @property
    def tools(self) -> Path:
        """Where the environment's commands lie."""
        return Path(self.python).parent


@dataclass(frozen=True)
class Contender:
    """One server.

    requirements: of its environment; () is this project's own. needs: a command that must exist.
    built: whether it serves the bundle with the chosen engine. settings: for the table's reader.
    """

    name: str
    title: str
    command: Callable[[Place], list[str]]
    path: str
    body: Body
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    home: str = ""
    needs: str = ""
    built: bool = False

    @property
    def python(self) -> Path:
        """The Python of its environment."""
        return CACHE / self.home / "bin" / "python" if self.home else Path(sys.executable)

    def lacking(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.needs and shutil.which(self.needs) is None:
            return f"needs {self.needs}"
        if self.home and (CACHE / self.home / "failed").exists():
            return (CACHE / self.home / "failed").read_text()
        if self.home and not (CACHE / self.home / "installed").exists():
            return "not installed; --install makes its environment"
        return None

    def install(self) -> str | None:
        """Make its environment, where there is none yet; why that failed, or None."""
        place = CACHE / self.home
        if not self.home or (place / "installed").exists():
            return None
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        command = [str(self.python), "-m", "pip", "install", "-q", *self.requirements]
        result = subprocess.run(command, capture_output=True, text=True)
        said = result.stderr.strip().splitlines()
        mark = "failed" if result.returncode else "installed"
        (place / mark).write_text(f"pip: {said[-1][:300]}" if result.returncode and said else mark)
        return None if mark == "installed" else (place / mark).read_text()
