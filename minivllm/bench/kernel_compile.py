"""Compile every kernel for chips that are not there, and say what the machine code needs.

    $ TRITON_INTERPRET=0 python -m minivllm.bench.kernel_compile 80 90       one JSON object a line

`python -m minivllm bench resources` calls this in a process of its own, because a process either compiles
kernels or interprets them. It calls the public functions on small CPU tensors, with two things replaced.
Triton's driver is one that says "I am sm_90" and can do nothing else, so that a launch compiles and then
stops; and the kernels' own `chip_of` gives the same answer. So what is compiled is what would be launched
there: same argument types, same specialisation on alignment, same tile sizes from the same heuristics.

The machine code is then read by NVIDIA's own tools, which come with Triton. Out of a line such as::

    Function _paged_attention_kernel: REG:106 STACK:0 SHARED:1024 LOCAL:0 ...

it takes the registers of a thread and the stack, which is where values go for which there is no register.
And it counts the instructions between a label and the jump back to it: one turn of the loop over the keys.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import minivllm.kernels.common
from minivllm.bench.chips import CHIPS
from minivllm.kernels import paged_attention as decode_module
from minivllm.kernels import prefill_attention as prefill_module
from minivllm.kernels.common import tl, triton
from minivllm.kernels.copy_blocks import copy_blocks
from minivllm.kernels.heuristics import Chip, Tiles
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive
from minivllm.kernels.prefill_attention import prefill_attention
from minivllm.kernels.reshape_and_cache import reshape_and_cache
from minivllm.kernels.rms_norm import rms_norm
from minivllm.kernels.rotary_embedding import rotary_embedding
from minivllm.kernels.silu_and_mul import silu_and_mul

# (Hq, Hkv, D): SmolLM2, Llama-3.1-8B, and the widest head there is (Gemma 2)
HEADS = {"smollm2": (9, 3, 64), "llama8b": (32, 8, 128), "wide": (16, 8, 256)}
BLOCK_SIZE = 16
# `kernels/heuristics.py` has the same tiles for 80, 86, 89 and 120; so 86 and 89 get the fewest cases.
FULLY = (80, 90)
FLOAT32_TOO = (75, 80, 90, 120)


@triton.jit
def load_contiguous(
    key,
    value,
    table,
    n,
    in_range,
    d_mask,
    key_stride_block,
    key_stride_slot,
    value_stride_block,
    value_stride_slot,
    S: tl.constexpr,
    DOT_F32: tl.constexpr,
):
    """`load_keys_and_values` without paging: token n lies in row n. For comparison; nobody launches it."""
    row = n.to(tl.int64)
    mask = in_range[:, None] & d_mask[None, :]
    k = tl.load(key + (row * key_stride_slot)[:, None], mask=mask, other=0.0)
    v = tl.load(value + (row * value_stride_slot)[:, None], mask=mask, other=0.0)
    return k, v


def pretend_to_be(capability: int) -> None:
    """Make Triton and the heuristics believe in a chip of this compute capability."""
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: capability,  # the key of Triton's compile cache
            get_current_stream=lambda device: 0,
        )
    )
    chip = Chip(capability, CHIPS[capability].num_sms)
    decode_module.chip_of = prefill_module.chip_of = lambda device: chip


def resource_usage(cubin: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack: 0 unless values were spilled."""
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def longest_loop(cubin: Path) -> int | None:
    """Instructions of the longest loop, jump included; None if there is no loop.

    A jump to a label that has been passed closes a loop. (A program ends in a jump to itself, which is none.)
    """
    command = [knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    count, lengths = 0, []
    for line in text.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line.strip()):
            labels[label[1]] = count
        if not re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            continue
        count += 1
        jump = re.search(r"BRA.*?`\(\.(L_x_\d+)\)", line)
        if jump and labels.get(jump[1], count) < count - 1:
            lengths.append(count - labels[jump[1]])
    return max(lengths, default=None)


class Recorder:
    """Compiles where a launch was asked for, and prints what came out."""

    def __init__(self, folder: Path) -> None:
        self.case: dict = {}
        self.cubin = folder / "kernel.cubin"
        JITFunction.__getitem__ = lambda kernel, grid: (
            lambda *args, **kwargs: self.compile(kernel, grid, *args, **kwargs)
        )

    def label(self, capability: int, dtype: str, heads: str, **more: object) -> None:
        """Say what the next launches are."""
        self.case = {"capability": capability, "dtype": dtype, "heads": heads, **more}

    def compile(self, kernel: JITFunction, grid: tuple, *args: object, **kwargs: object) -> None:
        """Compile `kernel` for the arguments of a launch, and print a record of it."""
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        ptx = compiled.asm["ptx"]
        self.cubin.write_bytes(compiled.asm["cubin"])
        registers, stack = resource_usage(self.cubin)
        names = ("BLOCK_H", "BLOCK_M", "BLOCK_N", "D", "G", "NUM_SPLITS")
        record = {
            **self.case,
            "kernel": kernel.fn.__name__,
            "num_warps": compiled.metadata.num_warps,
            "shared": compiled.metadata.shared,
            "registers": registers,
            "stack": stack,
            "loop_instructions": longest_loop(self.cubin),
            "mma": "mma.sync" in ptx,
            "wgmma": "wgmma" in ptx,
            "async_copy": "cp.async" in ptx,
            **{name: kwargs[name] for name in names if name in kwargs},
        }
        print(json.dumps(record), flush=True)


def call_decode(heads: str, dtype: torch.dtype, num_splits: int, **options) -> None:
    """Launch the decode kernel, and the combine kernel if there are several splits."""
    num_heads, num_kv_heads, head_dim = HEADS[heads]
    kv = torch.zeros(80, BLOCK_SIZE, num_kv_heads, head_dim, dtype=dtype)  # (B, S, Hkv, D)
    table, lens = torch.zeros(1, 80, dtype=torch.int32), torch.tensor([1200], dtype=torch.int32)
    query = torch.zeros(1, num_heads, head_dim, dtype=dtype)
    paged_attention(query, kv, kv, table, lens, head_dim**-0.5, num_splits=num_splits, **options)


def call_prefill(heads: str, dtype: torch.dtype, query_len: int, **options) -> None:
    """Launch the prefill kernel; the heuristics choose its tiles by the query's length."""
    num_heads, num_kv_heads, head_dim = HEADS[heads]
    kv = torch.zeros(80, BLOCK_SIZE, num_kv_heads, head_dim, dtype=dtype)  # (B, S, Hkv, D)
    table, lens = torch.zeros(1, 80, dtype=torch.int32), torch.tensor([1200], dtype=torch.int32)
    query = torch.zeros(query_len, num_heads, head_dim, dtype=dtype)
    start = torch.tensor([0, query_len], dtype=torch.int32)
    prefill_attention(query, kv, kv, table, lens, start, head_dim**-0.5, **options)


def call_the_rest(dtype: torch.dtype) -> None:
    """Launch every other kernel, in Llama-3.1-8B's shapes."""
    kv = torch.zeros(80, BLOCK_SIZE, 8, 128, dtype=dtype)
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
    call_the_rest(torch.float16)
    call_decode("llama8b", torch.float16, num_splits=4)
    call_prefill("llama8b", torch.float16, query_len=1200)
    recorder.label(capability, "float16", "wide")
    call_prefill("wide", torch.float16, query_len=100)
    # The widest numbers: what needs most shared memory, and products without tensor cores.
    for heads in ("llama8b", "wide") if capability in FLOAT32_TOO else ():
        recorder.label(capability, "float32", heads)
        call_decode(heads, torch.float32, num_splits=1)
        call_prefill(heads, torch.float32, query_len=100)
    if capability not in FULLY:
        return
    recorder.label(capability, "bfloat16", "llama8b")
    call_decode("llama8b", torch.bfloat16, num_splits=1)
    for query_len in (1, 100, 1200):  # as long as the heuristics distinguish
        call_prefill("llama8b", torch.bfloat16, query_len)
    recorder.label(capability, "float16", "wide")
    call_decode("wide", torch.float16, num_splits=1)
    recorder.label(capability, "float16", "smollm2")
    call_decode("smollm2", torch.float16, num_splits=1, sliding_window=100, soft_cap=30.0)
    call_prefill("smollm2", torch.float16, query_len=100, sliding_window=100, soft_cap=30.0)


def compile_without_paging(capability: int, recorder: Recorder) -> None:
    """The attention kernels of Llama-3.1-8B as if K and V lay in one piece: what does paging add?

    Triton finds the function by its name when it compiles, so the kernels must not have been compiled before.
    """
    pretend_to_be(capability)
    decode_module.load_keys_and_values = prefill_module.load_keys_and_values = load_contiguous
    recorder.label(capability, "float16", "llama8b", contiguous=True)
    call_decode("llama8b", torch.float16, num_splits=4)
    call_prefill("llama8b", torch.float16, query_len=1200)


def compile_too_large(recorder: Recorder) -> None:
    """The negative control: what the heuristics must not choose on an RTX 3090, or on an A100."""
    pretend_to_be(86)
    recorder.label(86, "float16", "too_large")
    call_prefill("wide", torch.float16, query_len=100, tiles=Tiles(128, 64, 8, 3))
    pretend_to_be(80)
    recorder.label(80, "float16", "spills")
    call_prefill("llama8b", torch.float16, query_len=100, tiles=Tiles(64, 64, 4, 3))


def main(arguments: list[str]) -> None:
    """`80 90`: everything for these chips. `contiguous 80 90`: without paging. `too_large`: the control."""
    minivllm.kernels.common.check_launchable = lambda tensor: None
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        if arguments == ["too_large"]:
            compile_too_large(recorder)
        elif arguments[0] == "contiguous":
            for capability in arguments[1:]:
                compile_without_paging(int(capability), recorder)
        else:
            for capability in arguments:
                compile_for(int(capability), recorder)


if __name__ == "__main__":
    main(sys.argv[1:])
