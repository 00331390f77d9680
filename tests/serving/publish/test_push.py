"""Publishing on a hub that is faked at the network: what arrives there, and what goes wrong."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.publish.push import PushError, push_bundle
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import parse_card, read_card

httpx = pytest.importorskip("httpx2")
hub = pytest.importorskip("huggingface_hub")


class FakeHub:
    """Answers the requests of an upload; `files` holds what a commit brought."""

    def __init__(self) -> None:
        self.status = 200
        self.created: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}

    def answer(self, request: Any) -> Any:
        self.tokens.add(request.headers.get("authorization"))
        if self.status == 0:
            raise httpx.ConnectError("no route to the hub", request=request)
        if self.status != 200:
            return httpx.Response(self.status, json={"error": "no"}, request=request)
        body = request.content
        return httpx.Response(200, json=self._answer_path(request.url.path, body), request=request)

    def _answer_path(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"https://huggingface.co/{self.name}", "id": "1", "name": self.name}
        if "/preupload/" in path:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": name, "oid": None, **modes} for name in names]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            where = f"https://huggingface.co/{self.name}/commit/1"
            return {"success": True, "commitUrl": where, "commitOid": "1", "hookOutput": ""}
        return {"errors": [], "warnings": []}

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.created.get("organization"), self.created["name"])))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(fake.answer)))
    yield fake
    hub.set_client_factory(hub.utils._http.default_client_factory)


@pytest.fixture
def bundle(tiny_bert: Path, tmp_path: Path) -> Path:
    path = write_tiny_bundle(
        tmp_path / "tickets" / "bundle", tiny_bert, source=f"{tmp_path}/secret/tickets.csv"
    )
    card = json.loads((path / "bundle.json").read_text())
    private = {"examples": ["Dear Ada"], "verdict": {"next": f"bertha serve {tmp_path}/tickets"}}
    (path / "bundle.json").write_text(json.dumps(card | private))
    return path


def test_what_arrives_is_a_bundle_and_a_model_of_transformers(
    fake_hub: FakeHub, bundle: Path, tmp_path: Path
) -> None:
    url = push_bundle(bundle, "acme/tickets", private=True)
    assert url == "https://huggingface.co/acme/tickets"
    assert fake_hub.created["visibility"] == "private"
    assert fake_hub.tokens == {"Bearer hf_secret"}
    assert fake_hub.files.keys() >= {"README.md", "bundle.json", "config.json"}
    target = tmp_path / "downloaded"
    for name, data in fake_hub.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    assert read_card(target).labels == ("negative", "positive")
    assert '"acme/tickets"' in (target / "README.md").read_text()


def test_texts_and_directories_stay_here(fake_hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, "acme/tickets")
    for data in fake_hub.files.values():
        assert b"Dear Ada" not in data
        assert str(tmp_path).encode() not in data
    card = parse_card(fake_hub.files["bundle.json"], "the hub")
    assert card.recipe["data"]["source"] == "tickets.csv"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"^acme/tickets: the hub refuses \(401\): .* set HF_TOKEN$"),
        (403, r"refuses \(403\)"),
        (503, r"the hub answers 503"),
        (0, r"the hub cannot be reached .*no route to the hub.*bertha export"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    status: int, said: str, fake_hub: FakeHub, bundle: Path
) -> None:
    fake_hub.status = status
    with pytest.raises(PushError, match=said) as caught:
        push_bundle(bundle, "acme/tickets")
    assert "\n" not in str(caught.value)


def test_offline_says_so(bundle: Path) -> None:
    with pytest.raises(PushError, match=r"cannot be reached .*offline mode is enabled"):
        push_bundle(bundle, "acme/tickets")


def test_a_name_that_cannot_be_one(fake_hub: FakeHub, bundle: Path) -> None:
    with pytest.raises(PushError, match="no name of a model"):
        push_bundle(bundle, "acme/ti ckets/x")
