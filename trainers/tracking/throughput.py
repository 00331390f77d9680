"""How well a step uses its devices: FLOP/s, and MFU where the peak of the device is published.

MFU, model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B), is what the texts of a step need
(`ModelShape.batch_training_flops`, from their actual lengths) over what all devices of the run
would compute in the seconds of that step at their published peak: dense, of the precision in which
matrices are multiplied. Padding and recomputation lower it, as they take time and are not counted.
"""

from dataclasses import dataclass

import torch

from cluster.costmodel.model_shape import ModelShape
from cluster.hardware.catalog import load_catalog
from trainers.training.events import StepEvent

PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class ThroughputMeter:
    """Turns steps into columns of metrics.jsonl.

    peak_flops: FLOP/s of one device; None where it is not published, so that there is no MFU. Of
    unequal devices it is rank 0's. masked_share: of the tokens a masked-lm head predicts.
    frozen_layers: without a backward, with the embeddings; None: all is trained.
    """

    shape: ModelShape
    num_devices: int
    peak_flops: float | None = None
    masked_share: float = 0.0
    frozen_layers: int | None = None

    def measure(self, step: StepEvent) -> dict[str, float]:
        """Return tokens_per_second_per_device, tflops_per_device and mfu, of those that are known.

        FLOPs need `squared_tokens`.
        """
        device_seconds = step.seconds * self.num_devices
        columns = {"tokens_per_second_per_device": step.tokens / device_seconds}
        if not step.squared_tokens:
            return columns
        rate = self._flops(step) / device_seconds
        columns["tflops_per_device"] = rate / 1e12
        if self.peak_flops is not None:
            columns["mfu"] = rate / self.peak_flops
        return columns

    def _flops(self, step: StepEvent) -> float:
        masked = self.masked_share * step.tokens
        return self.shape.batch_training_flops(
            step.samples, step.tokens, step.squared_tokens, masked, self.frozen_layers
        )


def device_peak_flops(kind: str, dtype: torch.dtype | None) -> float | None:
    """Return the published FLOP/s of this process's device in `dtype`, None being fp32.

    None of a device that the catalog does not know by its driver's name, as of every CPU.
    """
    if kind != "cuda":
        return None
    accelerator = load_catalog().find_device(torch.cuda.get_device_name())
    return None if accelerator is None else accelerator.peak_flops(PRECISIONS[dtype])
