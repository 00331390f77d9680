"""Report sections as HTML and as Markdown: the same words, and nothing breaks out of its place."""

from html.parser import HTMLParser
from typing import Any

from tuning.results.render import THEME, Section, render_html, render_markdown

HOSTILE = Section(
    "1 < 2 & 3",
    ("a <script>\nand 'more'",),
    (("name", "value"), ("a|b", "<b>x</b>"), ("two\nlines", "1")),
    "<svg><path/></svg>",
    'run --name "a" < in',
)


class Texts(HTMLParser):
    """The texts of a page, each with the tag that it is in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.found.append((self.open[-1], data))


def test_a_page_shows_texts_as_they_are() -> None:
    parsed = Texts(render_html("T & <u>", [HOSTILE]))
    assert parsed.open == [], "all tags are closed"
    assert parsed.found == [
        ("title", "T & <u>"),
        ("h1", "T & <u>"),
        ("h2", "1 < 2 & 3"),
        ("p", "a <script>\nand 'more'"),
        ("pre", 'run --name "a" < in'),
        ("th", "name"),
        ("th", "value"),
        ("td", "a|b"),
        ("td", "<b>x</b>"),
        ("td", "two\nlines"),
        ("td", "1"),
    ]


def test_a_figure_is_drawn_as_it_is() -> None:
    assert "<div><svg><path/></svg></div>" in render_html("T", [HOSTILE])


def test_a_page_wears_what_the_dashboard_wears() -> None:
    assert f"<style>{THEME.read_text()}" in render_html("T", [])
    assert "prefers-color-scheme: dark" in THEME.read_text()


def test_markdown_keeps_every_text_in_its_line_and_cell() -> None:
    assert render_markdown("T <u>", [HOSTILE]) == (
        "# T &lt;u>\n\n"
        "## 1 &lt; 2 & 3\n\n"
        "a &lt;script> and 'more'\n\n"
        '```sh\nrun --name "a" < in\n```\n\n'
        "| name | value |\n| --- | --- |\n| a\\|b | &lt;b>x&lt;/b> |\n| two lines | 1 |\n"
    )


def test_sections_come_in_order_and_what_they_lack_leaves_nothing() -> None:
    sections = [Section("One"), Section("Two", ("text",))]
    assert render_markdown("T", sections) == "# T\n\n## One\n\n## Two\n\ntext\n"
    page = render_html("T", sections)
    assert page.index("One") < page.index("Two")
    assert not [tag for tag in ("<pre", "<table", "<div", "<svg") if tag in page]
    assert Texts(page).found[-1] == ("p", "text")
