"""AWS on this machine: moto's server, and in small what moto lacks (prices, quotas, placement).

What moto lacks is answered in the services' own protocols, from the tables here; requests
are recorded.
"""

import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PRICES = {"g6e.12xlarge": 10.5, "p5.48xlarge": 55.0, "m7i.2xlarge": 0.4}
QUOTAS = {
    "Running On-Demand G and VT instances": 192.0,
    "All G and VT Spot Instance Requests": 96.0,
    "Running On-Demand P instances": 0.0,
    "All P5 Spot Instance Requests": 384.0,
    "All P4, P3 and P2 Spot Instance Requests": 64.0,
    "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances": 640.0,
}


class FakeServices(ThreadingHTTPServer):
    """The services that moto lacks. requests: (operation, arguments), in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.placement_groups: list[str] = []
        self.refused = ""  # a code that every call is refused with

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServices

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        target = self.headers.get("X-Amz-Target")
        if target is None:
            asked = dict(urllib.parse.parse_qsl(body))
            self._send(200, "text/xml", self._handle_ec2(asked["Action"], asked))
            return
        asked, operation = json.loads(body), target.split(".")[1]
        self.server.requests.append((operation, asked))
        if self.server.refused:
            refusal = {"__type": self.server.refused, "message": "no"}
            self._send(400, "application/x-amz-json-1.1", json.dumps(refusal))
            return
        answers = {"GetProducts": self._get_products, "ListServiceQuotas": self._list_quotas}
        said = json.dumps(answers[operation](asked))
        self._send(200, "application/x-amz-json-1.1", said)

    def _get_products(self, asked: Any) -> Any:
        wanted = {each["Field"]: each["Value"] for each in asked["Filters"]}
        price = PRICES.get(wanted["instanceType"])
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": str(price)}}
        free = {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}
        terms = {"OnDemand": {"a": {"priceDimensions": {"b": dimension, "c": free}}}}
        return {"PriceList": [] if price is None else [json.dumps({"terms": terms})]}

    def _list_quotas(self, asked: Any) -> Any:
        return {"Quotas": [{"QuotaName": name, "Value": v} for name, v in QUOTAS.items()]}

    def _handle_ec2(self, action: str, asked: dict[str, str]) -> str:
        self.server.requests.append((action, asked))
        if action == "CreatePlacementGroup":
            self.server.placement_groups.append(asked["GroupName"])
        items = "".join(
            f"<item><groupName>{name}</groupName></item>" for name in self.server.placement_groups
        )
        return f"<r><placementGroupSet>{items}</placementGroupSet></r>"

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def emulated_aws(home: str) -> Iterator[FakeServices]:
    """AWS for this process and what it starts. home: where keys are kept meanwhile."""
    pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    lacking = FakeServices()
    threading.Thread(target=lacking.serve_forever, daemon=True).start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ENDPOINT_URL_PRICING", lacking.url)
        environment.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", lacking.url)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-must-not-be-seen")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("HOME", home)
        clear_ray_caches()
        yield lacking
        clear_ray_caches()
    lacking.shutdown()
    lacking.server_close()
    moto.stop()


def clear_ray_caches() -> None:
    """Ray keeps its connections to AWS for as long as a process lives: also to an earlier moto."""
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    client_cache.cache_clear()
    resource_cache.cache_clear()


def reset_account(url: str) -> None:
    """An account with nothing in it."""
    request = urllib.request.Request(f"{url}/moto-api/reset", method="POST")
    urllib.request.urlopen(request, timeout=30).read()
