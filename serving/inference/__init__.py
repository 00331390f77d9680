"""Models by name: loading, batching, canaries and explanations.

Knows no wire protocol and no HAProxy; imports no Ray.
"""
