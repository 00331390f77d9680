"""Variables for a while: what the user has set stays, and nothing is left behind."""

import os

import pytest

from trainers.runtime.fit import temporary_env


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTHA_SET", "the user's")
    monkeypatch.delenv("BERTHA_UNSET", raising=False)
    with pytest.raises(ZeroDivisionError), temporary_env({"BERTHA_SET": "a", "BERTHA_UNSET": "b"}):
        assert (os.environ["BERTHA_SET"], os.environ["BERTHA_UNSET"]) == ("the user's", "b")
        _ = 1 / 0
    assert os.environ["BERTHA_SET"] == "the user's" and "BERTHA_UNSET" not in os.environ
