"""What the nodes of a cluster may do in the account: as little as they need.

The head launches and ends machines of its own cluster only, hands them the workers' role only, and
reads the public parameters of images. Head and workers use the cluster's bucket. A role or profile
of the user's own, by the names in the file, is left as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.launch.aws import CLUSTER_TAG, Account, in_words

PATH = "/bertha/"  # of what is made here; what lies elsewhere is the user's
SETTLE_SECONDS = 15.0  # IAM tells EC2 of a new profile after a while
SPOT = "spot.amazonaws.com"  # whose role is made with the first spot machine of an account
SPOT_ROLE = f"arn:aws:iam::*:role/aws-service-role/{SPOT}/*"
ASSUMED = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}
Document = Mapping[str, Any]


def profile(
    account: Account,
    name: str,
    cluster: str,
    policy: Document,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """An instance profile with a role of the same name that has `policy` for `cluster`."""
    client = account.client("iam")
    missing = client.exceptions.NoSuchEntityException
    with in_words(f"iam:CreateInstanceProfile {name}"):
        try:
            found = client.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except missing:
            found = None
        if found is not None and found["Path"] != PATH:
            return
        try:
            client.get_role(RoleName=name)
        except missing:
            client.create_role(
                RoleName=name, Path=PATH, AssumeRolePolicyDocument=json.dumps(ASSUMED)
            )
        client.put_role_policy(RoleName=name, PolicyName=cluster, PolicyDocument=json.dumps(policy))
        if found is None:
            client.create_instance_profile(InstanceProfileName=name, Path=PATH)
        if found is None or not found["Roles"]:
            client.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
            wait(SETTLE_SECONDS)


def withdraw(account: Account, name: str, cluster: str) -> None:
    """Take from a role what it was given for `cluster`; the role stays, for other clusters."""
    client = account.client("iam")
    with in_words(f"iam:DeleteRolePolicy {name}"):
        try:
            client.delete_role_policy(RoleName=name, PolicyName=cluster)
        except client.exceptions.NoSuchEntityException:
            return


def of_head(account: str, region: str, cluster: str, worker: str, bucket: str | None) -> Document:
    """The policy of a head. account: its number. worker: the name of the workers' role."""
    mine = {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": cluster}}
    machines = f"arn:aws:ec2:{region}:{account}:instance/*"
    handed = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    made = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    return _policy(
        _allow(["ec2:Describe*"], "*"),
        _allow(["ec2:RunInstances"], "*", {"StringEquals": {"aws:RequestedRegion": region}}),
        _allow(["ec2:CreateTags"], f"arn:aws:ec2:{region}:{account}:*/*", made),
        _allow(["ec2:CreateTags", "ec2:TerminateInstances"], machines, mine),
        _allow(["iam:PassRole"], f"arn:aws:iam::{account}:role{PATH}{worker}", handed),
        _allow(
            ["iam:CreateServiceLinkedRole"], SPOT_ROLE, {"StringLike": {"iam:AWSServiceName": SPOT}}
        ),
        _allow(["ssm:GetParameters"], f"arn:aws:ssm:{region}::parameter/aws/service/*"),
        *_of_bucket(bucket),
    )


def of_worker(bucket: str | None) -> Document:
    """The policy of a worker. Without a bucket it may do nothing, and says so by refusing all."""
    statements = _of_bucket(bucket)
    return _policy(*(statements or [{"Effect": "Deny", "Action": "*", "Resource": "*"}]))


def _of_bucket(bucket: str | None) -> list[Document]:
    if bucket is None:
        return []
    files = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        _allow(["s3:ListBucket"], f"arn:aws:s3:::{bucket}"),
        _allow(files, f"arn:aws:s3:::{bucket}/*"),
    ]


def _policy(*statements: Document) -> Document:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: list[str], resource: str, condition: Document | None = None) -> Document:
    limited = {} if condition is None else {"Condition": condition}
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **limited}
