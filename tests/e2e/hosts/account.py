"""An AWS client on a host: what the account holds, and what the host's role may do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e.hosts.hosts import Host

CALL_SCRIPT = """
import boto3, json, sys
from botocore.exceptions import ClientError
service, region, operation, arguments, endpoint = json.load(sys.stdin)
client = boto3.client(service, region_name=region, endpoint_url=endpoint)
try:
    answer = getattr(client, operation)(**arguments)
    if "Body" in answer:
        answer["Body"] = answer["Body"].read().decode()
except ClientError as error:
    answer = {"refused": error.response["Error"]["Code"]}
print(json.dumps(answer, default=str))
"""


@dataclass(frozen=True)
class AwsClient:
    """AWS as `host` sees it, with its credentials. endpoint: instead of the host's own."""

    host: Host
    region: str
    endpoint: str | None = None

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        """Call an operation; return its answer, or {"refused": error code}."""
        asked = json.dumps([service, self.region, operation, arguments, self.endpoint])
        done = self.host.run("python", "-c", CALL_SCRIPT, given=asked)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def object_text(self, bucket: str, key: str) -> str:
        """Return the text of an S3 object; "" where there is none."""
        return str(self.call("s3", "get_object", Bucket=bucket, Key=key).get("Body", ""))

    def security_rules(self, group: str) -> tuple[set[Any], set[Any]]:
        """Return ingress and egress rules of a security group: (protocol, ports, peer)."""
        asked = [{"Name": "group-name", "Values": [group]}]
        (found,) = self.call("ec2", "describe_security_groups", Filters=asked)["SecurityGroups"]
        members = found["GroupId"]
        return _rule_set(found["IpPermissions"], members), _rule_set(
            found["IpPermissionsEgress"], members
        )

    def role_permissions(self, role: str, cluster: str) -> dict[tuple[str, str], Any]:
        """Return what a role may do for a cluster: (action, resource) -> conditions."""
        asked = {"RoleName": role, "PolicyName": cluster}
        statements = self.call("iam", "get_role_policy", **asked)["PolicyDocument"]["Statement"]
        assert all(each["Effect"] == "Allow" for each in statements), statements
        return {
            (action, each["Resource"]): each.get("Condition", {})
            for each in statements
            for action in each["Action"]
        }

    def policy_names(self, role: str) -> list[str]:
        """Return the names of a role's inline and attached policies."""
        found = self.call("iam", "list_role_policies", RoleName=role)["PolicyNames"]
        attached = self.call("iam", "list_attached_role_policies", RoleName=role)
        return [*found, *(each["PolicyName"] for each in attached["AttachedPolicies"])]

    def running_instances(self) -> dict[str, Any]:
        """Return the running instances by id."""
        asked = [{"Name": "instance-state-name", "Values": ["running"]}]
        found = self.call("ec2", "describe_instances", Filters=asked)["Reservations"]
        return {each["InstanceId"]: each for one in found for each in one["Instances"]}


def parse_form_list(form: Mapping[str, str], name: str) -> list[dict[str, str]]:
    """Parse a list in an EC2 form: NAME.1.THIS, NAME.1.THAT, NAME.2.THIS."""
    found: dict[int, dict[str, str]] = {}
    for key, value in form.items():
        if key.startswith(f"{name}."):
            number, _, field = key.removeprefix(f"{name}.").partition(".")
            found.setdefault(int(number), {})[field] = value
    return [found[number] for number in sorted(found)]


def _rule_set(permissions: list[Any], members: str) -> set[Any]:
    return {
        (each["IpProtocol"], each.get("FromPort"), each.get("ToPort"), who)
        for each in permissions
        for who in (
            *(one["CidrIp"] for one in each["IpRanges"]),
            *(one["CidrIpv6"] for one in each.get("Ipv6Ranges", ())),
            *(
                "members" if one["GroupId"] == members else one["GroupId"]
                for one in each["UserIdGroupPairs"]
            ),
        )
    }
