"""The wire protocols: pure translations of a request to texts, and of the results to a body.

They ask `serving.interface.Models` and import no HTTP server, no engine and no Ray. Where two
protocols claim one path, the first in `ALL` has it.
"""

from serving.http.messages import WireProtocol
from serving.protocols import (
    hf,
    kserve,
    oip,
    openai,
    rerank,
    tei,
    torchserve,
    torchserve_management,
    vllm,
)
from serving.protocols.cohere import embed as cohere
from serving.protocols.own import explain, feedback
from serving.protocols.sagemaker import invocations

ALL: tuple[WireProtocol, ...] = (
    tei.PROTOCOL,
    hf.PROTOCOL,
    oip.PROTOCOL,
    openai.PROTOCOL,
    vllm.PROTOCOL,
    rerank.PROTOCOL,
    cohere.PROTOCOL,
    kserve.PROTOCOL,
    torchserve.PROTOCOL,
    torchserve_management.PROTOCOL,
    invocations.PROTOCOL,
    explain.PROTOCOL,
    feedback.PROTOCOL,
)
