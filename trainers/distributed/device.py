"""What a training loop must know of a device: one row each.

Facts of torch (backend, dtype, Ray resource) live here; prices and speeds of hardware live in the
cluster package. Rows other than cpu are not run on hardware.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One kind of device.

    resource: what Ray calls it. backend: of torch.distributed. fused: whether torch has fused
    optimizers for it. token_budget: padded tokens computed at once unless the recipe says
    otherwise. overhead_tokens: tokens that one more micro-batch is worth. root_variable: the
    environment variable that tells its collectives `address:port`, where they meet beside torch's
    own store; None: they need none.
    """

    kind: str
    resource: str
    backend: str
    fused: bool
    token_budget: int
    overhead_tokens: int
    root_variable: str | None = None

    def autocast_dtype(self) -> torch.dtype | None:
        """What computes fastest here and still learns; None is plain fp32."""
        if self.fast_bf16():
            return torch.bfloat16
        return torch.float16 if self.fast_fp16() else None

    def fast_bf16(self) -> bool:
        """Whether bf16 autocast computes faster here than fp32."""
        if self.kind == "cpu":
            return bool(torch.backends.cpu.get_cpu_capability() == "AVX512") and bool(
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        if self.kind == "cuda":
            return torch.cuda.get_device_capability() >= (8, 0)
        return True

    def fast_fp16(self) -> bool:
        """Whether fp16 is the only fast half precision: tensor cores before Ampere (V100, T4)."""
        return self.kind == "cuda" and (7, 0) <= torch.cuda.get_device_capability() < (8, 0)

    def fuses_attention(self, dtype: torch.dtype | None) -> bool:
        """Whether torch's fused attention trains fastest in `dtype`.

        On processors its backward in bf16 is slow: forward and backward take 4 times as long as
        multiplying out at 32 tokens, as long at 256 and more (benchmarks/attention.py, Zen 5).
        """
        return not (self.kind == "cpu" and dtype == torch.bfloat16)

    def torch_device(self) -> torch.device:
        """The device of this process; with several, the current one."""
        if self.kind == "cpu":
            return torch.device("cpu")
        return torch.device(self.kind, torch.accelerator.current_device_index())


DEVICES = {
    row.kind: row
    for row in (
        Device("cpu", "CPU", "gloo", True, 2048, overhead_tokens=100),
        Device("cuda", "GPU", "nccl", True, 32768, overhead_tokens=2048),
        # Without the variable no collective crosses a node, and Ray does not set it (ray#65070).
        Device("neuron", "neuron_cores", "neuron", False, 16384, 2048, "NEURON_RT_ROOT_COMM_ID"),
        # torch_tpu, as Ray's TPUTorchDeviceManager loads it.
        Device("tpu", "TPU", "tpu_dist", False, 16384, overhead_tokens=2048),
    )
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(device: Device, precision: str) -> torch.dtype | None:
    """The autocast dtype a recipe's `precision` means on `device`; None is plain fp32."""
    return device.autocast_dtype() if precision == "auto" else DTYPES[precision]
