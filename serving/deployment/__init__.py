"""Endpoints: HAProxy in front, and replicas behind it. Only `app` and `replica` import Ray."""
