"""Bytes that are whole or absent: atomic directories, stores on disk and in S3, build-once caches.

Imports only `cluster`; knows nothing of runs, models or data.
"""
