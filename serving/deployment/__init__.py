"""Endpoints: HAProxy in front, and replicas behind it.

Ray is imported by `app`, `replica` and `call_port` alone.
"""
