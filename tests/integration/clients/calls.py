"""All calls, in the order of the table."""

from tests.integration.clients import (
    hub_calls,
    openai_calls,
    plain_calls,
    platform_calls,
    rerank_calls,
)
from tests.integration.clients.table import CALLS

MODULES = (openai_calls, hub_calls, rerank_calls, platform_calls, plain_calls)
_ORDER = [module.__name__ for module in MODULES]
ALL = tuple(sorted(CALLS, key=lambda call: _ORDER.index(call.run.__module__)))
