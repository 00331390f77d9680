"""IAM roles and instance profiles of a cluster's nodes, with the least permissions they need.

The head launches and terminates instances of its own cluster only, passes them the workers' role
only, and reads public image parameters. Head and workers use the cluster's bucket.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from cluster.launch.aws import CLUSTER_TAG, AwsAccount, translate_errors

PATH = "/bertha/"  # of what is made here; anything elsewhere is the user's own
SETTLE_SECONDS = 15.0  # EC2 learns of a new profile with a delay
SPOT = "spot.amazonaws.com"  # its service role is made with the first spot instance of an account
SPOT_ROLE = f"arn:aws:iam::*:role/aws-service-role/{SPOT}/*"
PolicyDocument = Mapping[str, Any]


def ensure_instance_profile(
    account: AwsAccount, name: str, cluster: str, policy: PolicyDocument
) -> None:
    """Make an instance profile and a role of the same name that has `policy` for `cluster`.

    A profile that is not below PATH is the user's own and is left alone.
    """
    client = account.client("iam")
    missing = client.exceptions.NoSuchEntityException
    with translate_errors(f"iam:CreateInstanceProfile {name}"):
        try:
            profile = client.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except missing:
            profile = None
        if profile is not None and profile["Path"] != PATH:
            return
        try:
            client.get_role(RoleName=name)
        except missing:
            trust = _allow_statement(["sts:AssumeRole"], Principal={"Service": "ec2.amazonaws.com"})
            document = json.dumps(_policy_document(trust))
            client.create_role(RoleName=name, Path=PATH, AssumeRolePolicyDocument=document)
        # Clusters share a role; each has an inline policy of its own name in it.
        client.put_role_policy(RoleName=name, PolicyName=cluster, PolicyDocument=json.dumps(policy))
        if profile is None:
            client.create_instance_profile(InstanceProfileName=name, Path=PATH)
        # Separate from making the profile: an earlier `up` may have stopped between the two.
        if profile is None or not profile["Roles"]:
            client.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
            time.sleep(SETTLE_SECONDS)


def revoke_policy(account: AwsAccount, name: str, cluster: str) -> None:
    """Delete the policy of `cluster` from a role; the role stays for other clusters."""
    client = account.client("iam")
    with translate_errors(f"iam:DeleteRolePolicy {name}"):
        try:
            client.delete_role_policy(RoleName=name, PolicyName=cluster)
        except client.exceptions.NoSuchEntityException:
            return


def head_policy(
    account_id: str, region: str, cluster: str, worker: str, bucket: str | None
) -> PolicyDocument:
    """Return the policy of a head. worker: the name of the workers' role."""
    ec2, instances = f"arn:aws:ec2:{region}:{account_id}", "instance/*"
    own_cluster = {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": cluster}}
    to_ec2 = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    at_launch = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    here = {"StringEquals": {"aws:RequestedRegion": region}}
    spot = {"StringLike": {"iam:AWSServiceName": SPOT}}
    change = ["ec2:CreateTags", "ec2:TerminateInstances"]
    role = f"arn:aws:iam::{account_id}:role{PATH}{worker}"
    return _policy_document(
        _allow_statement(["ec2:Describe*"], Resource="*"),
        _allow_statement(["ec2:RunInstances"], Resource="*", Condition=here),
        _allow_statement(["ec2:CreateTags"], Resource=f"{ec2}:*/*", Condition=at_launch),
        _allow_statement(change, Resource=f"{ec2}:{instances}", Condition=own_cluster),
        _allow_statement(["iam:PassRole"], Resource=role, Condition=to_ec2),
        _allow_statement(["iam:CreateServiceLinkedRole"], Resource=SPOT_ROLE, Condition=spot),
        _allow_statement(
            ["ssm:GetParameters"], Resource=f"arn:aws:ssm:{region}::parameter/aws/service/*"
        ),
        *_bucket_statements(bucket),
    )


def worker_policy(bucket: str | None) -> PolicyDocument:
    """Return the policy of a worker; IAM allows no empty one, so without a bucket it denies all."""
    deny = {"Effect": "Deny", "Action": "*", "Resource": "*"}
    return _policy_document(*(_bucket_statements(bucket) or [deny]))


def _bucket_statements(bucket: str | None) -> list[PolicyDocument]:
    if bucket is None:
        return []
    files = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        _allow_statement(["s3:ListBucket"], Resource=f"arn:aws:s3:::{bucket}"),
        _allow_statement(files, Resource=f"arn:aws:s3:::{bucket}/*"),
    ]


def _policy_document(*statements: PolicyDocument) -> PolicyDocument:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow_statement(actions: list[str], **fields: Any) -> PolicyDocument:
    return {"Effect": "Allow", "Action": actions, **fields}
