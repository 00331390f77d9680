"""Network cards: which one has an address, and what gloo is told of it."""

import os

import pytest

from cluster.hardware.nics import card_of, cards, meet_over


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back
    del os.environ["GLOO_SOCKET_IFNAME"]


def test_a_card_is_found_by_its_address() -> None:
    assert card_of("127.0.0.1") == "lo"
    assert all(card_of(card.address) == card.name for card in cards() if card.address)


@pytest.mark.parametrize("address", ["", "192.0.2.1", "::1", "of no machine"])
def test_no_card_has_another_address(address: str) -> None:
    assert card_of(address) == ""
    meet_over(address)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_gloo_is_told_the_card() -> None:
    meet_over("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_card_that_its_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    meet_over("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
