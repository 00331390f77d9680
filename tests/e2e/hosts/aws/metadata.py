"""The metadata service of instances, at 169.254.169.254: IMDSv2 only where the instance says so.

Who asks is known by the address that he asks from. Credentials are those of the role in the
instance's own profile; a machine without one gets none.
Source: EC2 User Guide, "Use the Instance Metadata Service to access instance metadata".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .fleet import Instance, instances

TOKEN, SECONDS = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"


class Credentials:
    """Keys that were handed out, a role one."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def key(self, role: str) -> str:
        """A role's key."""
        return self._of.setdefault(role, f"ASIA{secrets.token_hex(8).upper()}")

    def role(self, key: str) -> str | None:
        """Whose key it is; None for one that was not handed out here."""
        return next((role for role, known in self._of.items() if known == key), None)


class Metadata(ThreadingHTTPServer):
    """The service. notices: a file with notices of spot by instance, as EC2 words them."""

    daemon_threads = True

    def __init__(self, address: str, credentials: Credentials, notices: Path) -> None:
        super().__init__((address, 80), _Answers)
        self.credentials = credentials
        self.notices = notices
        self.tokens: dict[str, str] = {}  # whose each is

    def values(self, asking: Instance) -> Mapping[str, str]:
        """All that an instance may read, by path."""
        told = {
            "meta-data/instance-id": asking.name,
            "meta-data/instance-type": asking.kind,
            "meta-data/local-ipv4": asking.address,
            "meta-data/placement/region": asking.region,
            "meta-data/placement/availability-zone": asking.zone,
        }
        notice = json.loads(self.notices.read_text()).get(asking.name)
        if notice is not None:
            told["meta-data/spot/instance-action"] = json.dumps(notice)
        if asking.role is not None:
            roles = "meta-data/iam/security-credentials"
            told |= {roles: asking.role, f"{roles}/{asking.role}": self._key(asking.role)}
        return told

    def _key(self, role: str) -> str:
        now = datetime.now(UTC)
        return json.dumps(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "LastUpdated": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                "Expiration": f"{now + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}",
                "AccessKeyId": self.credentials.key(role),
                "SecretAccessKey": "of-a-role",
                "Token": f"session-of-{role}",
            }
        )


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        asking, lives = self._asking(), self.headers.get(SECONDS, "")
        if asking is None or self.path != "/latest/api/token":
            self._say(404)
        elif "X-Forwarded-For" in self.headers:
            self._say(403)
        elif not (lives.isdigit() and 1 <= int(lives) <= 21600):
            self._say(400)
        else:
            token = secrets.token_urlsafe()
            self.server.tokens[token] = asking.name
            self._say(200, token, {SECONDS: lives})

    def do_GET(self) -> None:
        asking = self._asking()
        if asking is None:
            self._say(404)
            return
        given = self.headers.get(TOKEN)
        mine = given is not None and self.server.tokens.get(given) == asking.name
        if not mine and (asking.token_required or given is not None):
            self._say(401)
            return
        # Some libraries leave out the slash at the end of a folder, and EC2 takes both.
        path = self.path.partition("?")[0].rstrip("/").removeprefix("/latest/")
        found = self.server.values(asking).get(path)
        self._say(404 if found is None else 200, found or "")

    def _asking(self) -> Instance | None:
        """The running instance that asks."""
        running = (each for each in instances() if each.state == "running")
        return next((each for each in running if each.address == self.client_address[0]), None)

    def _say(self, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass
