"""Clients that know HTTP alone: curl, requests, httpx, Node's fetch."""

import gzip
import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest
import requests

from serving.client import predict_text
from tests.integration.clients.table import client_call
from tests.support.served import TEXTS, Served, ranked, same

BODY = json.dumps({"inputs": TEXTS[0]})


def curl(served: Served, *arguments: str, stdin: bytes = b"") -> Any:
    done = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "--noproxy", "*", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@client_call("curl", "-d JSON, -d @-")
def curl_json(served: Served) -> None:
    expected = ranked(served, "sentiment", TEXTS[0])
    same(curl(served, served.url("/predict"), "-d", BODY), expected)
    same(curl(served, served.url("/predict"), "-d", "@-", stdin=BODY.encode()), expected)
    same(curl(served, served.url("/predict/"), "--json", BODY), expected)


@client_call("curl", "--data-binary @-, gzip")
def curl_gzip(served: Served) -> None:
    packed = gzip.compress(BODY.encode())
    arguments = ("-H", "content-encoding: gzip", "--compressed", "--data-binary", "@-")
    found = curl(served, served.url("/predict"), *arguments, stdin=packed)
    same(found, ranked(served, "sentiment", TEXTS[0]))


@client_call("curl", "-T file, -F data=..., chunked")
def curl_files(served: Served) -> None:
    expected, path = dict(ranked(served, "sentiment", TEXTS[0])), "/predictions/sentiment"
    text = TEXTS[0].encode()
    chunked = ("-H", "transfer-encoding: chunked", "--data-binary", "@-")
    for found in (
        curl(served, served.url(path), "-T", "-", stdin=text),
        curl(served, served.url(path), "-F", "data=<-", stdin=text),
        curl(served, served.url(path), *chunked, stdin=text),
    ):
        assert found == pytest.approx(expected, abs=1e-5)


@client_call("requests", "Session.post(json=...), kept alive")
def with_requests(served: Served) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for text in TEXTS:
            found = session.post(served.url("/predict"), json={"inputs": text}, timeout=30)
            same(found.json(), ranked(served, "sentiment", text))


@client_call("httpx", "Client.post(json=...), kept alive")
def with_httpx(served: Served) -> None:
    with httpx.Client(base_url=served.url(), trust_env=False) as client:
        ports = set()
        for text in TEXTS:
            found = client.post("/predict", json={"inputs": text})
            ports.add(found.extensions["network_stream"].get_extra_info("client_addr"))
            same(found.json(), ranked(served, "sentiment", text))
        assert len(ports) == 1, "each request had a connection of its own"


@client_call("Python's urllib", "urlopen(Request(...))")
def with_urllib(served: Served) -> None:
    same(served.post("/predict", {"inputs": TEXTS[0]}), ranked(served, "sentiment", TEXTS[0]))


_FETCH = """
const [url, text] = process.argv.slice(1);
const init = {method: "POST", headers: {"content-type": "application/json"}};
const answers = [];
for (const inputs of [text, [text]]) {
  const response = await fetch(url, {...init, body: JSON.stringify({inputs})});
  if (!response.ok) throw new Error(await response.text());
  answers.push(await response.json());
}
console.log(JSON.stringify(answers));
"""


@client_call("Node", "fetch")
def with_node(served: Served) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    command = [node, "--input-type=module", "-e", _FETCH, served.url("/predict"), TEXTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    one, (several,) = json.loads(done.stdout)
    expected = ranked(served, "sentiment", TEXTS[0])
    same(one, expected)
    same(several, expected)


@client_call("bertha", "serve --ask")
def with_our_own(served: Served) -> None:
    same(predict_text(served.url(), TEXTS[0]), ranked(served, "sentiment", TEXTS[0]))
