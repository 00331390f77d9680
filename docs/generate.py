"""Write the generated pages: recipe.md, protocols.md, cli.md, api.md, rooms of architecture.md.

python docs/generate.py            # write; tests/e2e/test_docs.py fails when a page is out of date
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

import bertha  # noqa: E402
from serving.protocols import fields  # noqa: E402
from trainers.config.recipe import Recipe  # noqa: E402

NOTE = "<!-- Written by docs/generate.py. Edit the code it reads, not this page. -->\n\n"


def pages() -> dict[str, str]:
    """Return the text of every generated page by its file name."""
    architecture = (DOCS / "architecture.md").read_text(encoding="utf-8")
    head, _, rest = architecture.partition("## Rooms\n")
    _, _, tail = rest.partition("## Laws\n")
    return {
        "recipe.md": NOTE + recipe_page(),
        "cli.md": NOTE + command_page(),
        "protocols.md": NOTE + protocol_page(),
        "api.md": NOTE + api_page(),
        "architecture.md": f"{head}## Rooms\n\n{rooms()}\n## Laws\n{tail}",
    }


def protocol_page() -> str:
    """Return what is done with each field that clients send."""
    return (
        "# Fields of the protocols\n\nWhat clients may send, and what is done with it. A field is "
        "done, refused by its name with the way out, or has no effect for the reason given; a test "
        "sends each. Any other key is ignored, and the answer's header `x-bertha-ignored` names "
        "it; `accept` too, where the answer is of no media type in it.\n\n"
        f"{fields.to_markdown()}"
    )


def recipe_page() -> str:
    """Return the recipe reference: a table of settings a group."""
    schema = Recipe.model_json_schema()
    groups = "".join(_group(name, field, schema) for name, field in schema["properties"].items())
    return (
        "# Recipe reference\n\nEvery setting of a recipe. Change one on the command line by its "
        "dotted name: `batch.global_size=64`. `bertha train --schema` prints the same as a JSON "
        "schema for editors.\n\n"
        f"{_table(_top(schema))}{groups}"
    )


def _top(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, field in schema["properties"].items():
        if _reference(field) is None:
            yield name, field, schema


def _group(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    reference = _reference(field)
    if reference is None:
        return ""
    group = schema["$defs"][reference]
    rows = _settings(name, group, schema)
    summary = (group.get("description") or "").strip().split("\n\n")[0].replace("\n", " ")
    return f"\n## {name}\n\n{summary}\n\n{_table(rows)}"


def _settings(
    name: str, group: dict[str, Any], schema: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield the settings of a group, each followed by those inside it."""
    for key, field in group["properties"].items():
        yield f"{name}.{key}", field, schema
        inner = schema["$defs"].get(_reference(field), {})
        if "properties" in inner:
            yield from _settings(f"{name}.{key}", inner, schema)


def _reference(field: dict[str, Any]) -> str | None:
    for option in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _table(rows: Any) -> str:
    lines = ["| Setting | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field, schema in rows:
        default = "required" if "default" not in field else f"`{_plain(field['default'])}`"
        meaning = (field.get("description") or "").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {_type(field, schema)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [_type(each, schema) for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if field.get("type") == "array":
        items = field.get("items") or {}
        return f"list of {_type(items, schema)}" if items else "list"
    return str(field.get("type", "value"))


def command_page() -> str:
    """Return the command reference: the `--help` of every command."""
    parts = [
        "# Command line\n\n`bertha COMMAND` and the older `python -m PACKAGE` forms are the same "
        "code.\n\n```\n" + _help() + "```\n"
    ]
    for group, commands in bertha.GROUPS.items():
        parts.append(f"\n## {group}\n")
        for name in commands:
            parts.append(f"\n### bertha {name}\n\n```\n{_help(name)}```\n")
    return "".join(parts)


def _help(*words: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "bertha", *words, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "98", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout


def api_page() -> str:
    """Return the reference of the functions of bertha.py."""
    tree = ast.parse((ROOT / "bertha.py").read_text("utf-8"))
    parts = [f"# Python API\n\n{_prose(ast.get_docstring(tree) or '')}\n"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in bertha.__all__:
            signature = ast.unparse(ast.arguments(**vars(node.args)))
            returns = ast.unparse(node.returns) if node.returns else "None"
            parts.append(
                f"\n## bertha.{node.name}\n\n```python\n{node.name}({signature}) -> {returns}\n"
                f"```\n\n{_prose(ast.get_docstring(node) or '')}\n"
            )
    return "".join(parts)


def _prose(text: str) -> str:
    """Return a docstring with its indented parts as code."""
    return "\n\n".join(
        f"```python\n{textwrap.dedent(part)}\n```" if part.startswith("    ") else part
        for part in text.split("\n\n")
    )


def rooms() -> str:
    """Return a table of all rooms and the first sentence of each one's docstring."""
    lines = ["| Room | What it holds |", "|---|---|"]
    for package in ("cluster", "trainers", "serving", "tuning"):
        for folder in sorted({path.parent for path in (ROOT / package).rglob("__init__.py")}):
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
            name = ".".join(folder.relative_to(ROOT).parts)
            lines.append(f"| `{name}` | {' '.join(text.split())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every page that differs."""
    for name, text in pages().items():
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text:
            (DOCS / name).write_text(text, encoding="utf-8")
            print(f"docs/{name} written")


if __name__ == "__main__":
    main()
