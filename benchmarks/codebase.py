"""Count lines, files a folder, one-word function names and repeated classes; time `bertha --help`.

    python benchmarks/codebase.py
    python benchmarks/codebase.py --package DIR      # the same counts of another project's folder

A function name is one word if it has no underscore inside; methods, properties and private
functions count, `__dunder__` ones do not. Times are medians over several processes.
"""

import argparse
import ast
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("bertha.py", "cluster", "trainers", "tuning", "serving")


def sources(roots: Sequence[Path]) -> list[Path]:
    """Return all Python files of files and folders."""
    return [
        path for root in roots for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])
    ]


def num_lines(paths: Sequence[Path]) -> int:
    """Count lines, blank ones and comments too."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def widest_folder(paths: Sequence[Path]) -> tuple[Path, int]:
    """Return the folder with the most Python files, and their number."""
    return Counter(path.parent for path in paths).most_common(1)[0]


def function_names(paths: Sequence[Path]) -> list[str]:
    """Return the name of every function and method that is not a dunder."""
    return [
        node.name
        for node in _nodes(paths)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not (node.name.startswith("__") and node.name.endswith("__"))
    ]


def share_of_one_word(names: Sequence[str]) -> float:
    """Return the share of names without an underscore inside."""
    return sum("_" not in name.strip("_") for name in names) / max(1, len(names))


def repeated_classes(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return the public class names that are defined in more than one file."""
    locations = defaultdict(list)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                locations[node.name].append(str(path))
    return {name: files for name, files in sorted(locations.items()) if len(files) > 1}


def _nodes(paths: Sequence[Path]) -> Iterator[ast.AST]:
    for path in paths:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def median_ms(command: Sequence[str], times: int = 7) -> float:
    """Return the median milliseconds of a whole process, start to end."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        taken.append((time.perf_counter() - begin) * 1000)
    return statistics.median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="count this folder instead")
    options = parser.parse_args()
    paths = sources([options.package] if options.package else [ROOT / name for name in PRODUCT])
    names = function_names(paths)
    folder, width = widest_folder(paths)
    print(f"lines                  {num_lines(paths):,}")
    print(f"widest folder          {width} files ({folder})")
    print(f"functions              {len(names):,}, {share_of_one_word(names):.1%} of one word")
    print(f"repeated class names   {repeated_classes(paths) or 'none'}")
    if options.package is None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8").count("\n")
        heavy = "import sys, bertha; sys.exit('torch' in sys.modules)"
        print(f"lines of README        {readme}")
        print(
            f"bertha --help          {median_ms([sys.executable, '-m', 'bertha', '--help']):.0f} ms"
        )
        print(f"import bertha          {median_ms([sys.executable, '-c', heavy]):.0f} ms, no torch")


if __name__ == "__main__":
    main()
