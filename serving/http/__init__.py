"""The HTTP layer: ASGI application, routing, API keys, metrics and tracing.

Knows no model and no wire protocol; imports nothing of this package but `serving.interface`.
"""
