"""The wire protocols. Where two claim an address, the first in `ALL` has it."""

from serving.http.messages import Protocol
from serving.protocols import (
    hf,
    kserve,
    oip,
    openai,
    sagemaker,
    tei,
    torchserve,
    torchserve_management,
    vllm,
)

ALL: tuple[Protocol, ...] = (
    tei.PROTOCOL,
    hf.PROTOCOL,
    oip.PROTOCOL,
    openai.PROTOCOL,
    vllm.PROTOCOL,
    kserve.PROTOCOL,
    torchserve.PROTOCOL,
    torchserve_management.PROTOCOL,
    sagemaker.PROTOCOL,
)
