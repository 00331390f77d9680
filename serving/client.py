"""Send texts to a running service over HTTP, and print its answers."""

import json
import ssl
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError

TIMEOUT_SECONDS = 60
LabelScores = Sequence[Mapping[str, Any]]  # [{"label": ..., "score": ...}], by falling score


class ServiceError(BerthaError):
    """A service that did not answer, or answered with an error."""


def service_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a service that listens at host:port."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{reached}]:{port}" if ":" in reached else f"{scheme}://{reached}:{port}"


def predict_text(address: str, text: str, certificate: Path | None = None) -> LabelScores:
    """Return the labels of one text, by falling score. Raises ServiceError.

    certificate: the one that the service has, for TLS.
    """
    request = urllib.request.Request(
        f"{address}/predict",
        data=json.dumps({"inputs": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with _direct(certificate).open(request, timeout=TIMEOUT_SECONDS) as response:
            labels: LabelScores = json.load(response)
    except urllib.error.HTTPError as error:
        raise ServiceError(
            f"{text!r}: {error.code} {error.read().decode(errors='replace')}"
        ) from None
    except OSError as error:
        raise ServiceError(f"{address} does not answer: {error}") from None
    return labels


def wait_until_healthy(address: str, certificate: Path | None = None) -> None:
    """Wait until the service answers. Raises ServiceError after a minute.

    certificate: the one that the service has, for TLS.
    """
    give_up, opener = time.monotonic() + TIMEOUT_SECONDS, _direct(certificate)
    while True:
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > give_up:
                raise ServiceError(f"{address} does not answer: {error}") from None
            time.sleep(0.1)


def _direct(certificate: Path | None) -> urllib.request.OpenerDirector:
    """Return what asks a service of one's own, whatever proxy the environment names.

    certificate: alone trusted, under whatever name, for it may be made for the name outside.
    """
    context = ssl.create_default_context(cafile=certificate)
    if certificate is not None:
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


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
