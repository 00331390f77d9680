"""S3 on this machine: moto's server on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.emulated_aws import reset_account


@contextmanager
def emulated_s3(bucket: str) -> Iterator[str]:
    """The URL of an empty bucket, for this process and what it starts."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reset_account(f"http://{host}:{port}")  # all servers of a process have one account
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
