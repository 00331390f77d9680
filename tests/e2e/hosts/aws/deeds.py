"""What a request to AWS does, as IAM counts it: actions, what they are done to, and conditions.

Source: Service Authorization Reference, "Amazon EC2" and "Amazon S3".
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

from .permissions import Deed

# Actions of S3 that are not named after what is asked for: (method, words of the query) of a bucket
# or of an object.
OF_BUCKET = {
    ("PUT", ""): "CreateBucket",
    ("GET", ""): "ListBucket",
    ("HEAD", ""): "ListBucket",
    ("GET", "uploads"): "ListBucketMultipartUploads",
    ("GET", "location"): "GetBucketLocation",
    ("POST", "delete"): "DeleteObject",
}
OF_OBJECT = {
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
MARKS = ("uploads", "uploadId", "location", "delete", "policy", "encryption", "publicAccessBlock")
SPOT = "spot.amazonaws.com"
Tags = Callable[[str], Mapping[str, str]]


def of_ec2(
    region: str, account: str, form: Mapping[str, str], role: Callable[[str], str], tags: Tags
) -> Iterator[Deed]:
    """What a form of EC2 does. role: the ARN of a profile's role. tags: of an instance, by id."""
    action, machines = form["Action"], f"arn:aws:ec2:{region}:{account}:instance/"
    if action == "RunInstances":
        yield Deed("ec2:RunInstances", "*", {"aws:RequestedRegion": region})
        if "TagSpecification.1.ResourceType" in form:
            yield Deed("ec2:CreateTags", f"{machines}*", {"ec2:CreateAction": action})
        if "IamInstanceProfile.Name" in form:
            handed = {"iam:PassedToService": "ec2.amazonaws.com"}
            yield Deed("iam:PassRole", role(form["IamInstanceProfile.Name"]), handed)
        if form.get("InstanceMarketOptions.MarketType") == "spot":  # the account's first
            made = f"arn:aws:iam::{account}:role/aws-service-role/{SPOT}/AWSServiceRoleForEC2Spot"
            yield Deed("iam:CreateServiceLinkedRole", made, {"iam:AWSServiceName": SPOT})
        return
    named = [
        value for key, value in form.items() if re.fullmatch(r"(InstanceId|ResourceId)\.\d+", key)
    ]
    if action.startswith("Describe") or not named:
        yield Deed(f"ec2:{action}")
        return
    for name in named:
        context = {f"aws:ResourceTag/{key}": value for key, value in tags(name).items()}
        yield Deed(f"ec2:{action}", f"{machines}{name}", context)


def of_s3(method: str, path: str, query: str, scheme: str) -> Deed:
    """What a request of S3 does. path: /BUCKET/KEY, as with an address instead of a name."""
    bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
    marks = urllib.parse.parse_qs(query, keep_blank_values=True)
    mark = next((each for each in MARKS if each in marks), "")
    context = {"aws:SecureTransport": str(scheme == "https").lower()}
    if not bucket:
        return Deed("s3:ListAllMyBuckets", "*", context)
    known, other = (OF_OBJECT, "Object") if key else (OF_BUCKET, "Bucket")
    action = known.get((method, mark), f"{method.capitalize()}{other}{mark.capitalize()}")
    place = f"{bucket}/{key}" if key else f"{bucket}/*" if action == "DeleteObject" else bucket
    return Deed(f"s3:{action}", f"arn:aws:s3:::{place}", context)
