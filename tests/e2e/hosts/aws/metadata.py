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

from .fleet import Instance, list_instances

TOKEN, SECONDS = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"


class Credentials:
    """Access keys, one per role."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def key_of_role(self, role: str) -> str:
        """Return a role's key."""
        return self._keys.setdefault(role, f"ASIA{secrets.token_hex(8).upper()}")

    def role_of_key(self, key: str) -> str | None:
        """Return the role that a key belongs to, if any."""
        return next((role for role, known in self._keys.items() if known == key), None)


class MetadataServer(ThreadingHTTPServer):
    """The service. notices: a file with notices of spot by instance, as EC2 words them."""

    daemon_threads = True

    def __init__(self, address: str, credentials: Credentials, notices: Path) -> None:
        super().__init__((address, 80), _Handler)
        self.credentials = credentials
        self.notices = notices
        self.tokens: dict[str, str] = {}  # whose each is

    def readable_values(self, asking: Instance) -> Mapping[str, str]:
        """Return everything that an instance may read, by path."""
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
            told |= {
                roles: asking.role,
                f"{roles}/{asking.role}": self._credentials_json(asking.role),
            }
        return told

    def _credentials_json(self, role: str) -> str:
        now = datetime.now(UTC)
        return json.dumps(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "LastUpdated": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                "Expiration": f"{now + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}",
                "AccessKeyId": self.credentials.key_of_role(role),
                "SecretAccessKey": "of-a-role",
                "Token": f"session-of-{role}",
            }
        )


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        asking, lives = self._calling_instance(), self.headers.get(SECONDS, "")
        if asking is None or self.path != "/latest/api/token":
            self._send(404)
        elif "X-Forwarded-For" in self.headers:
            self._send(403)
        elif not (lives.isdigit() and 1 <= int(lives) <= 21600):
            self._send(400)
        else:
            token = secrets.token_urlsafe()
            self.server.tokens[token] = asking.name
            self._send(200, token, {SECONDS: lives})

    def do_GET(self) -> None:
        asking = self._calling_instance()
        if asking is None:
            self._send(404)
            return
        given = self.headers.get(TOKEN)
        mine = given is not None and self.server.tokens.get(given) == asking.name
        if not mine and (asking.token_required or given is not None):
            self._send(401)
            return
        # Some libraries leave out the slash at the end of a folder, and EC2 takes both.
        path = self.path.partition("?")[0].rstrip("/").removeprefix("/latest/")
        found = self.server.readable_values(asking).get(path)
        self._send(404 if found is None else 200, found or "")

    def _calling_instance(self) -> Instance | None:
        """The running instance that asks."""
        running = (each for each in list_instances() if each.state == "running")
        return next((each for each in running if each.address == self.client_address[0]), None)

    def _send(self, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass
