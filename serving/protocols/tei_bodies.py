"""Bodies of requests that clients of Text Embeddings Inference send."""

from typing import Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import HTTPError
from serving.interface import Limits
from serving.protocols.json_bodies import ClientList, JSONBody, TextList, parse_body
from serving.protocols.requests import check_texts

_INPUTS = "a text, a list of texts, or a list of lists of one text"

TruncationDirection = Literal["Right", "right"]


class TEIPredictRequest(JSONBody):
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
    raw_scores: StrictBool = Field(False, description="logits instead of probabilities")
    truncate: StrictBool | None = Field(
        None, description="cut texts that are too long (the default), or refuse them (false)"
    )
    truncation_direction: TruncationDirection = Field("Right", description="the end that is cut")
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


class TEIEmbedRequest(JSONBody):
    """The body of `/embed`."""

    inputs: StrictStr | TextList = Field(
        description="a text or a list of texts; token ids are not read"
    )
    normalize: StrictBool | None = Field(None, description="vectors of length 1 (the default)")
    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    truncation_direction: TruncationDirection = Field("Right", description="the end that is cut")
    prompt_name: None = Field(None, description="these models know no prompts")
    dimensions: StrictInt | None = Field(None, ge=1, description="only the first so many")

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class TEIRerankRequest(JSONBody):
    """The body of `/rerank`."""

    query: StrictStr = Field(description="the text that the others are compared with")
    texts: TextList = Field(description="a list of texts")
    raw_scores: StrictBool = Field(False, description="nothing here: the score is a cosine anyway")
    return_text: StrictBool = Field(False, description="put the texts into the answer")
    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    truncation_direction: TruncationDirection = Field("Right", description="the end that is cut")


class SimilarityInputs(JSONBody):
    """A text, and those to compare with it."""

    source_sentence: StrictStr = Field(description="a text")
    sentences: TextList = Field(description="a list of texts")


class SimilarityParameters(JSONBody):
    """The options of `/similarity`."""

    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")
    truncation_direction: TruncationDirection = Field("Right", description="the end that is cut")
    prompt_name: None = Field(None, description="these models know no prompts")


class TEISimilarityRequest(JSONBody):
    """The body of `/similarity`."""

    inputs: SimilarityInputs = Field(
        description='{"source_sentence": text, "sentences": [text, ...]}'
    )
    parameters: SimilarityParameters | None = Field(None, description="options")


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
