"""Send texts to a running service over HTTP, and print its answers."""

import json
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.errors import BerthaError

TIMEOUT_SECONDS = 60
LabelScores = Sequence[Mapping[str, Any]]  # [{"label": ..., "score": ...}], by falling score

# Whatever proxy the environment names, a service of one's own is asked directly.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServiceError(BerthaError):
    """A service that did not answer, or answered with an error."""


def service_url(host: str, port: int) -> str:
    """Return the URL of a service that listens at host:port."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def predict_text(address: str, text: str) -> LabelScores:
    """Return the labels of one text, by falling score. Raises ServiceError."""
    request = urllib.request.Request(
        f"{address}/predict",
        data=json.dumps({"inputs": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with _direct.open(request, timeout=TIMEOUT_SECONDS) as response:
            labels: LabelScores = json.load(response)
    except urllib.error.HTTPError as error:
        raise ServiceError(
            f"{text!r}: {error.code} {error.read().decode(errors='replace')}"
        ) from None
    except OSError as error:
        raise ServiceError(f"{address} does not answer: {error}") from None
    return labels


def wait_until_healthy(address: str) -> None:
    """Wait until the service answers. Raises ServiceError after a minute."""
    give_up = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            with _direct.open(f"{address}/health", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > give_up:
                raise ServiceError(f"{address} does not answer: {error}") from None
            time.sleep(0.1)


def format_labels(
    labels: LabelScores, task: str, text: str, chosen: Collection[str] | None = None
) -> str:
    """Format the answer to `text` in one line.

    chosen: the labels that are the answer; default: the likeliest, of a multi-label model all from
    one half up.
    """
    shown = json.dumps(textwrap.shorten(text, 72, placeholder=" …"), ensure_ascii=False)
    if task == "regression":
        return f"{labels[0]['score']:.6g}  {shown}"
    if chosen is None:
        likely = [each["label"] for each in labels if each["score"] >= 0.5]
        chosen = likely if task == "multi-label" else [labels[0]["label"]]
    named = ", ".join(_format_share(each) for each in labels if each["label"] in chosen)
    return f"{named or f'none (likeliest: {_format_share(labels[0])})'}  {shown}"


def _format_share(label: Mapping[str, Any]) -> str:
    return f"{label['label']} {label['score']:.1%}"
