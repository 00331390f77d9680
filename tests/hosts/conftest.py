"""Assertions of what the scenarios share say what they saw, too."""

import pytest

pytest.register_assert_rewrite("account", "raised", "user")
