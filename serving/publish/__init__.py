"""Bundles for others: folders of Transformers, graphs of ONNX and OpenVINO, and the hub.

Imports no Ray and no HTTP server.
"""
