"""Compile every kernel for chips that are not there: run by `test_kernel_aot.py`, not a test itself.

    TRITON_INTERPRET=0 python tests/kernels/aot_compile.py 80 90        -> one JSON object a line

It calls the public functions on small CPU tensors, with two things replaced. Triton's driver is one that says
"I am sm_90" and can do nothing else, so that a launch compiles and then stops; and the kernels' own `chip_of`
gives the same answer. So what is compiled is what would be launched there: same argument types, same
specialisation on alignment, same tile sizes from the same heuristics.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import kernels.common
from kernels import paged_attention as decode_module
from kernels import prefill_attention as prefill_module
from kernels.copy_blocks import copy_blocks
from kernels.heuristics import Chip, Tiles
from kernels.paged_attention import paged_attention, paged_attention_naive
from kernels.prefill_attention import prefill_attention
from kernels.reshape_and_cache import reshape_and_cache
from kernels.rms_norm import rms_norm
from kernels.rotary_embedding import rotary_embedding
from kernels.silu_and_mul import silu_and_mul

NUM_SMS = {75: 40, 80: 108, 86: 84, 89: 128, 90: 132, 120: 170}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# (Hq, Hkv, D): SmolLM2, Llama-3.1-8B, and the widest head there is (Gemma 2)
HEADS = {"smollm2": (9, 3, 64), "llama8b": (32, 8, 128), "wide": (16, 8, 256)}


def pretend_to_be(capability: int) -> None:
    """Make Triton and the heuristics believe in a chip of this compute capability."""
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: capability,  # the key of Triton's compile cache
            get_current_stream=lambda device: 0,
        )
    )
    chip = Chip(capability, NUM_SMS[capability])
    decode_module.chip_of = prefill_module.chip_of = lambda device: chip


class Recorder:
    """Compiles where a launch was asked for, and keeps the result."""

    def __init__(self) -> None:
        self.case: dict = {}
        JITFunction.__getitem__ = lambda kernel, grid: (
            lambda *args, **kwargs: self.compile(kernel, grid, *args, **kwargs)
        )

    def label(self, capability: int, dtype: str, heads: str) -> None:
        """Say what the next launches are."""
        self.case = {"capability": capability, "dtype": dtype, "heads": heads}

    def compile(self, kernel: JITFunction, grid: tuple, *args, **kwargs) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        ptx = compiled.asm["ptx"]
        tiles = {name: kwargs[name] for name in ("BLOCK_H", "BLOCK_M", "BLOCK_N") if name in kwargs}
        print(
            json.dumps(
                {
                    **self.case,
                    "kernel": kernel.fn.__name__,
                    "shared": compiled.metadata.shared,
                    "mma": "mma.sync" in ptx,
                    "wgmma": "wgmma" in ptx,
                    "async_copy": "cp.async" in ptx,
                    **tiles,
                }
            ),
            flush=True,
        )


def call_decode(heads: str, dtype: torch.dtype, num_splits: int, **options) -> None:
    """Launch the decode kernel, and the combine kernel if there are several splits."""
    num_heads, num_kv_heads, head_dim = HEADS[heads]
    kv = torch.zeros(80, 16, num_kv_heads, head_dim, dtype=dtype)  # (B, S, Hkv, D)
    table, lens = torch.zeros(1, 80, dtype=torch.int32), torch.tensor([1200], dtype=torch.int32)
    query = torch.zeros(1, num_heads, head_dim, dtype=dtype)
    paged_attention(query, kv, kv, table, lens, head_dim**-0.5, num_splits=num_splits, **options)


def call_prefill(heads: str, dtype: torch.dtype, query_len: int, **options) -> None:
    """Launch the prefill kernel; the heuristics choose its tiles by the query's length."""
    num_heads, num_kv_heads, head_dim = HEADS[heads]
    kv = torch.zeros(80, 16, num_kv_heads, head_dim, dtype=dtype)  # (B, S, Hkv, D)
    table, lens = torch.zeros(1, 80, dtype=torch.int32), torch.tensor([1200], dtype=torch.int32)
    query = torch.zeros(query_len, num_heads, head_dim, dtype=dtype)
    start = torch.tensor([0, query_len], dtype=torch.int32)
    prefill_attention(query, kv, kv, table, lens, start, head_dim**-0.5, **options)


def call_the_rest(dtype: torch.dtype) -> None:
    """Launch every other kernel, in Llama-3.1-8B's shapes."""
    kv = torch.zeros(80, 16, 8, 128, dtype=dtype)
    key, query = torch.zeros(4, 8, 128, dtype=dtype), torch.zeros(4, 32, 128, dtype=dtype)
    slots = torch.arange(4)
    reshape_and_cache(key, key, kv, kv, slots)
    copy_blocks(kv, kv, torch.tensor([[0, 1]]))
    lens = torch.tensor([70, 1, 1, 1], dtype=torch.int32)
    paged_attention_naive(query, kv, kv, torch.zeros(4, 80, dtype=torch.int32), lens, 0.1)
    x, weight = torch.zeros(4, 4096, dtype=dtype), torch.ones(4096, dtype=dtype)
    rms_norm(x, weight, 1e-5)
    rms_norm(x, weight, 1e-5, x.clone())
    rotary_embedding(slots, query, key, torch.zeros(80, 128))
    silu_and_mul(torch.zeros(4, 2 * 14336, dtype=dtype))


def compile_for(capability: int, recorder: Recorder) -> None:
    """Every kernel in float16; other dtypes, shapes and options where they can differ in what matters."""
    pretend_to_be(capability)
    recorder.label(capability, "float16", "llama8b")
    call_decode("llama8b", torch.float16, num_splits=4)
    call_prefill("llama8b", torch.float16, query_len=100)
    call_the_rest(torch.float16)
    recorder.label(capability, "float16", "wide")  # the widest rows: what needs most shared memory
    call_prefill("wide", torch.float16, query_len=100)
    if capability >= 80:
        recorder.label(capability, "bfloat16", "llama8b")
        call_decode("llama8b", torch.bfloat16, num_splits=1)
    if capability in (75, 86, 120):  # the chips with least of it, with the widest numbers too
        recorder.label(capability, "float32", "wide")
        call_decode("wide", torch.float32, num_splits=1)
        call_prefill("wide", torch.float32, query_len=100)
    if capability == 90:  # the chip with most tiles to choose from
        recorder.label(capability, "float16", "smollm2")
        call_decode("smollm2", torch.float16, num_splits=1, sliding_window=100, soft_cap=30.0)
        call_prefill("smollm2", torch.float16, query_len=100, sliding_window=100, soft_cap=30.0)
        recorder.label(capability, "bfloat16", "llama8b")
        call_prefill("llama8b", torch.bfloat16, query_len=1)
        call_prefill("llama8b", torch.bfloat16, query_len=1200)


def main(capabilities: list[int]) -> None:
    """Compile everything for each chip."""
    kernels.common.check_launchable = lambda tensor: None
    recorder = Recorder()
    for capability in capabilities:
        compile_for(capability, recorder)
    if 86 in capabilities:  # the negative control: what the heuristics must not choose there
        pretend_to_be(86)
        recorder.label(86, "float16", "too_large")
        call_prefill("wide", torch.float16, query_len=100, tiles=Tiles(128, 64, 8, 3))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
