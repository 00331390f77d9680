"""A gateway before moto: enforces IAM permissions, and implements what moto lacks.

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
from .actions import ec2_actions, s3_action
from .metadata import Credentials
from .permissions import ApiAction, is_allowed, is_denied

SIGNED = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")


class AwsGateway:
    """A WSGI middleware. launches, refused: what was requested, in order."""

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
            answer = self._handle_request(request, body.decode("utf-8", "replace"))
        return answer(environ, start)

    def _handle_request(self, request: Request, body: str) -> Response:
        signed = SIGNED.search(request.headers.get("Authorization", ""))
        if signed is None:
            return _s3_error(403, "AccessDenied", "not signed")
        key, region, service = signed.groups()
        form = dict(urllib.parse.parse_qsl(body)) if service in ("ec2", "sts", "iam") else {}
        role = self._credentials.role_of_key(key)
        for api_action in self._request_actions(request, region, service, form):
            if not self._is_permitted(role, api_action):
                self.refused.append(
                    {"role": role or "", "did": api_action.action, "to": api_action.resource}
                )
                if service == "ec2":
                    return _ec2_error("UnauthorizedOperation", api_action.action)
                return _s3_error(403, "AccessDenied", f"{api_action.action} {api_action.resource}")
        if service == "s3" and "policy" in request.args:
            return self._handle_bucket_policy(request, body)
        if "PlacementGroup" in form.get("Action", ""):
            return self._handle_placement_groups(form)
        if form.get("Action") == "RunInstances":
            return self._run_instances(request, form)
        return Response.from_app(self._moto, request.environ)

    def _request_actions(
        self, request: Request, region: str, service: str, form: Mapping[str, str]
    ) -> Iterator[ApiAction]:
        if service == "s3":
            query, scheme = request.query_string.decode(), request.scheme
            yield s3_action(request.method, request.path, query, scheme)
        elif service == "ec2":
            tags = {each.name: each.tags for each in fleet.list_instances()}
            role = fleet.role_of_profile
            yield from ec2_actions(
                region, fleet.ACCOUNT, form, role, lambda name: tags.get(name, {})
            )
        else:
            named = request.headers.get("X-Amz-Target", "").split(".")[-1]
            action = form.get("Action", named)
            if action != "GetCallerIdentity":  # which nobody can be denied
                yield ApiAction(f"{service}:{action}")

    def _is_permitted(self, role: str | None, api_action: ApiAction) -> bool:
        """Whether a role, or the account's owner (None), may do it; a bucket policy binds both."""
        bucket = api_action.resource.removeprefix("arn:aws:s3:::").split("/")[0]
        policy = json.loads(self._policies.get(bucket, '{"Statement": []}'))["Statement"]
        if is_denied(policy, api_action):
            return False
        return role is None or is_allowed(fleet.role_statements(role), api_action)

    def _handle_bucket_policy(self, request: Request, body: str) -> Response:
        bucket = request.path.strip("/")
        if request.method == "PUT":
            self._policies[bucket] = body
            return Response(status=204)
        kept = self._policies.get(bucket)
        return Response(kept) if kept else _s3_error(404, "NoSuchBucketPolicy", bucket)

    def _handle_placement_groups(self, form: Mapping[str, str]) -> Response:
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
