"""The kinds of devices that training runs on, one row each.

Facts of torch (backend, dtype, Ray resource) are here; prices and speeds of hardware are in the
cluster package. Rows other than cpu have not run on hardware.
"""

from dataclasses import dataclass

import torch

from cluster.costmodel.microbatches import default_token_budget


@dataclass(frozen=True)
class Device:
    """One kind of device.

    resource: its name in Ray. backend: of torch.distributed. fused_optimizers: whether torch has
    them for it. token_budget: default of tokens computed at once. root_address_variable: the
    environment variable that gives its collectives an `address:port` to meet at, beside torch's own
    store; None: they need none. row_widths: of rows that texts are laid into, where every new shape
    is compiled; (): any number of tokens is as good as another.
    """

    kind: str
    resource: str
    backend: str
    fused_optimizers: bool
    token_budget: int
    root_address_variable: str | None = None
    row_widths: tuple[int, ...] = ()

    def default_token_budget(self, max_length: int) -> int:
        """Return the tokens computed at once: `token_budget`, or one longest sample."""
        return max(self.token_budget, max_length)

    def autocast_dtype(self) -> torch.dtype | None:
        """Return the fastest dtype that trains well here; None is plain fp32."""
        if self.has_fast_bf16():
            return torch.bfloat16
        return torch.float16 if self.has_fast_fp16() else None

    def has_fast_bf16(self) -> bool:
        """Return whether bf16 autocast is faster here than fp32."""
        if self.kind == "cpu":
            return bool(torch.backends.cpu.get_cpu_capability() == "AVX512") and bool(
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        if self.kind == "cuda":
            return torch.cuda.get_device_capability() >= (8, 0)
        return True

    def has_fast_fp16(self) -> bool:
        """Return whether only fp16 is fast: tensor cores before Ampere (V100, T4)."""
        return self.kind == "cuda" and (7, 0) <= torch.cuda.get_device_capability() < (8, 0)

    def prefers_fused_attention(self, dtype: torch.dtype | None) -> bool:
        """Return whether torch's fused attention trains fastest in `dtype`.

        On CPUs its backward in bf16 is slow: forward and backward take 4 times as long as unfused
        attention at 32 tokens, as long at 256 and more (benchmarks/attention.py, Zen 5).
        """
        return not (self.kind == "cpu" and dtype == torch.bfloat16)

    def torch_device(self) -> torch.device:
        """Return the device of this process; with several, the current one."""
        if self.kind == "cpu":
            return torch.device("cpu")
        return torch.device(self.kind, torch.accelerator.current_device_index())


def _build_device(
    kind: str,
    resource: str,
    backend: str,
    fused: bool,
    root_variable: str | None = None,
    row_widths: tuple[int, ...] = (),
) -> Device:
    budget = default_token_budget(kind)
    return Device(kind, resource, backend, fused, budget, root_variable, row_widths)


ROW_WIDTHS = (32, 64, 128, 256, 512)
DEVICES = {
    row.kind: row
    for row in (
        _build_device("cpu", "CPU", "gloo", True),
        _build_device("cuda", "GPU", "nccl", True),
        # Without the variable no collective crosses a node, and Ray does not set it (ray#65070).
        _build_device(
            "neuron", "neuron_cores", "neuron", False, "NEURON_RT_ROOT_COMM_ID", ROW_WIDTHS
        ),
        # torch_tpu, as Ray's TPUTorchDeviceManager loads it.
        _build_device("tpu", "TPU", "tpu_dist", False, row_widths=ROW_WIDTHS),
    )
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(device: Device, precision: str) -> torch.dtype | None:
    """Return the autocast dtype of a recipe's `precision` on `device`; None is plain fp32."""
    return device.autocast_dtype() if precision == "auto" else DTYPES[precision]
