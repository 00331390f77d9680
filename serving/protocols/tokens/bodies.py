"""Bodies of `/tokenize`, `/decode` and `/detokenize`."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import ConfigDict, Field, StrictBool, StrictStr

from serving.http.messages import HTTPError
from serving.interface import Limits
from serving.protocols.json_bodies import ClientList, JSONBody, TextList
from serving.protocols.openai import TokenIds
from serving.protocols.tei_bodies import PROMPT

_MODEL = "name, name:version or name@alias"


class TokenizeRequest(JSONBody):
    """The body of `/tokenize`; vLLM's has `prompt` in place of `inputs`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "A warm film."}]})

    refused: ClassVar[dict[str, str]] = {"messages": "models read texts, no chats; send `prompt`"}
    meaningless: ClassVar[dict[str, str]] = {"return_token_strs": "they are in the answer"}

    inputs: StrictStr | TextList | None = Field(None, description="a text or a list of texts")
    prompt: StrictStr | None = Field(None, description="a text, to be answered as vLLM does")
    model: StrictStr | None = Field(None, description=_MODEL)
    add_special_tokens: StrictBool | None = Field(None, description="true is the default")
    prompt_name: StrictStr | None = Field(None, description=PROMPT)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        if self.prompt is not None:
            return [self.prompt]
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs or []


class DecodeRequest(JSONBody):
    """The body of `/decode`."""

    ids: TokenIds | ClientList[TokenIds] = Field(
        description="the token ids of a text, or a list of such lists"
    )
    skip_special_tokens: StrictBool | None = Field(None, description="true is the default")
    model: StrictStr | None = Field(None, description=_MODEL)

    def read_rows(self, limits: Limits) -> Sequence[Sequence[int]]:
        """Return the ids of each text, in order. Raises HTTPError."""
        rows = [each for each in self.ids if isinstance(each, list)]
        ids = [each for each in self.ids if isinstance(each, int)]
        if not all(rows) or not (rows or ids):
            raise HTTPError("empty", "ids holds a text of no token; give at least one id of each")
        if len(rows) > limits.max_texts:
            raise HTTPError(
                "too-large",
                f"ids holds {len(rows)} texts, but a request holds at most {limits.max_texts}; "
                "send several requests",
            )
        return rows or [ids]


class DetokenizeRequest(JSONBody):
    """The body of `/detokenize`."""

    tokens: TokenIds = Field(description="the token ids of a text")
    model: StrictStr | None = Field(None, description=_MODEL)
