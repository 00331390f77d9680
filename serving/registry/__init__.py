"""Versioned bundles in a directory or S3, and which of them answers.

Knows no engine and no HTTP; imports no Ray. All but the store, the log and the registry is pure.
"""
