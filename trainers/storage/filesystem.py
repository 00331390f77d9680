"""File systems of fsspec by URL, and the ways in which they fail."""

import importlib
from typing import Any

import fsspec

from cluster.errors import BerthaError

PERMISSIONS = (
    "a store in S3 needs s3:ListBucket, GetObject, PutObject and DeleteObject on its prefix"
)
_NETWORK = "are AWS_ENDPOINT_URL and the region right, and is the network up?"
_CREDENTIALS = "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
WAYS_OUT = {  # by the name of botocore's exception
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "EndpointConnectionError": _NETWORK,
    "ConnectTimeoutError": _NETWORK,
}


class StoreError(BerthaError):
    """A store that cannot be read or written; the text says where, why, and the way out."""


class NotFound(StoreError):
    """A file that is not in the store."""


def resolve_filesystem(address: str, **options: Any) -> tuple[Any, str]:
    """Return the fsspec file system of a URL or path, and the path in it. Raises StoreError."""
    try:
        filesystem, path = fsspec.core.url_to_fs(address, **options)
    except (ImportError, ValueError) as error:
        extra = '; pip install "bertha-ray[aws]"' if address.startswith("s3") else ""
        raise StoreError(f"{address}: cannot be reached: {error}{extra}") from None
    return filesystem, path


def client_errors(address: str) -> tuple[type[Exception], ...]:
    """Return what a file system raises: S3's client for lacking credentials no OSError."""
    if not address.startswith(("s3://", "s3a://")):
        return (OSError,)
    return (
        OSError,
        importlib.import_module("botocore.exceptions").BotoCoreError,
    )
