"""Asking for memory before it is needed: a prefetch, for loops compiled by Numba.

Memory answers after about 100 nanoseconds, in which a core can multiply thousands of numbers. While addresses
follow each other, a core reads ahead by itself; where a block table leads it cannot guess. So the loop asks
for the next block. The core does not wait for the answer, and finds the numbers in its cache later::

    without    | wait for block 7 | compute 7            | wait for block 2 | compute 2            | wait ...
    with       | wait for block 7 | compute 7, ask for 2 | compute 2, ask for 9 | compute 9 ...

A core keeps track of a few dozen unanswered requests, and beyond these it stops until one is answered. So a
loop which asks for the whole next block at once gains nothing: it asks for one row beside each row that it
computes.

Numba has no such instruction; LLVM, into whose language Numba translates, has one (`llvm.prefetch`). vLLM V1:
the same instruction in `csrc/cpu/` (`_mm_prefetch`).
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

CACHE_LINE = 64
"""Bytes which one request brings."""

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def prefetch(rows, row):
    """Ask for row number `row` of rows (N, columns), which lie one after the other.

    In Python itself it does nothing.
    """


@overload(prefetch, inline="always")
def _compiled(rows, row):
    return lambda rows, row: _prefetch(rows, row)


@intrinsic
def _prefetch(typing_context: Any, rows: Any, row: Any) -> tuple[Any, Callable[..., ir.Value]]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = builder.extract_value(array.strides, 0)  # bytes of a row
        start = builder.gep(builder.bitcast(array.data, _BYTES), [builder.mul(arguments[1], size)])
        with cgutils.for_range_slice(builder, _I64(0), size, _I64(CACHE_LINE)) as (offset, _):
            emit_prefetch(builder, builder.gep(start, [offset]))
        return context.get_dummy_value()

    return types.void(rows, types.int64), generate


def emit_prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Add the request for one cache line to a function which is being built; the address is a byte's."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, *[_I32] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [address, _I32(0), _I32(3), _I32(1)])  # to be read, into the first cache, data
