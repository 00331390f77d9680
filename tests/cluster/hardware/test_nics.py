"""Network cards: which one has an address, and what gloo is told of it."""

import os

import pytest

from cluster.hardware.nics import bind_gloo_interface, find_interface, list_interfaces


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back
    del os.environ["GLOO_SOCKET_IFNAME"]


def test_a_card_is_found_by_its_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert all(
        find_interface(card.address) == card.name for card in list_interfaces() if card.address
    )


@pytest.mark.parametrize("address", ["", "192.0.2.1", "::1", "of no machine"])
def test_no_card_has_another_address(address: str) -> None:
    assert find_interface(address) == ""
    bind_gloo_interface(address)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_gloo_is_told_the_card() -> None:
    bind_gloo_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_card_that_its_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    bind_gloo_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
