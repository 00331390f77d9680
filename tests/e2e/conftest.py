"""The person before a browser, whom all tests of the page share."""

from collections.abc import Iterator

import pytest

from tests.support.browser import PageUser, browser_or_skip


@pytest.fixture(scope="module")
def opened() -> Iterator[PageUser]:
    with browser_or_skip() as person:
        yield person


@pytest.fixture
def person(opened: PageUser) -> Iterator[PageUser]:
    """Whatever they do, the browser's console stays silent."""
    yield opened
    opened.use_desktop_screen()
    assert not opened.console_errors()
