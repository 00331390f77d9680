"""Assertions of what the scenarios share say what they saw, too."""

import pytest

pytest.register_assert_rewrite(
    "tests.e2e.hosts.account", "tests.e2e.hosts.raised", "tests.e2e.hosts.user"
)
