"""Clients of other servers, unmodified, and their calls: a module a family, a function a call."""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when it is imported
