"""IAM actions of a request to AWS: the action, its resource and its condition keys.

Source: Service Authorization Reference, "Amazon EC2" and "Amazon S3".
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

from .permissions import ApiAction

# Actions of S3 that are not named after what is asked for: (method, words of the query) of a bucket
# or of an object.
BUCKET_ACTIONS = {
    ("PUT", ""): "CreateBucket",
    ("GET", ""): "ListBucket",
    ("HEAD", ""): "ListBucket",
    ("GET", "uploads"): "ListBucketMultipartUploads",
    ("GET", "location"): "GetBucketLocation",
    ("POST", "delete"): "DeleteObject",
}
OBJECT_ACTIONS = {
    ("GET", ""): "GetObject",
    ("HEAD", ""): "GetObject",
    ("PUT", ""): "PutObject",
    ("DELETE", ""): "DeleteObject",
    ("POST", "uploads"): "PutObject",
    ("PUT", "uploadId"): "PutObject",
    ("POST", "uploadId"): "PutObject",
    ("GET", "uploadId"): "ListMultipartUploadParts",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}
SUBRESOURCES = (
    "uploads",
    "uploadId",
    "location",
    "delete",
    "policy",
    "encryption",
    "publicAccessBlock",
)
SPOT = "spot.amazonaws.com"
Tags = Callable[[str], Mapping[str, str]]


def ec2_actions(
    region: str, account: str, form: Mapping[str, str], role: Callable[[str], str], tags: Tags
) -> Iterator[ApiAction]:
    """Yield the actions of an EC2 form. role: ARN of a profile's role. tags: by instance id."""
    action, machines = form["Action"], f"arn:aws:ec2:{region}:{account}:instance/"
    if action == "RunInstances":
        yield ApiAction("ec2:RunInstances", "*", {"aws:RequestedRegion": region})
        if "TagSpecification.1.ResourceType" in form:
            yield ApiAction("ec2:CreateTags", f"{machines}*", {"ec2:CreateAction": action})
        if "IamInstanceProfile.Name" in form:
            handed = {"iam:PassedToService": "ec2.amazonaws.com"}
            yield ApiAction("iam:PassRole", role(form["IamInstanceProfile.Name"]), handed)
        if form.get("InstanceMarketOptions.MarketType") == "spot":  # the account's first
            made = f"arn:aws:iam::{account}:role/aws-service-role/{SPOT}/AWSServiceRoleForEC2Spot"
            yield ApiAction("iam:CreateServiceLinkedRole", made, {"iam:AWSServiceName": SPOT})
        return
    named = [
        value for key, value in form.items() if re.fullmatch(r"(InstanceId|ResourceId)\.\d+", key)
    ]
    if action.startswith("Describe") or not named:
        yield ApiAction(f"ec2:{action}")
        return
    for name in named:
        context = {f"aws:ResourceTag/{key}": value for key, value in tags(name).items()}
        yield ApiAction(f"ec2:{action}", f"{machines}{name}", context)


def s3_action(method: str, path: str, query: str, scheme: str) -> ApiAction:
    """Return the action of an S3 request. path: /BUCKET/KEY (path-style addressing)."""
    bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
    marks = urllib.parse.parse_qs(query, keep_blank_values=True)
    mark = next((each for each in SUBRESOURCES if each in marks), "")
    context = {"aws:SecureTransport": str(scheme == "https").lower()}
    if not bucket:
        return ApiAction("s3:ListAllMyBuckets", "*", context)
    known, other = (OBJECT_ACTIONS, "Object") if key else (BUCKET_ACTIONS, "Bucket")
    action = known.get((method, mark), f"{method.capitalize()}{other}{mark.capitalize()}")
    place = f"{bucket}/{key}" if key else f"{bucket}/*" if action == "DeleteObject" else bucket
    return ApiAction(f"s3:{action}", f"arn:aws:s3:::{place}", context)
