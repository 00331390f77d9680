"""Instances and roles of moto's account, as values; one request at a time may change them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends

LOCK = threading.RLock()  # held by whoever reads or changes moto's account


@dataclass(frozen=True)
class Instance:
    """An instance. role: of its profile. key: the public half. token_required: IMDSv2 alone."""

    name: str
    kind: str
    region: str
    zone: str
    state: str
    spot: bool
    address: str
    public: str | None
    key: str
    role: str | None
    token_required: bool
    tags: Mapping[str, str]


def list_instances() -> list[Instance]:
    """Return all instances that were ever launched."""
    with LOCK:
        regions = ec2_backends[ACCOUNT]
        return [
            _describe_instance(region, regions[region], each)
            for region in list(regions)
            for each in regions[region].all_instances()
        ]


def _describe_instance(region: str, backend: Any, each: Any) -> Instance:
    profile = backend.iam_instance_profile_associations.get(each.id)
    roles = profile.iam_instance_profile.roles if profile else []
    pair = backend.key_pairs.get(each.key_name)
    return Instance(
        name=each.id,
        kind=each.instance_type,
        region=region,
        zone=each.availability_zone,
        state=each.state,
        spot=each.lifecycle == "spot",
        address=each.private_ip_address,
        public=each.public_ip_address,
        key=pair.public_key.strip() if pair else "",
        role=roles[0].name if roles else None,
        token_required=each.metadata_options.http_tokens == "required",
        tags={tag["key"]: tag["value"] for tag in each.get_tags()},
    )


def role_of_profile(name: str) -> str:
    """Return the ARN of the role in an instance profile."""
    with LOCK:
        return str(iam_backends[ACCOUNT]["aws"].get_instance_profile(name).roles[0].arn)


def role_statements(role: str) -> list[Mapping[str, Any]]:
    """Return the statements of a role's policies."""
    with LOCK:
        documents = iam_backends[ACCOUNT]["aws"].get_role(role).policies.values()
        return [each for document in documents for each in json.loads(document)["Statement"]]
