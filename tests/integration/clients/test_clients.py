"""Each client hears what the table says: the engine's own answer, or why not."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients import table
from tests.integration.clients.calls import ALL
from tests.support.served import Served, serve_engines


@pytest.fixture(scope="module")
def served(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    gc.freeze()  # what is there already is not looked through after each call
    yield from serve_engines(tiny_bert, tmp_path_factory.mktemp("models"))
    gc.unfreeze()


# Some clients close no connection themselves; each is collected within its own test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hugging Face's client refuses to ask even this machine while the hub is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    gc.collect()


@pytest.mark.parametrize("call", ALL, ids=lambda call: f"{call.client} {call.call}")
def test_a_client_hears_what_the_table_says(call: table.ClientCall, served: Served) -> None:
    found = table.make_call(call, served)
    known = table.read_page().get(call.key)
    assert found == known, f"run {table.COMMAND}"


def test_the_table_is_of_these_calls() -> None:
    assert len({call.key for call in ALL}) == len(ALL)
    known = table.read_page()
    assert list(known) == [call.key for call in ALL], f"run {table.COMMAND}"
    assert table.PAGE.read_text(encoding="utf-8") == table.format_page(known)
