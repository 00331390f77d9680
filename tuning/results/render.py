"""Renders report sections as one self-contained HTML page, and as Markdown."""

import html as escaping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

THEME = Path(__file__).parent / "static" / "theme.css"  # of the dashboard as well
STYLE = """
body { max-width: 64rem; margin: 0 auto; padding: 1.5rem clamp(.75rem, 4vw, 1.25rem) 3rem }
section {
  background: var(--sheet); border: 1px solid var(--line); border-radius: 12px;
  padding: clamp(.875rem, 4vw, 1.25rem); margin-top: 1.25rem;
}
h2 { font-size: 1.0625rem; margin: 0 0 .5rem }
p { margin: .5rem 0; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top }
div { overflow-x: auto }
pre { background: var(--ground); border-radius: 8px; padding: .75rem; overflow-x: auto;
      font: .8125rem/1.5 ui-monospace, Menlo, Consolas, monospace }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    table: rows, the first of them column names. figure: SVG, in HTML only. code: a command.
    """

    title: str
    text: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    figure: str | None = None
    code: str | None = None


def render_html(title: str, sections: Sequence[Section]) -> str:
    """Return a page without scripts that loads nothing."""
    body = "\n".join(_section_html(section) for section in sections)
    style = THEME.read_text(encoding="utf-8") + STYLE
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>{style}</style>\n"
        f"<h1>{escaping.escape(title)}</h1>\n{body}\n</html>\n"
    )


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same as Markdown, without figures."""
    return "\n\n".join([f"# {_one_line(title)}", *map(_section_markdown, sections)]) + "\n"


def _section_html(section: Section) -> str:
    parts = [f"<h2>{escaping.escape(section.title)}</h2>"]
    parts += [f"<p>{escaping.escape(line)}</p>" for line in section.text]
    if section.code is not None:
        parts.append(f"<pre>{escaping.escape(section.code)}</pre>")
    if section.table:
        head, *rows = section.table
        lines = [_row_html("th", head), *(_row_html("td", row) for row in rows)]
        parts.append(f"<div><table>\n{chr(10).join(lines)}\n</table></div>")
    if section.figure is not None:
        parts.append(f"<div>{section.figure}</div>")
    return "\n".join(["<section>", *parts, "</section>"])


def _row_html(kind: str, cells: Sequence[str]) -> str:
    inner = "".join(f"<{kind}>{escaping.escape(cell)}</{kind}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _section_markdown(section: Section) -> str:
    parts = [f"## {_one_line(section.title)}", *map(_one_line, section.text)]
    if section.code is not None:
        parts.append(f"```sh\n{section.code}\n```")
    if section.table:
        head, *rows = section.table
        lines = [_row_markdown(head), _row_markdown(["---"] * len(head)), *map(_row_markdown, rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row_markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_one_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _one_line(text: str) -> str:
    """Join the lines of a text, such as an error, into one."""
    return " ".join(text.replace("<", "&lt;").split())
