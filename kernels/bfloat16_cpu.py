"""bfloat16 on a CPU, for loops compiled by Numba, which does not know the type.

A bfloat16 is the first half of a float32: the same sign and exponent, and 7 bits of the fraction. So a
number is widened by a shift, and the half of the bytes, which is the point, is read from memory::

    float32    s eeeeeeee fffffff ffffffffffffffff        3.140625
    bfloat16   s eeeeeeee fffffff                         3.140625, and nothing between that and 3.15625
               the array of uint16 which Numba sees

Weights and the KV cache are kept in bfloat16; sums, and all between two products, are float32.

A processor with AVX512_BF16 (AMD from Zen 4 on, Intel from Cooper Lake on) multiplies *pairs*: a vector of 16
sums takes 16 pairs of each side, twice as many products per instruction as float32 has. Two neighbours of a
row are a pair, seen as one uint32, so `matmul_cpu.py` uses the same tile for both types, and in the place of
its multiplication this one::

    float32   sum[lane] += x                * w[lane]
    pairs     sum[lane] += x_even * w_even[lane] + x_odd * w_odd[lane]          vdpbf16ps

A decode step of 32 sequences of SmolLM2-135M, ms on two cores of an AMD EPYC (Zen 5)::

                 products   attention   rest   step
    float32      19.3       9.8         3.1    32.2
    bfloat16     11.0       6.9         3.1    21.0

Where the instruction is missing, the two halves are widened and multiplied one after the other: still half of
the bytes. vLLM V1: `csrc/cpu/cpu_types_x86.hpp` (`BF16Vec16`); its products are oneDNN's.
"""

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import overload

from .compile_cpu import parallel

HAS_PAIRS = bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))
"""Whether this processor multiplies pairs in one instruction."""


def widen(number):
    """A float32, or the bits of a bfloat16 (uint16) -> the same number as float32. Also for whole arrays."""
    if number.dtype == np.float32:
        return number
    return (number.astype(np.uint32) << np.uint32(16)).view(np.float32)


@overload(widen, inline="always")
def _widen_compiled(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


def narrow(number):
    """float32 -> the bits (uint16) of the nearest bfloat16; between two, the even one. NaN stays NaN."""
    bits = np.float32(number).view(np.uint32)
    if number != number:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def narrow_as(number, numbers):
    """A float32 as the array `numbers` keeps it: itself, or rounded to the bits of a bfloat16 (uint16)."""
    return number if numbers.dtype == np.float32 else narrow(number)


_narrow = numba.njit(narrow)


@overload(narrow_as, inline="always")
def _narrow_compiled(number, numbers):
    if numbers.dtype == types.float32:
        return lambda number, numbers: number
    return lambda number, numbers: _narrow(number)


@parallel("void(float32[:,::1], uint32[:,::1])")
def pack_pairs(numbers, pairs):
    """Round numbers (T, n) and pair neighbours: (T, n / 2, rounded up), the last one with 0 if n is odd."""
    bits = pairs.view(np.uint16)
    for row in numba.prange(len(numbers)):
        for i in range(numbers.shape[1]):
            bits[row, i] = _narrow(numbers[row, i])
        for i in range(numbers.shape[1], bits.shape[1]):
            bits[row, i] = np.uint16(0)


def halves(numbers: np.ndarray) -> list[np.ndarray]:
    """The factors that an array holds: of float32 itself; of pairs (uint32) the even and the odd numbers."""
    if numbers.dtype == np.float32:
        return [numbers]
    return [(numbers << np.uint32(16)).view(np.float32), (numbers & np.uint32(0xFFFF0000)).view(np.float32)]


class _BFloat(ir.Type):
    """LLVM's name for the type, which llvmlite has none for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def emit_multiply_add(
    builder: ir.IRBuilder, weights: ir.Value, repeated: ir.Value, total: ir.Value
) -> ir.Value:
    """total + weights * repeated, vectors of float32."""
    vector = total.type
    kind = ir.FunctionType(vector, [vector] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{vector.count}f32")
    return builder.call(function, [weights, repeated, total])


def emit_multiply_add_pairs(
    builder: ir.IRBuilder, weights: ir.Value, repeated: ir.Value, total: ir.Value
) -> ir.Value:
    """total + the products of 16 (or 8) pairs; all three are vectors of as many float32, by their bits."""
    vector, lanes = total.type, total.type.count
    if HAS_PAIRS and lanes == 16:
        pairs = ir.VectorType(_BFloat(), 2 * lanes)
        kind = ir.FunctionType(vector, [vector, pairs, pairs])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        factors = [builder.bitcast(each, pairs) for each in (weights, repeated)]
        return builder.call(function, [total, *factors])
    bits = ir.VectorType(ir.IntType(32), lanes)
    w, x = builder.bitcast(weights, bits), builder.bitcast(repeated, bits)
    for half in (
        lambda value: builder.shl(value, bits([16] * lanes)),
        lambda value: builder.and_(value, bits([0xFFFF0000] * lanes)),
    ):
        total = emit_multiply_add(builder, *(builder.bitcast(half(value), vector) for value in (w, x)), total)
    return total
