"""AWS calls: identity, offerings, quotas, images, buckets, running instances.

Every call turns boto3's exceptions into an `AwsError` with a way out, and never shows a credential.
Needs the `aws` extra; AWS_ENDPOINT_URL points it at an emulator.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.errors import BerthaError

NOT_ALLOWED = "your role may not do that; ask for the action that is named"
REFUSED = "the credentials are refused; log in again"
ERROR_HINTS = {
    "UnauthorizedOperation": NOT_ALLOWED,
    "AccessDenied": NOT_ALLOWED,
    "AccessDeniedException": NOT_ALLOWED,
    "AuthFailure": REFUSED,
    "InvalidClientTokenId": REFUSED,
    "ExpiredToken": "the login has expired; log in again",
    "RequestExpired": "the login has expired, or this machine's clock is wrong",
    "OptInRequired": "the account has not opted in to this region",
}
# Names of vCPU quotas by the first letters of an instance type (Service Quotas, `ec2`).
ON_DEMAND_FAMILIES = {"p": "P", "g": "G and VT", "trn": "Trn", "inf": "Inf"}
SPOT_FAMILIES = {"p5": "P5", "p4": "P4", "p3": "P4", "g": "G and VT", "trn": "Trn", "inf": "Inf"}
CLUSTER_TAG, NODE_TYPE_TAG = "ray-cluster-name", "ray-user-node-type"


class AwsError(BerthaError):
    """AWS refused or could not be reached; the message names the call and the way out."""


@dataclass(frozen=True)
class AwsAccount:
    """An account in a region, with the credentials that boto3 finds."""

    region: str

    def client(self, service: str, region: str | None = None) -> Any:
        """Return a boto3 client. Raises AwsError without boto3."""
        try:
            boto3 = importlib.import_module("boto3")
        except ImportError:
            raise AwsError('boto3 is not installed here; pip install "bertha-ray[aws]"') from None
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=10, read_timeout=60, retries={"max_attempts": 3, "mode": "standard"}
        )
        with translate_errors(f"{service} in {region or self.region}"):
            return boto3.client(service, region_name=region or self.region, config=config)

    def account_id(self) -> str:
        """Return the twelve-digit account number."""
        with translate_errors("sts:GetCallerIdentity"):
            return str(self.client("sts").get_caller_identity()["Account"])

    def paginate(self, service: str, operation: str, key: str, **arguments: Any) -> Iterator[Any]:
        """Yield the items under `key` on all pages of an operation."""
        client = self.client(service)
        with translate_errors(f"{service}:{operation}"):
            for page in client.get_paginator(operation).paginate(**arguments):
                yield from page[key]


@dataclass(frozen=True)
class RunningInstance:
    """An instance that costs money. node_type: in the cluster file. launch_time: timezone-aware."""

    instance_id: str
    instance_type: str
    node_type: str
    zone: str
    is_spot: bool
    launch_time: datetime


@contextmanager
def translate_errors(call: str) -> Iterator[None]:
    """Turn boto3's exceptions into AwsError, naming `call`; their text has no credential."""
    errors = importlib.import_module("botocore.exceptions")
    try:
        yield
    except errors.ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        hint = ERROR_HINTS.get(code, "see what AWS says of that code")
        raise AwsError(f"{call}: {code}: {message}; {hint}") from None
    except (errors.NoCredentialsError, errors.PartialCredentialsError):
        raise AwsError(
            f"{call}: no AWS credentials are found here; log in with `aws configure sso`, or set "
            "AWS_PROFILE"
        ) from None
    except errors.BotoCoreError as error:
        raise AwsError(f"{call}: {error}; is the network up, and the region right?") from None
    except importlib.import_module("botocore.parsers").ResponseParserError as error:
        first_line = str(error).splitlines()[0]
        raise AwsError(f"{call}: {first_line}; is it AWS that answers?") from None


def zones_offering(account: AwsAccount, *instances: str) -> Mapping[str, tuple[str, ...]]:
    """Return the region's zones that offer each instance type, sorted; () where none does."""
    rows = account.paginate(
        "ec2", "describe_instance_type_offerings", "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": list(instances)}],
    )  # fmt: skip
    zones: dict[str, list[str]] = {instance: [] for instance in instances}
    for row in rows:
        zones[row["InstanceType"]].append(row["Location"])
    return {instance: tuple(sorted(each)) for instance, each in zones.items()}


def list_regions(account: AwsAccount) -> tuple[str, ...]:
    """Return the regions that the account may use."""
    with translate_errors("ec2:DescribeRegions"):
        rows = account.client("ec2").describe_regions()["Regions"]
    return tuple(sorted(row["RegionName"] for row in rows))


def vcpu_quotas(account: AwsAccount, instance: str) -> Mapping[str, float]:
    """Return the vCPU quotas `on demand` and `spot` of a type's family; absent where not listed."""
    prefixes = {
        "on demand": f"Running On-Demand {_longest_prefix(ON_DEMAND_FAMILIES, instance)} ",
        "spot": f"All {_longest_prefix(SPOT_FAMILIES, instance)}",
    }
    quotas: dict[str, float] = {}
    for row in account.paginate(
        "service-quotas", "list_service_quotas", "Quotas", ServiceCode="ec2"
    ):
        market = "spot" if "Spot" in row["QuotaName"] else "on demand"
        if row["QuotaName"].startswith(prefixes[market]):
            quotas[market] = float(row["Value"])
    return quotas


def resolve_image(account: AwsAccount, wanted: str) -> str:
    """Return an image id: as given, of an SSM parameter (resolve:ssm:), or the newest (name:)."""
    if wanted.startswith("resolve:ssm:"):
        name = wanted.removeprefix("resolve:ssm:")
        with translate_errors(f"ssm:GetParameter {wanted} in {account.region}"):
            return str(account.client("ssm").get_parameter(Name=name)["Parameter"]["Value"])
    if not wanted.startswith("name:"):
        return wanted
    filters = [
        {"Name": "name", "Values": [wanted.removeprefix("name:")]},
        {"Name": "state", "Values": ["available"]},
    ]
    with translate_errors("ec2:DescribeImages"):
        rows = account.client("ec2").describe_images(Owners=["amazon"], Filters=filters)["Images"]
    if not rows:
        raise AwsError(f"ImageId {wanted}: Amazon has no image by that name in {account.region}")
    return str(max(rows, key=lambda row: row["CreationDate"])["ImageId"])


def ensure_bucket(account: AwsAccount, name: str) -> bool:
    """Make a private, encrypted, TLS-only bucket; return whether it is new."""
    client = account.client("s3")
    location = {"LocationConstraint": account.region}
    # S3 rejects a location constraint for its default region.
    options = {} if account.region == "us-east-1" else {"CreateBucketConfiguration": location}
    with translate_errors(f"s3:CreateBucket {name}"):
        exists = name in {each["Name"] for each in client.list_buckets()["Buckets"]}
        if not exists:
            client.create_bucket(Bucket=name, **options)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    # Set every time: an earlier `up` may have stopped between making the bucket and closing it.
    with translate_errors(
        f"s3:PutBucketEncryption, PutBucketPublicAccessBlock, PutBucketPolicy {name}"
    ):
        client.put_bucket_encryption(
            Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]}
        )
        client.put_public_access_block(
            Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True)
        )
        client.put_bucket_policy(Bucket=name, Policy=json.dumps(_tls_only_policy(name)))
    return not exists


def running_instances(account: AwsAccount, cluster: str) -> list[RunningInstance]:
    """Return the instances of a cluster that are running or starting."""
    filters = [
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
        {"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]},
    ]
    reservations = account.paginate("ec2", "describe_instances", "Reservations", Filters=filters)
    return [_parse_instance(row) for each in reservations for row in each["Instances"]]


def _parse_instance(row: Mapping[str, Any]) -> RunningInstance:
    tags = {each["Key"]: each["Value"] for each in row.get("Tags", ())}
    return RunningInstance(
        row["InstanceId"], row["InstanceType"], tags.get(NODE_TYPE_TAG, "?"),
        row["Placement"]["AvailabilityZone"], row.get("InstanceLifecycle") == "spot",
        row["LaunchTime"],
    )  # fmt: skip


def _tls_only_policy(name: str) -> Mapping[str, Any]:
    resources = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
    condition = {"Bool": {"aws:SecureTransport": "false"}}
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*"}
    statement = {**deny, "Resource": resources, "Condition": condition}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _longest_prefix(names: Mapping[str, str], instance: str) -> str:
    """Return the value of the longest key that starts the type; `?`, which matches nothing."""
    matching = [prefix for prefix in names if instance.startswith(prefix)]
    return names[max(matching, key=len)] if matching else "?"
