"""A table of clients, their calls, and whether they work; `docs/clients.md` holds what ran.

A call is a function that compares what its client hears with what the engine answers. It returns
nothing, or what the server says where it refuses it, or "no: ..." where the client gives up.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.support.paths import ROOT
from tests.support.served import Served

PAGE = ROOT / "docs" / "clients.md"
COMMAND = "python -m tests.integration.clients"

_HEAD = f"""<!-- Written by {COMMAND}. Edit tests/integration/clients, not this page. -->

# Clients

Clients of other servers as their packages are, and the calls of theirs that were made to a server
of tiny models. A call works where its answer is that of the engine; otherwise the table says what
the client hears. The versions are those of the extra `dev`.

| Client | Call | Works |
|---|---|---|
"""
_TAIL = """
A test makes each call and fails where it differs from this table, which
`{command}` writes again.

## Left out

| Client | Why |
|---|---|
{left_out}
"""
# Clients that no call here is of, and why.
LEFT_OUT = {
    "`infinity-client`": "wants an older `httpx`; its calls are made with `httpx` above",
    "`kserve`": "wants an older pandas and Kubernetes' client; its REST calls are V1 and V2",
    "`langchain-huggingface`": "wants an older `huggingface-hub`; it calls `InferenceClient`",
    "`mlflow` itself": "100 MB; `mlflow-skinny` has the same client",
    "`google-cloud-aiplatform`": "100 MB; `instances` at /invocations are its requests",
}


class ClientCall(NamedTuple):
    """A call of a client. run: makes it."""

    client: str
    call: str
    run: Callable[[Served], str | None]

    @property
    def key(self) -> tuple[str, str]:
        """What names it in the table."""
        return self.client, self.call


CALLS: list[ClientCall] = []


def client_call(client: str, call: str) -> Callable[[Callable[[Served], str | None]], None]:
    """Add a function to the table."""

    def add(run: Callable[[Served], str | None]) -> None:
        CALLS.append(ClientCall(client, call, run))

    return add


def read_page() -> dict[tuple[str, str], str]:
    """Return what the stored table says of each call."""
    rows = PAGE.read_text(encoding="utf-8").partition("|---|---|---|\n")[2].partition("\n\n")[0]
    cells = [row.strip("| ").split(" | ") for row in rows.splitlines()]
    return {(client.strip("`"), call.strip("`")): works for client, call, works in cells}


def format_page(works: Mapping[tuple[str, str], str]) -> str:
    """Return the page, given what is said of each call in the order of the table."""
    rows = [f"| `{client}` | `{call}` | {said} |" for (client, call), said in works.items()]
    left_out = "\n".join(f"| {client} | {why} |" for client, why in LEFT_OUT.items())
    return _HEAD + "\n".join(rows) + "\n" + _TAIL.format(command=COMMAND, left_out=left_out)


def make_call(call: ClientCall, served: Served) -> str:
    """Make a call; return what the table says of it."""
    refusal = call.run(served)
    if refusal is None:
        return "yes"
    said = " ".join(refusal.replace("|", "/").split())
    return said if said.startswith("no: ") else f"refused: {said}"
