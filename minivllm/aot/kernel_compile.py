"""Compile every kernel for chips that are not there, and say what the machine code needs.

    $ TRITON_INTERPRET=0 python -m minivllm.aot.kernel_compile 80 90       one JSON object per line

`python -m minivllm bench resources` calls this in a process of its own, because a process either compiles
kernels or interprets them. It calls the public functions on small CPU tensors, with two things replaced.
Triton's driver is one that says "I am sm_90" and can do nothing else, so that a launch compiles and then
stops; and the kernels' own `chip_of` gives the same answer. So what is compiled is what would be launched
there: same argument types, same specialisation on alignment, same tile sizes from the same heuristics.

The machine code is then read by NVIDIA's own tools, which come with Triton. Out of a line such as::

    Function _paged_attention_kernel: REG:123 STACK:0 SHARED:1024 LOCAL:0 ...

this module takes the registers of a thread and the stack, where values go for which there is no register.
And it counts the instructions between a label and the jump back to it: one turn of the loop over the keys.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import minivllm.kernels.common
from minivllm.aot.chips import CHIPS
from minivllm.kernels import online_softmax
from minivllm.kernels import paged_attention as decode_module
from minivllm.kernels import prefill_attention as prefill_module
from minivllm.kernels.common import tl, triton
from minivllm.kernels.heuristics import VARIANTS, Chip, Tiles
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive
from minivllm.kernels.prefill_attention import prefill_attention
from minivllm.kernels.reshape_and_cache import reshape_and_cache
from minivllm.kernels.rms_norm import rms_norm
from minivllm.kernels.rotary_embedding import rotary_embedding
from minivllm.kernels.silu_and_mul import silu_and_mul

# (Hq, Hkv, D): SmolLM2, Llama-3.1-8B, and the widest head there is (Gemma 2)
HEADS = {"smollm2": (9, 3, 64), "llama8b": (32, 8, 128), "wide": (16, 8, 256)}
TABLES = ("llama8b", "float16")  # what the report's tables are about
BLOCK_SIZE = 16
# `kernels/heuristics.py` has the same tiles for 80, 86, 89 and 120; so 86 and 89 get the fewest cases.
FULLY = (80, 90)
FLOAT32_TOO = (75, 80, 90, 120)


@triton.jit
def load_contiguous(
    key, value, table, start, high, key_stride_block, key_stride_slot, value_stride_block, value_stride_slot,
    S: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
    BY_BLOCK: tl.constexpr, DOT_F32: tl.constexpr,
):  # fmt: skip
    """`load_keys_and_values` without paging: token n lies in row n. For comparison; it is not launched."""
    n = start + tl.arange(0, BLOCK_N)
    row = n.to(tl.int64)
    mask = (n < high)[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
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


def dump(tool: str, option: str, cubin: Path) -> str:
    """What one of NVIDIA's tools, which come with Triton, says about machine code."""
    command = [getattr(knobs.nvidia, tool).path, option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(machine_code: str) -> list[int]:
    """Instructions of each loop, jump included, in the order in which the loops end.

    A jump to a label that has been passed closes a loop. (The jump to itself that ends a program does not.)
    """
    labels: dict[str, int] = {}
    count, lengths = 0, []
    for line in machine_code.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line.strip()):
            labels[label[1]] = count
        if not re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            continue
        count += 1
        jump = re.search(r"BRA.*?`\(\.(L_x_\d+)\)", line)
        if jump and labels.get(jump[1], count) < count - 1:
            lengths.append(count - labels[jump[1]])
    return lengths


def hinted(ptx: str, instruction: str) -> int:
    """How many of these instructions carry a hint to the L2 cache."""
    return sum(instruction in line and "cache_hint" in line for line in ptx.splitlines())


class Recorder:
    """Compiles where a launch was asked for, and prints what came out."""

    def __init__(self, folder: Path) -> None:
        self.case: dict = {}
        self.cubin = folder / "kernel.cubin"
        JITFunction.__getitem__ = lambda kernel, grid: (
            lambda *args, **kwargs: self.compile(kernel, grid, *args, **kwargs)
        )

    def label(self, capability: int, dtype: torch.dtype, heads: str, **more: object) -> None:
        """Say what the next launches are."""
        self.case = {
            "capability": capability,
            "dtype": str(dtype).removeprefix("torch."),
            "heads": heads,
            **more,
        }

    def compile(self, kernel: JITFunction, grid: tuple, *args: object, **kwargs: object) -> None:
        """Compile `kernel` for the arguments of a launch, and print a record of it.

        The stack is where values go for which there is no register: 0 bytes unless some were spilled. Loops
        over the keys are counted for the shape of the report's tables: each disassembly takes half a second.
        """
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        ptx = compiled.asm["ptx"]
        self.cubin.write_bytes(compiled.asm["cubin"])
        usage = dump("cuobjdump", "--dump-resource-usage", self.cubin)
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        is_counted = "seq_lens_ptr" in kernel.arg_names and (self.case["heads"], self.case["dtype"]) == TABLES
        lengths = loops(dump("nvdisasm", "-c", self.cubin)) if is_counted else []
        names = ("BLOCK_H", "BLOCK_M", "BLOCK_N", "D", "G", "NUM_SPLITS")
        record = {
            **self.case,
            "kernel": kernel.fn.__name__,
            "num_warps": compiled.metadata.num_warps,
            "shared": compiled.metadata.shared,
            "registers": registers,
            "stack": stack,
            # The loop over the keys is the longest; of two (`Switches.peel`) the first does most of the work.
            "loop_instructions": (lengths[0] if kwargs.get("PEEL") else max(lengths)) if lengths else None,
            "mma": "mma.sync" in ptx,
            "wgmma": "wgmma" in ptx,
            "async_copy": "cp.async" in ptx,
            # (loads, asynchronous copies) that tell the L2 cache how long to keep their bytes
            "hinted": [hinted(ptx, "ld.global"), hinted(ptx, "cp.async")],
            "loops": lengths,
            **{name: kwargs[name] for name in names if name in kwargs},
        }
        print(json.dumps(record), flush=True)


# -- launches ---------------------------------------------------------------------------------------


def small_cache(heads: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """K, V (B, S, Hkv, D), block table (1, B) and the length of one sequence of 1,200 tokens."""
    _, num_kv_heads, head_dim = HEADS[heads]
    kv = torch.zeros(80, BLOCK_SIZE, num_kv_heads, head_dim, dtype=dtype)
    return kv, kv, torch.zeros(1, 80, dtype=torch.int32), torch.tensor([1200], dtype=torch.int32)


def call_decode(heads: str, dtype: torch.dtype, num_splits: int = 1, **options) -> None:
    """Launch the decode kernel, and the combine kernel if there are several splits."""
    num_heads, _, head_dim = HEADS[heads]
    query, cache = torch.zeros(1, num_heads, head_dim, dtype=dtype), small_cache(heads, dtype)
    paged_attention(query, *cache, head_dim**-0.5, num_splits=num_splits, **options)


def call_prefill(heads: str, dtype: torch.dtype, query_len: int = 100, **options) -> None:
    """Launch the prefill kernel; the heuristics choose its tiles by the query's length."""
    num_heads, _, head_dim = HEADS[heads]
    query = torch.zeros(query_len, num_heads, head_dim, dtype=dtype)
    starts = torch.tensor([0, query_len], dtype=torch.int32)
    prefill_attention(query, *small_cache(heads, dtype), starts, head_dim**-0.5, **options)


def call_the_rest(heads: str, dtype: torch.dtype) -> None:
    """Launch every other kernel, in Llama-3.1-8B's shapes."""
    kv, _, _, _ = small_cache(heads, dtype)
    key, query = torch.zeros(4, 8, 128, dtype=dtype), torch.zeros(4, 32, 128, dtype=dtype)
    slots = torch.arange(4)
    reshape_and_cache(key, key, kv, kv, slots)
    lens = torch.tensor([70, 1, 1, 1], dtype=torch.int32)
    paged_attention_naive(query, kv, kv, torch.zeros(4, 80, dtype=torch.int32), lens, 0.1)
    x, weight = torch.zeros(4, 4096, dtype=dtype), torch.ones(4096, dtype=dtype)
    rms_norm(x, weight, 1e-5)
    rms_norm(x, weight, 1e-5, x.clone())
    rotary_embedding(slots, query, key, torch.zeros(80, 128))
    silu_and_mul(torch.zeros(4, 2 * 14336, dtype=dtype))


# (chips, heads, dtype, launch, options): every kernel in float16 everywhere; other dtypes, shapes and options
# where they can differ in what matters.
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
CASES: list[tuple[Collection[int], str, torch.dtype, Callable[..., None], dict]] = [
    (CHIPS, "llama8b", F16, call_the_rest, {}),
    (CHIPS, "llama8b", F16, call_decode, {"num_splits": 4}),
    (CHIPS, "llama8b", F16, call_prefill, {"query_len": 1200}),
    (CHIPS, "wide", F16, call_prefill, {}),
    # The widest numbers: what needs most shared memory, and products without tensor cores.
    *((FLOAT32_TOO, heads, F32, call_decode, {}) for heads in ("llama8b", "wide")),
    *((FLOAT32_TOO, heads, F32, call_prefill, {}) for heads in ("llama8b", "wide")),
    (FULLY, "llama8b", BF16, call_decode, {}),
    # As long as the heuristics distinguish.
    *((FULLY, "llama8b", BF16, call_prefill, {"query_len": length}) for length in (1, 100, 1200)),
    (FULLY, "wide", F16, call_decode, {}),
    (FULLY, "smollm2", F16, call_decode, {}),
    (FULLY, "smollm2", F16, call_prefill, {}),
]  # fmt: skip


def compile_for(capability: int, recorder: Recorder) -> None:
    """All cases for one chip."""
    pretend_to_be(capability)
    for chips, heads, dtype, call, options in CASES:
        if capability in chips:
            recorder.label(capability, dtype, heads)
            call(heads, dtype, **options)


def compile_without_paging(capability: int, recorder: Recorder) -> None:
    """The attention kernels of Llama-3.1-8B as if K and V lay in one piece: what does paging add?

    Triton finds the function by its name when it compiles, so the kernels must not have been compiled before.
    """
    pretend_to_be(capability)
    online_softmax.load_keys_and_values = load_contiguous
    recorder.label(capability, F16, "llama8b", contiguous=True)
    call_decode("llama8b", F16, num_splits=4)
    call_prefill("llama8b", F16, query_len=1200)


def compile_variants(capability: int, recorder: Recorder) -> None:
    """The attention kernels of Llama-3.1-8B with each of `Switches` turned on alone, and with all of them."""
    pretend_to_be(capability)
    for name, switches in VARIANTS.items():
        recorder.label(capability, F16, "llama8b", variant=name)
        call_decode("llama8b", F16, num_splits=4, switches=switches)
        call_prefill("llama8b", F16, query_len=1200, switches=switches)


def compile_evict_first(capability: int, recorder: Recorder) -> None:
    """Decode in which every load asks for its bytes, read once, to leave the L2 cache first.

    It is no switch of the kernels, because Triton's asynchronous copies leave the hint out. In the control,
    with one stage and so without such copies, it is there.
    """
    pretend_to_be(capability)
    # A cache of its own: Triton does not notice that its `tl.load` is another one.
    knobs.cache.dir = str(recorder.cubin.parent)
    load = tl.load
    tl.load = wraps(load)(partial(load, eviction_policy="evict_first"))
    for name, stages in (("evict first", 3), ("evict first, one stage", 1)):
        recorder.label(capability, F16, "llama8b", variant=name)
        call_decode("llama8b", F16, num_splits=4, tiles=Tiles(16, 64, 4, stages))
    tl.load = load


def compile_too_large(recorder: Recorder) -> None:
    """The negative control: what the heuristics must not choose on an RTX 3090, or on an A100."""
    for capability, name, heads, tiles in (
        (86, "too_large", "wide", Tiles(128, 64, 8, 3)),
        (80, "spills", "llama8b", Tiles(64, 64, 4, 3)),
    ):
        pretend_to_be(capability)
        recorder.label(capability, F16, name)
        call_prefill(heads, F16, tiles=tiles)


OTHERS: dict[str, Callable[[int, Recorder], None]] = {
    "contiguous": compile_without_paging,
    "variants": compile_variants,
    "evict_first": compile_evict_first,
}


def main(arguments: list[str]) -> None:
    """`80 90`: everything for these chips. `contiguous 80 90`, or another of `OTHERS`: that. `too_large`: the
    control.
    """
    minivllm.kernels.common.check_launchable = lambda tensor: None
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        if arguments == ["too_large"]:
            compile_too_large(recorder)
        elif arguments[0] in OTHERS:
            for capability in map(int, arguments[1:]):
                OTHERS[arguments[0]](capability, recorder)
        else:
            for capability in map(int, arguments):
                compile_for(capability, recorder)


if __name__ == "__main__":
    main(sys.argv[1:])
