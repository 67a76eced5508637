"""The work between two matrix products on a CPU: each piece one pass over its rows, compiled by Numba.

PyTorch does this work operator by operator, and each operator reads and writes all of its rows and costs some
microseconds before it begins. With 32 rows of 576 numbers, beginning is most of its time::

    h + u, then norm     add, norm of the row, square, divide, multiply, multiply  ->  rms_norm_cpu
    rotate Q and K       roll, multiply, multiply and add                          ->  rotary_embedding_cpu
    silu(gate) * up      silu, multiply                                            ->  silu_and_mul_cpu

    rms_norm_cpu, one row:   h_i  u_i  -->  t_i = h_i + u_i  -->  sum of t_i^2      first loop; t is still in
                                                |                      |            the core's cache when
                                                +-->  t_i / rms * w_i <+            the second one reads it

From `FEW_NUMBERS` numbers on the threads share the rows. With fewer, one thread takes them all, because
waking a second one and waiting for it takes 2 microseconds, as long as the whole norm of 32 rows.
SmolLM2-135M (hidden 576, 9 + 3 heads of 64, inner 1,536), microseconds on two cores of an AMD EPYC (Zen 5),
PyTorch's operators first and these loops second::

    rows     add and norm     rotation      activation
    1        7.0 / 0.9        6.8 / 0.4     4.3 / 0.5
    32       12 / 2.7         15 / 3.0      14 / 5.8
    1,024    1,460 / 66       1,950 / 60    470 / 230

**exp without a library.** Numba calls the C library's exp for each number, which keeps the compiler from
working on eight at once. `exp` here is arithmetic only::

    exp(x) = 2^t, t = x / ln 2      k = the whole number next to t        r = t - k, at most 1/2 in size
           = 2^k * 2^r              2^k: k + 127 are the exponent bits of a float32
                                    2^r: a polynomial of degree 6, Taylor's

Its error, for x from -87 to 0, is at most 3e-7 + 8e-8 abs(x) of the result (t is rounded); below -87 it stays
at 2^-126 and does not reach 0. All x here are 0 or less, so nothing overflows.

Oracles: `rms_norm_reference`, `rotary_embedding_reference` and `silu_and_mul_reference`, beside the Triton
kernels. vLLM V1: `csrc/cpu/layernorm.cpp`, `pos_encoding.cpp`, `activation.cpp`, `cpu_types_x86.hpp` (its
exp).
"""

import numba
import numpy as np

from .compile_cpu import FAST_MATH, inline, parallel

FEW_NUMBERS = 1 << 15
"""With fewer numbers, the first thread has nearly finished when a second one begins."""

_LOG2_E = np.float32(1.4426950408889634)
_HALF, _ONE, _LOWEST = np.float32(0.5), np.float32(1), np.float32(-126)
_P1, _P2, _P3 = np.float32(6.9314718e-1), np.float32(2.4022651e-1), np.float32(5.5504109e-2)
_P4, _P5, _P6 = np.float32(9.6181291e-3), np.float32(1.3333558e-3), np.float32(1.5403530e-4)


@inline
def exp(x):
    """e^x of a float32 which is 0 or less."""
    t = max(x * _LOG2_E, _LOWEST)
    k = np.floor(t + _HALF)
    r = t - k
    power = r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * _P6))))) + _ONE
    return power * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@inline
def _norm_row(hidden, update, weight, eps, normed, total):
    squares = np.float32(0)
    for i in range(len(hidden)):
        number = hidden[i] + update[i]
        total[i] = number
        squares += number * number
    inverse_rms = _ONE / np.sqrt(squares / np.float32(len(hidden)) + eps)
    for i in range(len(hidden)):
        normed[i] = total[i] * inverse_rms * weight[i]


@parallel(
    "void(float32[:,::1], float32[:,::1], float32[::1], float32, float32[:,::1], float32[:,::1])",
    fastmath=FAST_MATH,
)
def rms_norm_cpu(hidden, update, weight, eps, normed, total):
    """total = hidden + update, normed = total / rms(total) * weight; all (T, H) but weight (H,)."""
    if hidden.size < FEW_NUMBERS:
        for row in range(len(hidden)):
            _norm_row(hidden[row], update[row], weight, eps, normed[row], total[row])
    else:
        for row in numba.prange(len(hidden)):
            _norm_row(hidden[row], update[row], weight, eps, normed[row], total[row])


@inline
def _turn_heads(heads, turn, rotated):
    half = rotated.shape[1] // 2
    for head in range(len(rotated)):
        x, y = heads[head], rotated[head]
        for i in range(half):
            y[i] = x[i] * turn[i] - x[half + i] * turn[half + i]
        for i in range(half):
            y[half + i] = x[half + i] * turn[i] + x[i] * turn[half + i]


@parallel(
    "void(float32[:,:,::1], int64[::1], float32[:,::1], float32[:,:,::1])",
    fastmath=FAST_MATH,
)
def rotary_embedding_cpu(heads, positions, cos_sin, rotated):
    """Rotate the first heads of each token, as many as `rotated` (T, heads, D) has.

    heads (T, at least as many, D); positions (T,); cos_sin (max_position, D): D / 2 cosines, then D / 2
    sines. Into a tensor of its own: where input and output overlap, the compiler takes one number at a time.
    """
    if rotated.size < FEW_NUMBERS:
        for token in range(len(rotated)):
            _turn_heads(heads[token], cos_sin[positions[token]], rotated[token])
    else:
        for token in numba.prange(len(rotated)):
            _turn_heads(heads[token], cos_sin[positions[token]], rotated[token])


@inline
def _activate_row(gate_up, out):
    for i in range(len(out)):
        gate = gate_up[i]
        e = exp(-abs(gate))
        share = _ONE if gate >= 0 else e
        out[i] = gate * share / (_ONE + e) * gate_up[len(out) + i]


@parallel(
    "void(float32[:,::1], float32[:,::1])",
    fastmath=FAST_MATH,
)
def silu_and_mul_cpu(gate_up, out):
    """out (T, I) = silu of the first half of each row of gate_up (T, 2 * I), times the second half.

    silu(g) = g / (1 + e^-g) = g e^g / (1 + e^g): of the two forms, the one whose exponent is not positive.
    """
    if out.size < FEW_NUMBERS:
        for row in range(len(out)):
            _activate_row(gate_up[row], out[row])
    else:
        for row in numba.prange(len(out)):
            _activate_row(gate_up[row], out[row])
