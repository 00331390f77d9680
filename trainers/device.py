"""What a training loop must know of a device: one row each.

Facts of torch (backend, dtype, Ray resource) live here; prices and speeds of hardware live in the
cluster package. Rows other than cpu are not run on hardware.
"""

from dataclasses import dataclass

import torch
from transformers import BertConfig

from trainers.batching import Cost


@dataclass(frozen=True)
class Device:
    """One kind of device.

    resource: what Ray calls it. backend: of torch.distributed. fused: whether torch has fused
    optimizers for it. token_budget: padded tokens computed at once unless the recipe says
    otherwise. launch_tokens: tokens that the launches of one more micro-batch are worth.
    flops_per_element: what it computes while it writes one element of a gradient to memory.
    """

    kind: str
    resource: str
    backend: str
    fused: bool
    token_budget: int
    launch_tokens: int
    flops_per_element: int

    def fast_bf16(self) -> bool:
        """Whether bf16 autocast computes faster here than fp32."""
        if self.kind == "cpu":
            return bool(torch.backends.cpu.get_cpu_capability() == "AVX512") and bool(
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        if self.kind == "cuda":
            return torch.cuda.get_device_capability() >= (8, 0)
        return True

    def torch_device(self) -> torch.device:
        """The device of this process; with several, the current one."""
        if self.kind == "cpu":
            return torch.device("cpu")
        return torch.device(self.kind, torch.accelerator.current_device_index())


DEVICES = {
    row.kind: row
    for row in (
        Device("cpu", "CPU", "gloo", True, 2048, launch_tokens=10, flops_per_element=270),
        Device("cuda", "GPU", "nccl", True, 32768, launch_tokens=2048, flops_per_element=1200),
        Device("neuron", "neuron_cores", "neuron", False, 16384, 2048, flops_per_element=1200),
    )
}


def autocast_dtype(device: Device, precision: str) -> torch.dtype | None:
    """The autocast dtype a recipe's `precision` means on `device`; None is plain fp32."""
    if precision == "bf16" or (precision == "auto" and device.fast_bf16()):
        return torch.bfloat16
    return None


def cost_on(device: Device, config: BertConfig) -> Cost:
    """What the micro-batches of a BERT cost on `device`."""
    return Cost.of_bert(
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        device.launch_tokens,
        device.flops_per_element,
    )
