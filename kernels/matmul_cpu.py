"""A matrix product for a CPU, made for the few rows of a decode step: y = x W^T, a few rows of y at a time.

A library's product is made for large square matrices. Here W is large, and x has as many rows as sequences
run: 1 to 64. Two ideas make the product fast.

**The registers hold a tile of y.** A core can multiply and add two vectors per cycle, but only vectors which
are in registers, and x86 with AVX2 has 16 of those. So a tile of y, 4 rows of 3 vectors, stays in 12
registers while k runs; 3 more hold a piece of W, and the last one a number of x, repeated (with AVX-512 there
are 32 registers, and a tile is 8 rows of 3 vectors)::

    one step k         W[k, 0:8]  W[k, 8:16]  W[k, 16:24]      3 loads, each used by 4 rows
    x[0, k] repeated   y[0] +=    y[0] +=     y[0] +=
    x[1, k] repeated   y[1] +=    y[1] +=     y[1] +=          4 loads, each used by 3 vectors
    x[2, k] repeated   y[2] +=    y[2] +=     y[2] +=
    x[3, k] repeated   y[3] +=    y[3] +=     y[3] +=          12 products for 7 loads

**W lies in the order in which it is read.** Step k wants 24 outputs of W side by side. In W (out, in) they
lie `in` numbers apart, so W is copied, once, into panels (out / 24, in, 24), and a panel is read from its
first number to its last. A panel of 576 steps has 55 KB: it comes from memory for the first 4 rows of x, and
from the core's cache for all others. So that memory does not rest meanwhile, each tile also asks for a part
of the next panel (a prefetch: the core goes on without waiting for it).

Each number of y is the sum over k from the first to the last, whatever the number of rows. So a row's result
is the same bits in any batch, which a library does not promise (see `TiledLinear`).

All 120 projections of SmolLM2-135M, float32, ms on two cores of an AMD EPYC (Zen 3), median of 7, in turns::

    rows         1      4      8      16     32     64     128
    oneDNN       23.5   28.0   30.5   41.9   72.5   133    238
    matmul_cpu   15.7   17.8   20.8   25.9   50.6   101    189

With 1 row that is 27 GB/s of weights, all that memory gives; with 32 rows 134 billion operations per second,
of the 198 that the same loop reaches when W is in the cache.

Numba has no vectors, so the tile is written in LLVM's language, into which Numba translates all the rest.
Oracle: `F.linear` in float64. Source of the idea: Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (2008). vLLM V1: `csrc/cpu/` (oneDNN's product, and one of its own for Intel's AMX).
"""

import itertools
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .bfloat16_cpu import emit_multiply_add, emit_multiply_add_pairs, halves
from .compile_cpu import parallel
from .prefetch_cpu import CACHE_LINE, emit_prefetch

LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
"""Numbers of a vector: as wide as the registers. Where they are narrower (ARM), LLVM takes two."""
VECTORS = 3
"""Vectors of a tile, side by side."""
WIDTH = VECTORS * LANES
"""Columns of a tile, and of a panel."""
ROWS, STEPS = (8, 2) if LANES == 16 else (4, 4)
"""Rows of a tile, and steps k per turn of the inner loop. AVX-512 has 32 registers: 24 for the tile."""
PREFETCHES = LANES // 8
"""Per turn: so many that the tiles of 24 rows ask for a whole panel."""
PARTS = 4 * WIDTH * STEPS // (PREFETCHES * CACHE_LINE)

_I32, _I64, _FLOAT, _BYTES = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_FLOAT, LANES)


class _Matrix:
    """An array of Numba's (rows, columns), its columns side by side, as LLVM sees it: of float32, or of pairs
    of bfloat16 (uint32), which take the same place.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder, self._data = builder, builder.bitcast(array.data, _BYTES)
        self._bytes_per_row = builder.extract_value(array.strides, 0)
        self.rows, self.columns = (builder.extract_value(array.shape, i) for i in range(2))

    def address(self, row: ir.Value, column: ir.Value) -> ir.Value:
        """Of one number."""
        line = self._builder.gep(self._data, [self._builder.mul(row, self._bytes_per_row)])
        return self._builder.gep(self._builder.bitcast(line, _FLOAT.as_pointer()), [column])

    def vectors(self, row: ir.Value, column: ir.Value, count: int) -> list[ir.Value]:
        """The addresses of `count` vectors in one row, from a column on."""
        start = self.address(row, column)
        moved = [self._builder.gep(start, [_I64(v * LANES)]) for v in range(count)]
        return [self._builder.bitcast(address, _VECTOR.as_pointer()) for address in moved]


def _step(
    builder: ir.IRBuilder,
    numbers: list[ir.Value],
    weights: list[ir.Value],
    sums: list[list[ir.Value]],
    multiply_add: Callable[..., ir.Value],
) -> None:
    """One step k: sums[row][v] += number of the row * weights[v], given the addresses of all three."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    loaded = [builder.load(weight, align=4) for weight in weights]
    for address, of_row in zip(numbers, sums, strict=True):
        first = builder.insert_element(nothing, builder.load(address), _I32(0))
        repeated = builder.shuffle_vector(first, nothing, ir.VectorType(_I32, LANES)([0] * LANES))
        for weight, total in zip(loaded, of_row, strict=True):
            builder.store(multiply_add(builder, weight, repeated, builder.load(total)), total)


def make_tile(rows: int, vectors: int = VECTORS) -> Callable[..., None]:
    """A tile of `rows` rows, as a function for compiled code::

        tile(x, panel, y, row, column, part)
            x (T, in), panel (in, width), y (T, out), all float32; width = vectors * LANES
            y[row:row + rows, column:column + width] = x[row:row + rows] @ panel

    x and panel may be pairs of bfloat16 instead (see `bfloat16_cpu.py`): uint32, `in` counts pairs then.

    Rows beyond the last are the last one again: computed twice, and written twice, the same bits. `part`
    counts which part of the next panel, of `PARTS`, the tile prefetches: panels lie one after the other.
    """

    def tile(x, panel, y, row, column, part):  # in Python itself
        width = vectors * LANES
        factors = zip(halves(x[row : row + rows]), halves(panel[:, :width]), strict=True)
        y[row : row + rows, column : column + width] = sum(a @ b for a, b in factors)

    @overload(tile, inline="always")
    def in_compiled_code(x, panel, y, row, column, part):
        return lambda x, panel, y, row, column, part: compiled(x, panel, y, row, column, part)

    @intrinsic
    def compiled(
        typing_context: Any, x: Any, panel: Any, y: Any, row: Any, column: Any, part: Any
    ) -> tuple[Any, Callable[..., ir.Value]]:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            x, panel, y = (
                _Matrix(context, builder, kind, value)
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            row, column, part = arguments[3:]
            is_float = signature.args[0].dtype == types.float32
            multiply_add = emit_multiply_add if is_float else emit_multiply_add_pairs
            last = builder.sub(x.rows, _I64(1))
            indices = [builder.add(row, _I64(i)) for i in range(rows)]
            indices = [builder.select(builder.icmp_signed("<", i, last), i, last) for i in indices]
            # Variables on the stack, which LLVM moves to registers.
            sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in indices]
            for total in itertools.chain(*sums):
                builder.store(_VECTOR([0.0] * LANES), total)

            def step(k: ir.Value) -> None:
                numbers, weights = [x.address(i, k) for i in indices], panel.vectors(k, _I64(0), vectors)
                _step(builder, numbers, weights, sums, multiply_add)

            turns = builder.udiv(x.columns, _I64(STEPS))
            next_panel = builder.bitcast(panel.address(panel.rows, _I64(0)), _BYTES)
            first_turn = builder.mul(part, turns)
            with cgutils.for_range(builder, turns) as loop:
                line = builder.mul(builder.add(first_turn, loop.index), _I64(PREFETCHES * CACHE_LINE))
                for i in range(PREFETCHES):
                    emit_prefetch(builder, builder.gep(next_panel, [builder.add(line, _I64(i * CACHE_LINE))]))
                for i in range(STEPS):
                    step(builder.add(builder.mul(loop.index, _I64(STEPS)), _I64(i)))
            with cgutils.for_range(builder, builder.urem(x.columns, _I64(STEPS))) as loop:
                step(builder.add(builder.mul(turns, _I64(STEPS)), loop.index))
            for index, of_row in zip(indices, sums, strict=True):
                for total, address in zip(of_row, y.vectors(index, column, vectors), strict=True):
                    builder.store(builder.load(total), address, align=4)
            return context.get_dummy_value()

        return types.void(x, panel, y, row, column, part), generate

    return tile


_one_row, _full_tile = make_tile(1), make_tile(ROWS)


@parallel([f"void({kind}[:,:], {kind}[:,:,::1], float32[:,::1])" for kind in ("float32", "uint32")])
def matmul_cpu(x, panels, y):
    """y (T, out) = x (T, in) W^T, with W as `pack_panels` gives it; the panels are divided among the threads.

    Each row of x is contiguous, and `out` at least `WIDTH`. x and panels are float32, or pairs of bfloat16.
    """
    num_rows, num_columns = y.shape
    for number in numba.prange(len(panels)):
        column = min(number * WIDTH, num_columns - WIDTH)
        if num_rows == 1:
            _one_row(x, panels[number], y, 0, column, 0)
        else:
            for row in range(0, num_rows, ROWS):
                _full_tile(x, panels[number], y, row, column, min(row // ROWS, PARTS - 1))


def pack_panels(weight: np.ndarray) -> np.ndarray:
    """W (out, in) -> panels (ceil(out / WIDTH), in, WIDTH), a copy; `out` is at least `WIDTH`. For bfloat16,
    W is given as pairs: uint32 (out, in / 2).

    The last panel ends with the last column, so it may share columns with the one before it::

        out = 60, WIDTH = 24     panels of columns  0-23  24-47  36-59
    """
    starts = np.minimum(np.arange(0, len(weight), WIDTH), len(weight) - WIDTH)
    panels = np.empty((len(starts), weight.shape[1], WIDTH), weight.dtype)
    return np.stack([weight[start : start + WIDTH].T for start in starts], out=panels)
