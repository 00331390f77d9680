"""What people call a bundle where they give it no name."""

import re
from pathlib import Path


def name_of(bundle: Path) -> str:
    """The name of its directory, or of the run it came from, as a registry takes it."""
    directory = bundle.resolve()
    plain = directory.parent.name if directory.name == "bundle" else directory.name
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._")[:128] or "model"
