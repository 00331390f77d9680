"""The Open Inference Protocol over gRPC: its messages, translated to the calls of `oip` and back.

Bytes of protobuf in and out; knows no gRPC server. Needs protobuf, of the extra `grpc`.
"""
