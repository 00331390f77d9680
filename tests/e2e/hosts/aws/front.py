"""Stands before moto: lets through what IAM would, and answers what moto lacks.

moto enforces no permission that has a condition, takes every bucket policy for a refusal, knows no
placement groups and forgets kinds of network interfaces. So permissions are judged here, bucket
policies and placement groups are kept here, and what instances were asked for is written down.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

from werkzeug.wrappers import Request, Response

from . import fleet
from .deeds import of_ec2, of_s3
from .metadata import Credentials
from .permissions import Deed, is_allowed, is_denied

SIGNED = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")


class Front:
    """An application of WSGI around another. launches, refused: what was done here, in order."""

    def __init__(self, moto: Any, credentials: Credentials) -> None:
        self._moto = moto
        self._credentials = credentials
        self._policies: dict[str, str] = {}  # of buckets
        self._groups: dict[str, str] = {}  # placement groups and their strategies
        self.launches: list[Mapping[str, Any]] = []
        self.refused: list[Mapping[str, str]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data()
        environ |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with fleet.LOCK:
            answer = self._answer(request, body.decode("utf-8", "replace"))
        return answer(environ, start)

    def _answer(self, request: Request, body: str) -> Response:
        signed = SIGNED.search(request.headers.get("Authorization", ""))
        if signed is None:
            return _s3_error(403, "AccessDenied", "not signed")
        key, region, service = signed.groups()
        form = dict(urllib.parse.parse_qsl(body)) if service in ("ec2", "sts", "iam") else {}
        role = self._credentials.role(key)
        for deed in self._deeds(request, region, service, form):
            if not self._may(role, deed):
                self.refused.append({"role": role or "", "did": deed.action, "to": deed.resource})
                if service == "ec2":
                    return _ec2_error("UnauthorizedOperation", deed.action)
                return _s3_error(403, "AccessDenied", f"{deed.action} {deed.resource}")
        if service == "s3" and "policy" in request.args:
            return self._of_policy(request, body)
        if "PlacementGroup" in form.get("Action", ""):
            return self._of_groups(form)
        if form.get("Action") == "RunInstances":
            return self._run_instances(request, form)
        return Response.from_app(self._moto, request.environ)

    def _deeds(
        self, request: Request, region: str, service: str, form: Mapping[str, str]
    ) -> Iterator[Deed]:
        if service == "s3":
            query, scheme = request.query_string.decode(), request.scheme
            yield of_s3(request.method, request.path, query, scheme)
        elif service == "ec2":
            tags = {each.name: each.tags for each in fleet.instances()}
            role = fleet.role_of_profile
            yield from of_ec2(region, fleet.ACCOUNT, form, role, lambda name: tags.get(name, {}))
        else:
            named = request.headers.get("X-Amz-Target", "").split(".")[-1]
            action = form.get("Action", named)
            if action != "GetCallerIdentity":  # which nobody can be denied
                yield Deed(f"{service}:{action}")

    def _may(self, role: str | None, deed: Deed) -> bool:
        """Whether a role, or the account's owner (None), may; a bucket's policy binds both."""
        bucket = deed.resource.removeprefix("arn:aws:s3:::").split("/")[0]
        policy = json.loads(self._policies.get(bucket, '{"Statement": []}'))["Statement"]
        if is_denied(policy, deed):
            return False
        return role is None or is_allowed(fleet.statements(role), deed)

    def _of_policy(self, request: Request, body: str) -> Response:
        bucket = request.path.strip("/")
        if request.method == "PUT":
            self._policies[bucket] = body
            return Response(status=204)
        kept = self._policies.get(bucket)
        return Response(kept) if kept else _s3_error(404, "NoSuchBucketPolicy", bucket)

    def _of_groups(self, form: Mapping[str, str]) -> Response:
        if form["Action"] == "CreatePlacementGroup":
            self._groups[form["GroupName"]] = form["Strategy"]
        items = "".join(
            f"<item><groupName>{name}</groupName><strategy>{strategy}</strategy></item>"
            for name, strategy in self._groups.items()
        )
        return Response(
            f"<r><placementGroupSet>{items}</placementGroupSet></r>", content_type="text/xml"
        )

    def _run_instances(self, request: Request, form: Mapping[str, str]) -> Response:
        group = form.get("Placement.GroupName")
        if group is not None and group not in self._groups:
            return _ec2_error("InvalidPlacementGroup.Unknown", group)
        answer = Response.from_app(self._moto, request.environ)
        found = re.findall("<instanceId>([^<]+)</instanceId>", answer.get_data(as_text=True))
        self.launches.append({"instances": found, "asked": form})
        return answer


def _ec2_error(code: str, told: str) -> Response:
    error = f"<Error><Code>{code}</Code><Message>{told}</Message></Error>"
    body = f"<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>"
    return Response(body, 403 if code.startswith("Unauthorized") else 400, content_type="text/xml")


def _s3_error(status: int, code: str, told: str) -> Response:
    body = f"<Error><Code>{code}</Code><Message>{told}</Message></Error>"
    return Response(body, status, content_type="application/xml")
