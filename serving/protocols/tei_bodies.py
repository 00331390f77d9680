"""Bodies of requests that clients of Text Embeddings Inference send."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import HTTPError
from serving.interface import Limits, ModelInfo, TruncationSide
from serving.protocols.json_bodies import (
    ClientList,
    JSONBody,
    TextList,
    parse_body,
    validate_body,
)
from serving.protocols.openai import Inputs, list_inputs
from serving.protocols.requests import add_prompt, check_texts, read_as
from serving.protocols.rerank import RerankRequest

_INPUTS = "a text, a list of texts, or a list of lists of one text"

PROMPT = "the prompt of the bundle that is put before each text"
TruncationDirection = Literal["Right", "right", "Left", "left"]


class TruncatingBody(JSONBody):
    """What calls have in common that cut long texts."""

    truncate: StrictBool | None = Field(
        None, description="cut texts that are too long (the default), or refuse them (false)"
    )
    truncation_direction: TruncationDirection | None = Field(
        None, description="the end that is cut: Left, or the tokenizer's own, which is Right"
    )

    @property
    def side(self) -> TruncationSide | None:
        """The end that is cut, if that is not the tokenizer's own."""
        return "left" if (self.truncation_direction or "").lower() == "left" else None


class TEIBody(TruncatingBody):
    """What the calls about one model have in common."""

    meaningless: ClassVar[dict[str, str]] = {"parameters": "the options stand beside the texts"}

    model: StrictStr | None = Field(
        None, description="name, name:version or name@alias; by default that of the path"
    )


class TEIPredictRequest(TEIBody):
    """The body of `/predict`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "A warm, funny and beautifully acted film."},
                {"inputs": ["A warm, funny film.", "Two hours I will never get back."]},
            ]
        }
    )

    inputs: StrictStr | TextList | ClientList[TextList] = Field(description=_INPUTS)
    raw_scores: StrictBool | None = Field(None, description="logits instead of probabilities")
    pairs: StrictBool = Field(
        False, description="read `inputs` of two texts as one pair; this server has no such model"
    )

    @property
    def is_single(self) -> bool:
        """Whether `inputs` is one text, so that the answer is not a list of answers."""
        return isinstance(self.inputs, str)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        return [text if isinstance(text, str) else text[0] for text in self.inputs]


class TEIEmbedRequest(TEIBody):
    """The body of `/embed`."""

    inputs: Inputs = Field(
        description="a text, a list of texts, or token ids of the model's vocabulary"
    )
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    dimensions: StrictInt | None = Field(
        None, ge=0, description="only the first so many, 0: all of them"
    )
    prompt_name: StrictStr | None = Field(None, description=PROMPT)

    def read_texts(self, limits: Limits, model: ModelInfo) -> Sequence[str]:
        """Return the texts, in order. Raises HTTPError."""
        texts = check_texts(list_inputs(self.inputs), limits, "inputs")
        return read_as(add_prompt(texts, self.prompt_name, model), self.side)


class TEIRerankRequest(TEIBody):
    """The body of `/rerank`."""

    meaningless: ClassVar[dict[str, str]] = TEIBody.meaningless | {
        "raw_scores": "the score is a cosine either way"
    }

    query: StrictStr = Field(description="the text that the others are compared with")
    texts: TextList = Field(description="a list of texts")
    return_text: StrictBool | None = Field(None, description="put the texts into the answer")


class SimilarityInputs(JSONBody):
    """A text, and those to compare with it."""

    source_sentence: StrictStr = Field(description="a text")
    sentences: TextList = Field(description="a list of texts")


class SimilarityParameters(TruncatingBody):
    """The options of `/similarity`."""

    prompt_name: StrictStr | None = Field(None, description=PROMPT)


class TEISimilarityRequest(JSONBody):
    """The body of `/similarity`."""

    inputs: SimilarityInputs = Field(
        description='{"source_sentence": text, "sentences": [text, ...]}'
    )
    parameters: SimilarityParameters | None = Field(None, description="options")
    model: StrictStr | None = Field(
        None, description="name, name:version or name@alias; by default that of the path"
    )


def parse_predict_request(body: bytes, limits: Limits) -> TEIPredictRequest:
    """Validate the body of `/predict`. Raises HTTPError, and nothing else.

    A pair of texts is refused, because the models read single texts; so is a list of no text.
    """
    request = parse_body(TEIPredictRequest, body)
    texts = request.inputs if isinstance(request.inputs, list) else ()
    for number, text in enumerate(texts, 1):
        if isinstance(text, list) and len(text) != 1:
            what = "a pair" if len(text) == 2 else f"a list of {len(text)}"
            raise HTTPError(
                "malformed",
                f"inputs holds {what} at place {number}, but this model reads single texts; "
                f"inputs is {_INPUTS}",
            )
    if request.pairs:
        raise HTTPError(
            "malformed",
            "pairs = true: this model reads single texts, no pairs; leave `pairs` out to have a "
            "list of texts read as a batch",
        )
    check_texts(request.texts, limits, "inputs")
    return request


def validate_rerank_request(value: Any) -> TEIRerankRequest | RerankRequest:
    """Validate the body of `/rerank`: with `documents` it is Cohere's. Raises HTTPError."""
    if isinstance(value, dict) and "documents" in value:
        return validate_body(RerankRequest, value)
    return validate_body(TEIRerankRequest, value)
