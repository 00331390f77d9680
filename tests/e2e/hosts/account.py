"""An account of AWS in a region, asked from a host: what it holds, and what a host's role may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e.hosts.hosts import Host

ASK = """
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
class Account:
    """As `host` sees it, which has credentials. endpoint: another than the host is set up with."""

    host: Host
    region: str
    endpoint: str | None = None

    def asks(self, service: str, operation: str, **arguments: Any) -> Any:
        """The answer; {"refused": the code} where AWS gives an error."""
        asked = json.dumps([service, self.region, operation, arguments, self.endpoint])
        done = self.host.run("python", "-c", ASK, given=asked)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def text(self, bucket: str, key: str) -> str:
        """An object of S3; "" where there is none."""
        return str(self.asks("s3", "get_object", Bucket=bucket, Key=key).get("Body", ""))

    def rules(self, group: str) -> tuple[set[Any], set[Any]]:
        """What a security group lets in and out: protocol, ports, from or to whom."""
        asked = [{"Name": "group-name", "Values": [group]}]
        (found,) = self.asks("ec2", "describe_security_groups", Filters=asked)["SecurityGroups"]
        members = found["GroupId"]
        return _rules(found["IpPermissions"], members), _rules(
            found["IpPermissionsEgress"], members
        )

    def grants(self, role: str, cluster: str) -> dict[tuple[str, str], Any]:
        """What a role may for a cluster: the conditions of each action on each resource."""
        asked = {"RoleName": role, "PolicyName": cluster}
        statements = self.asks("iam", "get_role_policy", **asked)["PolicyDocument"]["Statement"]
        assert all(each["Effect"] == "Allow" for each in statements), statements
        return {
            (action, each["Resource"]): each.get("Condition", {})
            for each in statements
            for action in each["Action"]
        }

    def policies(self, role: str) -> list[str]:
        """Names of all that a role was given."""
        found = self.asks("iam", "list_role_policies", RoleName=role)["PolicyNames"]
        attached = self.asks("iam", "list_attached_role_policies", RoleName=role)
        return [*found, *(each["PolicyName"] for each in attached["AttachedPolicies"])]

    def machines(self) -> dict[str, Any]:
        """Instances that run, by name."""
        asked = [{"Name": "instance-state-name", "Values": ["running"]}]
        found = self.asks("ec2", "describe_instances", Filters=asked)["Reservations"]
        return {each["InstanceId"]: each for one in found for each in one["Instances"]}


def numbered(form: Mapping[str, str], name: str) -> list[dict[str, str]]:
    """A list in a form of EC2: NAME.1.THIS, NAME.1.THAT, NAME.2.THIS."""
    found: dict[int, dict[str, str]] = {}
    for key, value in form.items():
        if key.startswith(f"{name}."):
            number, _, field = key.removeprefix(f"{name}.").partition(".")
            found.setdefault(int(number), {})[field] = value
    return [found[number] for number in sorted(found)]


def _rules(permissions: list[Any], members: str) -> set[Any]:
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
