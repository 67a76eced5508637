"""Every kernel compiles for every chip, and fits into it: no GPU is needed to know.

The compiling is done by `minivllm/aot/kernel_compile.py` in processes side by side, without the interpreter.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minivllm.aot import resources
from minivllm.aot.chips import CHIPS
from minivllm.aot.resources import DECODE, LLAMA, NAIVE, PREFILL, compile_in_processes, decode_bound, find

ROOT = Path(__file__).parents[2]
KERNELS = {
    "_paged_attention_kernel",
    "_combine_kernel",
    "_naive_kernel",
    "_prefill_kernel",
    "_reshape_and_cache_kernel",
    "_rms_norm_kernel",
    "_rotary_kernel",
    "_silu_and_mul_kernel",
}
# The start of a program in which a launch compiles for an H100, notes the kernel's hash, and runs nothing.
NOTE_HASHES = """
import minivllm.kernels.common
from minivllm.aot import kernel_compile

hashes = set()
def launch(kernel, grid):
    return lambda *args, **kwargs: hashes.add(kernel.run(*args, grid=grid, warmup=True, **kwargs).hash)
kernel_compile.JITFunction.__getitem__ = launch
kernel_compile.pretend_to_be(90)
minivllm.kernels.common.check_launchable = lambda tensor: None
"""
# Batches that differ in what changes from step to step; prints how many kernels Triton makes of them.
VARIANTS = (
    NOTE_HASHES
    + """
import itertools, torch
from minivllm.kernels.paged_attention import paged_attention
from minivllm.kernels.prefill_attention import prefill_attention

kv = torch.zeros(8, 16, 2, 64, dtype=torch.float16)
for R, width in itertools.product((1, 5, 16), (1, 7, 16)):
    tables, lens = torch.zeros(R, width, dtype=torch.int32), torch.full((R,), 8, dtype=torch.int32)
    starts = torch.arange(R + 1, dtype=torch.int32) * 8
    query = torch.zeros(8 * R, 4, 64, dtype=torch.float16)
    prefill_attention(query, kv, kv, tables, lens, starts, SCALE)
    paged_attention(query[:R], kv, kv, tables, lens, SCALE, num_splits=1)
print(len(hashes))
"""
)

# The stages of one kernel as its tiles ask for, and then under the option.
ONE_STAGE = """
import importlib.util, torch
from types import SimpleNamespace
import minivllm.kernels.common
from minivllm.aot import kernel_compile
from minivllm.kernels.paged_attention import paged_attention
from triton.runtime.jit import JITFunction

def launch(kernel, grid):
    return lambda *args, **kwargs: print(
        kernel.run(*args, grid=grid, warmup=True, **kwargs).metadata.num_stages)
JITFunction.__getitem__ = launch
kernel_compile.pretend_to_be(90)
minivllm.kernels.common.check_launchable = lambda tensor: None
spec = importlib.util.spec_from_file_location("conftest", "{root}/tests/kernels/conftest.py")
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
for num_stages in (None, 1):
    conftest.pytest_configure(SimpleNamespace(getoption=lambda name, default=None: num_stages))
    kernel_compile.call_decode("smollm2", torch.float16)
"""

# The launches of the tests that choose tiles themselves, compiled for one chip; prints the shared memory of each.
TILES_OF_TESTS = """
import contextlib, itertools, sys, pytest, torch
import minivllm.kernels.common
from minivllm.aot import kernel_compile
from tests.kernels import test_kernel_paged_attention as decode, test_kernel_prefill_attention as prefill

def launch(kernel, grid):
    return lambda *args, **kwargs: print(kernel.run(*args, grid=grid, warmup=True, **kwargs).metadata.shared)
kernel_compile.JITFunction.__getitem__ = launch
kernel_compile.pretend_to_be(int(sys.argv[1]))
minivllm.kernels.common.check_launchable = lambda tensor: None
decode.chip_of = kernel_compile.decode_module.chip_of
decode.assert_matches = prefill.assert_matches = lambda *arguments: None  # nothing was computed
for test in (
    decode.test_any_head_dim_with_nan_beside_each_row, prefill.test_any_head_dim_with_nan_beside_each_row,
    decode.test_tile_size_and_block_size_are_independent,
):
    names, values = zip(*(mark.args for mark in test.pytestmark))
    for each in itertools.product(*values):
        with contextlib.suppress(pytest.skip.Exception):
            test(**dict(zip(names, each)), device=torch.device("cpu"))
"""

# What `bench kernels` times beside the tile of a long prompt; prints its record.
DEEPER = """
import tempfile
from dataclasses import replace
from pathlib import Path
import minivllm.kernels.common
from minivllm.aot import kernel_compile
from minivllm.kernels.heuristics import Chip, prefill_tiles

minivllm.kernels.common.check_launchable = lambda tensor: None
with tempfile.TemporaryDirectory() as folder:
    recorder = kernel_compile.Recorder(Path(folder))
    kernel_compile.pretend_to_be(90)
    recorder.label(90, kernel_compile.F16, "llama8b")
    tiles = replace(prefill_tiles(Chip(90, 132), 128, 2, 1200), num_stages=5)
    kernel_compile.call_prefill("llama8b", kernel_compile.F16, query_len=1200, tiles=tiles)
"""


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """One record for each compilation as it would be launched: chip, dtype, kernel, what it needs."""
    return compile_in_processes([["75", "80", "89"], ["86", "90", "120"]])


@pytest.fixture(scope="module")
def controls() -> list[dict]:
    """Tiles that the heuristics must not choose, and attention without a block table."""
    return compile_in_processes([["too_large"], ["contiguous", "80", "90"]])


@pytest.fixture(scope="module")
def variants() -> list[dict]:
    """The attention kernels with each switch turned on, and with a hint to the L2 cache."""
    return compile_in_processes([["variants", "90"], ["evict_first", "90"]])


def assert_fits(records: list[dict]) -> None:
    """The one assertion on sizes: shared memory within the chip's limit, and no register in memory."""
    for record in records:
        limit = CHIPS[record["capability"]].shared_kib_per_program * 1024
        assert record["shared"] <= limit, f"needs {record['shared']} bytes, the chip has {limit}: {record}"
        assert record["stack"] == 0, f"{record['stack']} bytes of registers spilled to memory: {record}"


@pytest.mark.parametrize("capability", CHIPS)
def test_every_kernel_compiles_and_fits(capability, compiled):
    """Catches code the compiler refuses but the interpreter runs, and tiles too large for the chip."""
    mine = find(compiled, capability=capability)
    assert {record["kernel"] for record in mine} == KERNELS
    assert_fits(mine)


@pytest.mark.parametrize("capability", [75, 86])
def test_the_tiles_of_the_tests_fit_into_the_smallest_chips(capability):
    """Would catch tests that fail on a right kernel: tiles in float32 which only an H100 has the memory for."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TILES_OF_TESTS, str(capability)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    shared = list(map(int, run.stdout.split()))
    assert len(shared) > 15 and max(shared) <= CHIPS[capability].shared_kib_per_program * 1024
    assert max(shared) > 32 * 1024  # the control: it is the tiles of attention that were looked at


def test_a_long_prompts_tile_on_an_h100_has_no_neighbour_and_room_for_more_stages(compiled):
    """Would catch 5 stages that do not fit or spill, and a docstring which says of this tile what holds for others."""
    (chosen,) = find(compiled, capability=90, kernel=PREFILL, BLOCK_M=128, **LLAMA)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", DEEPER], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    deeper = json.loads(run.stdout)
    assert deeper["BLOCK_M"] == 128 and deeper["shared"] > chosen["shared"]
    assert_fits([deeper])
    for record in (chosen, deeper):
        sizes = {"registers": record["registers"], "shared_bytes": record["shared"], "num_warps": 8}
        assert CHIPS[90].programs_per_sm(**sizes) == 1


def test_the_limit_rejects_tiles_that_are_too_large(controls):
    """Negative control: tiles for an H100 on an RTX 3090 do not pass the assertion."""
    (too_large,) = find(controls, heads="too_large")
    with pytest.raises(AssertionError, match="the chip has 101376"):
        assert_fits([too_large])


def test_the_limit_rejects_tiles_that_spill(controls):
    """Negative control: 64 rows of 64 keys on an A100, what the heuristics chose until this was looked at."""
    (spills,) = find(controls, heads="spills")
    with pytest.raises(AssertionError, match="spilled to memory"):
        assert_fits([spills])


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_decode_uses_tensor_cores_and_asynchronous_copies(capability, compiled):
    """Catches a dot that falls back to ordinary multiplications, which halves the bandwidth reached."""
    records = find(compiled, capability=capability, kernel=DECODE, dtype="float16")
    records += find(compiled, capability=capability, kernel=DECODE, dtype="bfloat16")
    assert records and all(record["mma"] and record["async_copy"] for record in records)


def test_float32_is_computed_exactly_and_not_on_tensor_cores(compiled):
    """Catches TF32, which rounds float32 to 10 bits; and shows that the flag above can be false."""
    attention = [r for r in find(compiled, dtype="float32") if "BLOCK_N" in r]
    assert {record["capability"] for record in attention} == {75, 80, 90, 120} and len(attention) == 16
    assert not any(record["mma"] or record["wgmma"] for record in attention)


def test_prefill_uses_warp_group_products_on_hopper(compiled):
    """Catches tiles of fewer than 64 rows for long queries: Hopper's wgmma needs 64."""
    prefill = [r for r in find(compiled, capability=90, kernel=PREFILL) if r["dtype"] != "float32"]
    wide = [record for record in prefill if record["BLOCK_M"] >= 64]
    assert wide and all(record["wgmma"] for record in wide)
    narrow = [record for record in prefill if record["BLOCK_M"] < 64]
    assert narrow and not any(record["wgmma"] for record in narrow)


@pytest.mark.parametrize("capability", CHIPS)
def test_decode_can_keep_the_memory_busy(capability, compiled):
    """Catches tiles with which full bandwidth is impossible: too little under way, or too many instructions."""
    (record,) = find(compiled, capability=capability, kernel=DECODE, **LLAMA)
    bound = decode_bound(record, CHIPS[capability])
    assert bound.programs >= 2
    assert bound.bytes_under_way >= 2 * CHIPS[capability].bytes_under_way_needed()
    assert bound.issue_share < 0.5


@pytest.mark.parametrize("capability", [80, 90])
def test_the_naive_lesson_cannot(capability, compiled):
    """Negative control of the bound, and the reason for grouped heads: it has more to do than there is time."""
    (record,) = find(compiled, capability=capability, kernel=NAIVE, **LLAMA)
    assert decode_bound(record, CHIPS[capability]).issue_share > 1


@pytest.mark.parametrize("capability", [80, 90])
def test_paging_adds_instructions_and_not_many(capability, compiled, controls):
    """Catches a block table looked up for each element instead of each key, and a comparison of a thing with itself."""
    for kernel in (DECODE, PREFILL):
        (paged,) = find(compiled, capability=capability, kernel=kernel, **LLAMA)
        (contiguous,) = find(controls, capability=capability, kernel=kernel, contiguous=True)
        assert paged["BLOCK_N"] == contiguous["BLOCK_N"]
        assert 1.0 < paged["loop_instructions"] / contiguous["loop_instructions"] < 1.5


@pytest.mark.parametrize(("scale", "expected"), [("0.1", "2"), ("1 if R == 1 else 2", "4")])
def test_no_batch_size_and_no_table_width_needs_a_kernel_of_its_own(scale, expected):
    """Catches seconds of compiling in the middle of serving; with an argument that Triton does specialise as control."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    code = VARIANTS.replace("SCALE", scale)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == expected + "\n", run.stderr[-2000:]


def test_programs_on_a_multiprocessor_by_hand():
    """Catches a limit that is forgotten or rounded the wrong way: the example in `chips.py`, limit by limit."""
    h100 = CHIPS[90]
    assert h100.programs_per_sm(registers=123, shared_bytes=39168, num_warps=4) == 4  # registers: 4.16
    assert h100.programs_per_sm(registers=32, shared_bytes=39168, num_warps=4) == 5  # shared memory: 5.8
    assert h100.programs_per_sm(registers=32, shared_bytes=0, num_warps=4) == 16  # warps
    assert h100.programs_per_sm(registers=32, shared_bytes=227 * 1024, num_warps=4) == 1
    assert h100.programs_per_sm(registers=32, shared_bytes=227 * 1024 + 1, num_warps=4) == 0
    assert h100.bytes_under_way_needed() == pytest.approx(25.4e3, rel=1e-2)
    assert h100.bytes_per_cycle() == pytest.approx(12.8, rel=1e-2)


@pytest.mark.parametrize(("kernel", "switch", "at_most"), [
    (DECODE, "masked tail", 0.90), (DECODE, "one number per block", 0.90), (DECODE, "all three", 0.75),
    (PREFILL, "masked tail", 0.85), (PREFILL, "one number per block", 0.96), (PREFILL, "all three", 0.85),
])  # fmt: skip
def test_a_switch_saves_instructions_and_keeps_what_matters(kernel, switch, at_most, compiled, variants):
    """Would catch a variant that the compiler makes worse: without its hint, "one number per block" takes 2.5 times
    the instructions and has no asynchronous copies.
    """
    (before,) = find(compiled, capability=90, kernel=kernel, **LLAMA)
    (after,) = find(variants, capability=90, kernel=kernel, variant=switch)
    assert after["loop_instructions"] <= at_most * before["loop_instructions"]
    assert after["async_copy"] and (after["mma"], after["wgmma"]) == (before["mma"], before["wgmma"])
    assert_fits([after])  # (on an A100 all three together put two registers into memory)


def test_asynchronous_copies_take_no_hint_for_the_cache(variants):
    """Would catch a Triton that passes `evict_first` on: then it is worth a switch, and a measurement."""
    (pipelined,) = find(variants, kernel=DECODE, variant="evict first")
    (control,) = find(variants, kernel=DECODE, variant="evict first, one stage")
    assert pipelined["async_copy"] and pipelined["hinted"][1] == 0
    assert not control["async_copy"] and control["hinted"][0] > 2 * pipelined["hinted"][0] > 0


def test_the_option_num_stages_reaches_the_compiler():
    """Would catch a control run that is the same run again: `--num-stages 1` of the kernel tests."""
    code = ONE_STAGE.format(root=str(ROOT))
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == ["3", "1"], run.stderr


def test_an_unknown_chip_is_refused_before_anything_is_compiled():
    """Catches a KeyError half a minute later."""
    with pytest.raises(ValueError, match="no chip of capability 70; there are 75, 80"):
        resources.run(type("Args", (), {"capability": [90, 70], "output_json": None})())


def test_the_report_shows_each_chip_and_what_does_not_fit(compiled, controls, capsys):
    """Catches a report that leaves out a chip, hides what spills, or compares nothing."""
    result = {"provenance": {"versions": {"triton": "3"}}, "compiled": compiled + controls}
    resources.print_report(result)
    printed = capsys.readouterr().out
    for chip in CHIPS.values():
        assert chip.name in printed
    assert "2 with registers in memory" in printed and "A100 80GB _prefill_kernel float16 spills" in printed
    assert re.search(r"H100 SXM +decode", printed) and not re.search(r"RTX 4090 +decode", printed)
