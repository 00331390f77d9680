"""What a command of a cluster has to choose from: cluster files, and instance types.

Said where a command is given without what it works on.
"""

from pathlib import Path

from cluster.errors import BerthaError
from cluster.hardware.catalog import load_catalog
from cluster.settings import read_cluster_yaml
from cluster.spec import SHIPPED_DIR

EXAMPLES = {
    "check": "onprem.yaml",
    "up": "my-cluster.yaml",
    "down": "my-cluster.yaml",
    "doctor": "my-cluster.yaml",
    "spent": "my-cluster.yaml",
    "offers": "p5.48xlarge",
}
MAKE_ONE = "bertha plan imdb.yaml --write my-cluster.yaml writes one; shipped, to copy and fill in:"


def describe_choices(command: str, prog: str) -> str:
    """Return what to say where a command of EXAMPLES stands alone."""
    if command == "offers":
        operand, lines = "TYPE", ["TYPE is an instance type; of the catalog:", *_type_lines()]
    else:
        operand, lines = "FILE", ["FILE is a cluster file, as `ray up` reads it.", *_file_lines()]
    return "\n".join(
        [
            f"usage: {prog} {command} {operand}",
            "",
            *lines,
            "",
            f"as in   {prog} {command} {EXAMPLES[command]}",
            f"More: `{prog} {command} --help`",
        ]
    )


def _file_lines() -> list[str]:
    """Return the cluster files here and the shipped ones, a line each."""
    here = [path for path in sorted(Path().glob("*.yaml")) if _is_cluster_file(path)]
    shipped = sorted(SHIPPED_DIR.glob("*.yaml"))
    found = ["Here:", *(f"  {path}" for path in here)] if here else ["None lies here."]
    return [*found, MAKE_ONE, *(f"  {path.name}" for path in shipped)]


def _is_cluster_file(path: Path) -> bool:
    try:
        return "provider" in read_cluster_yaml(path)
    except BerthaError:
        return False


def _type_lines() -> list[str]:
    names = dict.fromkeys(m.name for m in load_catalog().machines if "." in m.name)
    return [f"  {name}" for name in names]
