"""What only AWS knows: who one is, where machines are offered, quotas, images, buckets, what runs.

Every call goes through `Account`, which turns what boto3 raises into words and never shows a
credential. Needs the `aws` extra; AWS_ENDPOINT_URL points it at an emulation. What things cost is
asked in launch/prices.py; what a cluster stands on is made in launch/ground.py.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.errors import BerthaError

WAYS_OUT = {
    "UnauthorizedOperation": "your role may not do that; ask for the action that is named",
    "AccessDenied": "your role may not do that; ask for the action that is named",
    "AccessDeniedException": "your role may not do that; ask for the action that is named",
    "AuthFailure": "the credentials are refused; log in again",
    "ExpiredToken": "the login has expired; log in again",
    "RequestExpired": "the login has expired, or this machine's clock is wrong",
    "InvalidClientTokenId": "the credentials are refused; log in again",
    "OptInRequired": "the account has not opted in to this region",
}
# Names of quotas, in virtual processors, by the first letters of a type (Service Quotas, `ec2`).
ON_DEMAND = {"p": "P", "g": "G and VT", "trn": "Trn", "inf": "Inf"}
SPOT = {"p5": "P5", "p4": "P4", "p3": "P4", "g": "G and VT", "trn": "Trn", "inf": "Inf"}
CLUSTER_TAG, KIND_TAG = "ray-cluster-name", "ray-user-node-type"


class AwsError(BerthaError):
    """AWS refused or could not be asked; the text says what was asked for, and the way out."""


@dataclass(frozen=True)
class Account:
    """An account in a region, as boto3 finds its credentials."""

    region: str

    def client(self, service: str, region: str | None = None) -> Any:
        """A boto3 client. Raises AwsError without boto3."""
        try:
            boto3 = importlib.import_module("boto3")
        except ImportError:
            raise AwsError('boto3 is not installed here; pip install "bertha[aws]"') from None
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=10, read_timeout=60, retries={"max_attempts": 3, "mode": "standard"}
        )
        with in_words(f"{service} in {region or self.region}"):
            return boto3.client(service, region_name=region or self.region, config=config)

    def number(self) -> str:
        """The twelve digits of the account."""
        with in_words("sts:GetCallerIdentity"):
            return str(self.client("sts").get_caller_identity()["Account"])

    def pages(self, service: str, operation: str, key: str, **arguments: Any) -> Iterator[Any]:
        """All of `key` in the pages of an operation."""
        client = self.client(service)
        with in_words(f"{service}:{operation}"):
            for page in client.get_paginator(operation).paginate(**arguments):
                yield from page[key]


@dataclass(frozen=True)
class Running:
    """An instance that costs money. started: with its time zone."""

    name: str
    instance_type: str
    kind: str
    zone: str
    spot: bool
    started: datetime


@contextmanager
def in_words(asked: str) -> Iterator[None]:
    """What boto3 raises while `asked`, as an AwsError; its own text never holds a credential."""
    errors = importlib.import_module("botocore.exceptions")
    try:
        yield
    except errors.ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        raise AwsError(f"{asked}: {code}: {message}; {_way_out(code)}") from None
    except (errors.NoCredentialsError, errors.PartialCredentialsError):
        raise AwsError(
            f"{asked}: no credentials of AWS are found here; log in with `aws configure sso`, or "
            "set AWS_PROFILE"
        ) from None
    except errors.BotoCoreError as error:
        raise AwsError(f"{asked}: {error}; is the network up, and the region right?") from None
    except importlib.import_module("botocore.parsers").ResponseParserError as error:
        first = str(error).splitlines()[0]
        raise AwsError(f"{asked}: {first}; is that AWS which answers?") from None


def zones_of(account: Account, *instances: str) -> Mapping[str, tuple[str, ...]]:
    """Zones of the region that offer each type of instance, sorted; () where none does."""
    rows = account.pages(
        "ec2", "describe_instance_type_offerings", "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": list(instances)}],
    )  # fmt: skip
    found: dict[str, list[str]] = {instance: [] for instance in instances}
    for row in rows:
        found[row["InstanceType"]].append(row["Location"])
    return {instance: tuple(sorted(zones)) for instance, zones in found.items()}


def regions(account: Account) -> tuple[str, ...]:
    """Regions that the account may use."""
    with in_words("ec2:DescribeRegions"):
        rows = account.client("ec2").describe_regions()["Regions"]
    return tuple(sorted(row["RegionName"] for row in rows))


def quotas(account: Account, instance: str) -> Mapping[str, float]:
    """Virtual processors that may run at once, `on demand` and `spot`; absent where not told."""
    wanted = {
        "on demand": f"Running On-Demand {_longest(ON_DEMAND, instance)} ",
        "spot": f"All {_longest(SPOT, instance)}",
    }
    found: dict[str, float] = {}
    for row in account.pages("service-quotas", "list_service_quotas", "Quotas", ServiceCode="ec2"):
        for name, start in wanted.items():
            if row["QuotaName"].startswith(start) and ("Spot" in row["QuotaName"]) == (
                name == "spot"
            ):
                found[name] = float(row["Value"])
    return found


def image(account: Account, wanted: str) -> str:
    """The id of an image: itself, that of a parameter (resolve:ssm:), Amazon's newest (name:)."""
    if wanted.startswith("resolve:ssm:"):
        with in_words(f"ssm:GetParameter {wanted} in {account.region}"):
            found = account.client("ssm").get_parameter(Name=wanted.removeprefix("resolve:ssm:"))
        return str(found["Parameter"]["Value"])
    if not wanted.startswith("name:"):
        return wanted
    pattern = wanted.removeprefix("name:")
    with in_words("ec2:DescribeImages"):
        images = account.client("ec2").describe_images(
            Owners=["amazon"],
            Filters=[
                {"Name": "name", "Values": [pattern]},
                {"Name": "state", "Values": ["available"]},
            ],
        )["Images"]
    if not images:
        raise AwsError(f"ImageId {wanted}: {account.region} has no image of Amazon's by that name")
    return str(max(images, key=lambda each: each["CreationDate"])["ImageId"])


def bucket(account: Account, name: str) -> bool:
    """Make a private, encrypted bucket that takes nothing without TLS; False where it was there."""
    client = account.client("s3")
    there = {"LocationConstraint": account.region}
    elsewhere = {} if account.region == "us-east-1" else {"CreateBucketConfiguration": there}
    with in_words(f"s3:CreateBucket {name}"):
        mine = {each["Name"] for each in client.list_buckets()["Buckets"]}
        if name not in mine:
            client.create_bucket(Bucket=name, **elsewhere)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    with in_words(f"s3:PutBucketEncryption, PutBucketPublicAccessBlock, PutBucketPolicy {name}"):
        client.put_bucket_encryption(
            Bucket=name, ServerSideEncryptionConfiguration={"Rules": [rule]}
        )
        client.put_public_access_block(
            Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True)
        )
        client.put_bucket_policy(Bucket=name, Policy=json.dumps(_only_with_tls(name)))
    return name not in mine


def running(account: Account, cluster: str) -> list[Running]:
    """The instances of a cluster that run or start."""
    filters = [
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
        {"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]},
    ]
    reservations = account.pages("ec2", "describe_instances", "Reservations", Filters=filters)
    return [_running(each) for reservation in reservations for each in reservation["Instances"]]


def _running(row: Mapping[str, Any]) -> Running:
    tags = {each["Key"]: each["Value"] for each in row.get("Tags", ())}
    return Running(
        row["InstanceId"], row["InstanceType"], tags.get(KIND_TAG, "?"),
        row["Placement"]["AvailabilityZone"], row.get("InstanceLifecycle") == "spot",
        row["LaunchTime"],
    )  # fmt: skip


def _only_with_tls(name: str) -> Mapping[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }


def _longest(names: Mapping[str, str], instance: str) -> str:
    """The value of the longest key that the type begins with; `?`, which nothing has, for none."""
    able = [start for start in names if instance.startswith(start)]
    return names[max(able, key=len)] if able else "?"


def _way_out(code: str) -> str:
    return WAYS_OUT.get(code, "see what AWS says of that code")
