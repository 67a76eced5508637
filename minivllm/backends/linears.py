"""Which product the linear layers of a model use: the fastest here, or one whose rows stand for themselves.

A `Linear` begins with PyTorch's product. Once its weight is there, that product is exchanged::

    pack_linears      the fastest of the five in `kernels/linear_cpu.py`, measured on this machine
    tile_linears      on top of it, 16 rows at a time: a row's result is then the same bits in any batch
                      (`PanelLinear` promises this by itself)

vLLM V1: `model_executor/layers/utils.py` (`dispatch_unquantized_gemm`), `batch_invariant.py`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from minivllm.kernels.linear_cpu import PanelLinear, TiledLinear, TorchLinear, choose_linear_kernel
from minivllm.layers import Linear


def pack_linears(model: nn.Module, memory: Path | None) -> str:
    """Choose the product for all `Linear` layers of a CPU model, and pack them; returns its name.

    Call it after the weights are loaded: a packed weight cannot be written to any more. `memory` is the file
    in which choices are remembered, see `choose_linear_kernel`.
    """
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    weights = [linear.weight.detach() for linear in linears]
    kind = choose_linear_kernel(weights, memory) if weights[0].device.type == "cpu" else TorchLinear
    for linear in linears:
        linear.pack(kind)
    return kind.name


def tile_linears(model: nn.Module) -> None:
    """Let the results of all `Linear` layers depend on no other row of the batch, see `TiledLinear`."""
    for module in model.modules():
        if isinstance(module, Linear) and not isinstance(module.kernel, PanelLinear):
            module.kernel = TiledLinear(module.kernel)
