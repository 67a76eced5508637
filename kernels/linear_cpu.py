"""The matrix product of a linear layer on a CPU: five ways, and the choice of the fastest one by measurement.

A decode step has few rows, so a product y = x W^T is over as soon as its weight W (out, in) has been read.
The speed of that read depends on the order of W in memory, and the best order depends on the processor::

    F.linear    row after row of W, as it was loaded                      everywhere
    mm          W^T, copied: row after row of (in, out)                   everywhere
    MKL         panels as Intel's library wants them                      x86, float32
    oneDNN      small tiles, as wide as the vector registers              x86, some ARM; float32, bfloat16
    panels      as `matmul_cpu.py`, this project's own kernel, wants them wherever Numba is; float32, bfloat16

                +--+--+--+
    oneDNN: W = |a |b |c |  lies in memory as  a d b e c f: the numbers which one inner loop
                +--+--+--+  needs follow each other, so each line of memory is fetched once and whole
                |d |e |f |
                +--+--+--+

All 120 projections of SmolLM2-135M, float32, ms on two cores (Zen: AMD EPYC; Cascade Lake: Intel Xeon)::

    rows   F.linear   mm    MKL   oneDNN       MKL   oneDNN   panels        F.linear   mm    MKL
    1      41         29    35    27           28    24       16            25         21    23
    8      49         65    71    22           61    31       21            67         40    26
    32     76         87    98    46           103   73       51            121        69    43
    64     119        128   131   77           167   133      101           117        111   85
           Zen 4                               Zen 3                        Cascade Lake

So the best way on one machine is the worst on the next: from 8 rows on MKL takes 1.7 to 3.2 times as long as
oneDNN on Zen 4. `choose_linear_kernel` measures the model's own weights, for about a second, and remembers.

The operators of MKL and oneDNN are the ones which torch.compile uses for frozen weights. They are private to
PyTorch: one which does not exist on this machine, or does not agree with `F.linear`, is not a candidate.

vLLM V1: `model_executor/layers/utils.py` (`dispatch_cpu_unquantized_gemm`).
"""

import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = (1, 8, 32, 64, 128)
"""Numbers of rows which are measured: one sequence up to 64 at once, and a piece of a prompt. From 128 rows
on arithmetic takes the time, so 128 rows tell what 1,024 would, in an eighth of the time."""
SAMPLE_BYTES = 32 << 20
"""Bytes of weights to measure: more than a core's caches hold, as a step finds no weight in them either."""
SMALLEST_BYTES = 4 << 20
"""For a model with fewer bytes of weights the choice makes no difference."""
PACKED_FOR_ROWS = 32
"""Rows which MKL and oneDNN are told to expect. The result is right for other numbers too. On Zen 3 oneDNN is
as fast (within 10%) when told 8, 64 or 1,024; a weight packed for 1 row is a third slower from 8 rows on."""
ADVANTAGE = 0.95
"""`F.linear` is taken if it is at most 5% behind: it needs no copy of the weights."""
TOLERANCE = {torch.float32: 1e-4}
"""Largest difference from `F.linear`, as a part of the largest result; 0.02 for other dtypes."""


class LinearKernel(Protocol):
    """A weight in the layout of one library, and the product with it.

    x may be float32 with weights of another dtype: it is rounded to theirs, and the result is float32 again.
    """

    name: ClassVar[str]

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take (or copy) a weight (out, in) and a bias (out,)."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        ...


class TorchLinear:
    """The weight as it is."""

    name = "F.linear"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return F.linear(x.to(self._weight.dtype), self._weight, self._bias).to(x.dtype)


class TransposedLinear:
    """The transpose, copied."""

    name = "mm"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight.t().contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        rows = x.to(self._weight.dtype)
        y = rows.mm(self._weight) if self._bias is None else torch.addmm(self._bias, rows, self._weight)
        return y.to(x.dtype)


class MklLinear:
    """Packed by MKL."""

    name = "MKL"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, PACKED_FOR_ROWS)
        # The operator wants the weight too, but reads only its shape: so it gets one element, repeated.
        self._shape, self._bias = weight.new_zeros(1).expand(weight.shape), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return torch.ops.mkl._mkl_linear(x, self._packed, self._shape, self._bias, x.shape[0])


class OneDnnLinear:
    """Packed by oneDNN."""

    name = "oneDNN"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_ROWS)
        self._dtype, self._bias = weight.dtype, bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        rows = x.to(self._dtype)
        y = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return y.to(x.dtype)


class PanelLinear:
    """Packed for `matmul_cpu`. A row's result is the same bits in any batch."""

    name = "panels"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # Imported here and not above: it takes a second, and needs Numba.
        from . import bfloat16_cpu, compile_cpu, matmul_cpu

        if weight.dtype not in (torch.float32, torch.bfloat16) or len(weight) < matmul_cpu.WIDTH:
            raise NotImplementedError(
                f"panels are for float32 and bfloat16 and at least {matmul_cpu.WIDTH} outputs, not for "
                f"{weight.dtype} and {len(weight)}: choose another product."
            )
        self._kernel, self._use_threads = matmul_cpu.matmul_cpu, compile_cpu.use_threads
        self._pack_pairs = bfloat16_cpu.pack_pairs
        self._dtype = weight.dtype
        self.panels, self._bias = matmul_cpu.pack_panels(self._numbers(weight)), bias
        self._num_outputs = len(weight)

    def _numbers(self, rows: Tensor) -> np.ndarray:
        """What the kernel takes: float32, or two bfloat16 side by side as one uint32."""
        if self._dtype == torch.float32:
            return rows.numpy()
        pairs = np.empty((len(rows), (rows.shape[1] + 1) // 2), np.uint32)
        self._pack_pairs(rows.float().contiguous().numpy(), pairs)
        return pairs

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        self._use_threads(torch.get_num_threads())
        y = torch.empty(len(x), self._num_outputs)
        self._kernel(self._numbers(x), self.panels, y.numpy())
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)


def stack_panels(layers: Sequence[PanelLinear]) -> np.ndarray:
    """Move the panels of layers of one shape into one array (layers, panels, in, WIDTH), which they share."""
    stacked = np.empty((len(layers), *layers[0].panels.shape), layers[0].panels.dtype)
    for place, layer in zip(stacked, layers, strict=True):
        place[...] = layer.panels
        layer.panels = place
    return stacked


TILE = 16
"""Rows of a tile of `TiledLinear`: with fewer, one row costs less and many rows cost more."""


class TiledLinear:
    """Another kernel, always called with `TILE` rows: a row's result is the same bits in any batch.

    Libraries choose the order of their additions by the number of rows, and floating-point addition depends
    on its order. With one number of rows there is one order::

        35 rows   [16] [16] [3 + 13 of zeros]
    """

    name = "tiles"

    def __init__(self, kernel: LinearKernel) -> None:
        self._kernel = kernel

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        padded = F.pad(x, (0, 0, 0, -len(x) % TILE))
        return torch.cat([self._kernel(tile) for tile in padded.split(TILE)])[: len(x)]


KINDS: tuple[type[LinearKernel], ...] = (
    TorchLinear,
    TransposedLinear,
    MklLinear,
    OneDnnLinear,
    PanelLinear,
)


def agrees(kind: type[LinearKernel], weight: Tensor) -> bool:
    """Whether `kind` exists on this machine and gives what `F.linear` gives, with a bias and without."""
    probe = torch.linspace(-1, 1, 3 * weight.shape[1], dtype=weight.dtype).view(3, -1).sin()
    for bias in (None, weight[:, 0].contiguous()):
        expected = F.linear(probe, weight, bias).float()
        try:
            error = (kind(weight, bias)(probe).float() - expected).abs().max()
        # no such operator; none for this dtype or shape; no Numba
        except (AttributeError, RuntimeError, NotImplementedError, ImportError):
            return False
        if not error <= TOLERANCE.get(weight.dtype, 0.02) * expected.abs().max():
            return False
    return True


def fastest(
    kinds: Sequence[type[LinearKernel]], weights: Sequence[Tensor], rounds: int = 3, seconds: float = 1.0
) -> tuple[type[LinearKernel], bool]:
    """Measure; the best is the one with the least sum, over `ROWS`, of its time divided by the shortest time.

    The kinds take turns for `rounds` rounds. Each product is timed alone, and the shortest of its times
    counts: another program on the machine can only add to a time, and one product is short enough to escape.
    The first of `kinds` has its sum multiplied by `ADVANTAGE`.

    Returns:
        The best, and whether there was time for all rounds: after `seconds` no further number of rows is
        begun, and what was measured until then decides.
    """
    products = [[kind(weight, None) for weight in weights] for kind in kinds]
    times = torch.full((rounds, len(kinds), len(ROWS), len(weights)), torch.inf)
    start = time.perf_counter()
    for turn, (column, rows) in itertools.product(range(rounds), enumerate(ROWS)):
        if time.perf_counter() - start > seconds:
            break
        inputs = {weight.shape[1]: torch.ones(rows, weight.shape[1]) for weight in weights}
        for row in range(len(kinds)):
            for index, weight in enumerate(weights):
                begin = time.perf_counter()
                products[row][index](inputs[weight.shape[1]])
                times[turn, row, column, index] = time.perf_counter() - begin
    each = times.amin(0).sum(-1)  # (kinds, ROWS)
    each = each[:, each[0].isfinite()]
    costs = (each / each.amin(0)).sum(-1)
    costs[0] *= ADVANTAGE
    return kinds[int(costs.argmin())], bool(times.isfinite().all())


def sample(weights: Sequence[Tensor], most_bytes: int = SAMPLE_BYTES) -> list[Tensor]:
    """The first weights, until they have `most_bytes`."""
    chosen, size = [], 0
    for weight in weights:
        if size < most_bytes:
            chosen.append(weight)
            size += weight.nbytes
    return chosen


def choose_linear_kernel(
    weights: Sequence[Tensor],
    memory: Path | None = None,
    measure: Callable[..., tuple[type[LinearKernel], bool]] = fastest,
) -> type[LinearKernel]:
    """The fastest kind for a model's weights on this machine.

    One choice serves the whole model. It is remembered, not only to save a second: the kinds round
    differently, so with a choice that changes from start to start a text could change too. Measuring ends
    when two measurements in a row agree: a single one may have been taken beside another program, and would
    make all later starts slow. A choice made on a machine too busy for all rounds is used, but not
    remembered.

    Args:
        weights: all (out, in) on the CPU, in one dtype.
        memory: a JSON file of choices made before, written if possible; None: measure each time.
        measure: `fastest`, or a stand-in for tests.
    """
    if sum(weight.nbytes for weight in weights) < SMALLEST_BYTES:
        return TorchLinear
    weights = sample(weights)
    shapes = sorted({tuple(weight.shape) for weight in weights})
    machine = (platform.node(), torch.backends.cpu.get_cpu_capability(), torch.__version__)
    key = " | ".join(map(str, (*machine, torch.get_num_threads(), weights[0].dtype, shapes)))
    remembered: dict[str, list[str]] = {}
    if memory is not None:
        with suppress(OSError, ValueError):
            content = json.loads(memory.read_text())
            remembered = content if isinstance(content, dict) else {}
    names = remembered.get(key)
    names = names[-2:] if isinstance(names, list) else []
    smallest = [next(weight for weight in weights if tuple(weight.shape) == shape) for shape in shapes]
    kinds = [kind for kind in KINDS if all(agrees(kind, weight) for weight in smallest)]
    for kind in kinds:
        if names == [kind.name, kind.name]:
            return kind
    choice, is_sure = measure(kinds, weights)
    if memory is not None and is_sure:
        with suppress(OSError):  # a folder that cannot be written: measured anew at the next start
            memory.parent.mkdir(parents=True, exist_ok=True)
            half_written = memory.with_suffix(f".{os.getpid()}")
            half_written.write_text(json.dumps({**remembered, key: [*names, choice.name]}, indent=1))
            half_written.replace(memory)
    return choice
