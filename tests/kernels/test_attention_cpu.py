"""Both attention kernels for CPUs against float64, on poisoned blocks: decode and prefill."""

import importlib.util
import os
import subprocess
import sys

import llvmlite.binding
import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.backends.attention_kernels import NUMBA_DTYPES, as_array
from minivllm.kernels import prefill_attention_cpu as module
from minivllm.kernels.compile_cpu import use_threads
from minivllm.kernels.matmul_cpu import ROWS, WIDTH
from minivllm.kernels.paged_attention_cpu import ENOUGH, compile_paged_attention_cpu
from minivllm.kernels.prefill_attention_cpu import VALUE_WIDTH
from tests.kernels.attention_case import Bug, Case, assert_matches


def packed_query(case):
    """The queries as the model has them: the first heads of packed rows, (T, Hq, D) with gaps."""
    extra = torch.full((len(case.query), 2 * case.heads[1], case.head_dim), torch.nan)
    return torch.cat((case.query, extra), dim=1)[:, : case.heads[0]]


def prefill(case, kernel=module):
    """Every sequence of a case, one call each; what no call writes stays NaN."""
    output, query = torch.full(case.query.shape, torch.nan), packed_query(case)
    caches = as_array(case.key_cache), as_array(case.value_cache)
    starts = case.query_start_loc.tolist()
    scratch = kernel.make_scratch(max(case.query_lens), max(case.lens), *case.heads, case.head_dim)
    for array in scratch:
        array.fill(np.nan)
    for r, num_keys in enumerate(case.lens):
        rows, blocks = slice(starts[r], starts[r + 1]), np.array(case.tables[r], np.int64)
        batch = blocks, num_keys, np.float32(case.scale), scratch
        kernel.prefill_attention_cpu(query[rows].numpy(), *caches, *batch, output[rows].numpy())
    return output


def decode(case):
    """The last query of every sequence, in one call."""
    tokens = case.query_start_loc[1:].long() - 1
    output, lens = torch.full(case.query.shape, torch.nan), np.array(case.lens, np.int32)
    caches = as_array(case.key_cache), as_array(case.value_cache)
    batch = tokens.numpy(), case.block_tables.numpy(), lens, np.float32(case.scale)
    kernel = compile_paged_attention_cpu(case.head_dim, NUMBA_DTYPES[case.key_cache.dtype])
    kernel(packed_query(case).numpy(), *caches, *batch, output.numpy())
    return output[tokens]


# (queries, keys): the edges of a tile of rows, of a panel of keys, of a block, and of nothing before it.
LENGTHS = [
    (1, 1),
    (2, 2),
    (ROWS, WIDTH),
    (ROWS + 1, WIDTH + 1),
    (5, WIDTH - 1),
    (33, 33),
    (70, 150),
    (3, 200),
]


@pytest.mark.parametrize("head_dim", [8, 16, 64, 80, 128])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (9, 3), (8, 1), (5, 1)])
def test_prefill_equals_float64_for_every_head_and_length(heads, head_dim):
    """Would catch a tile which reads past its rows or columns, a row of another head, a dead slot, a mask."""
    case = Case([n for _, n in LENGTHS], [q for q, _ in LENGTHS], heads, head_dim)
    assert_matches(prefill(case), case.expected_prefill(), torch.float32)


@pytest.mark.parametrize("bug", [bug for bug in Bug if bug is not Bug.NO_RESCALE])
def test_the_assertion_rejects_known_bugs_of_a_prefill(bug):
    """Negative control."""
    case = Case([150, 90], [70, 90], (6, 2))
    with pytest.raises(AssertionError):
        assert_matches(prefill(case), case.expected_prefill(bug=bug), torch.float32)


@given(
    data=st.data(),
    keys=st.lists(st.integers(1, 3 * WIDTH + 5), min_size=1, max_size=3),
    heads=st.sampled_from([(2, 2), (6, 2), (7, 1)]),
    block_size=st.sampled_from([1, 3, 16]),
    head_dim=st.sampled_from([8, VALUE_WIDTH, VALUE_WIDTH + 8]),
)
@settings(max_examples=40, deadline=None)
def test_any_prefill_equals_float64(data, keys, heads, block_size, head_dim):
    """Would catch a length for which tiles, panels and blocks end in an unforeseen way."""
    queries = [data.draw(st.integers(1, n)) for n in keys]
    case = Case(keys, queries, heads, head_dim, block_size)
    assert_matches(prefill(case), case.expected_prefill(), torch.float32)


@pytest.mark.parametrize("has_avx512", [False, True])
def test_a_prefill_is_right_for_the_other_width_of_registers(has_avx512, tmp_path, monkeypatch):
    """Would catch tiles which cover a head with this machine's registers only."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"avx512f": has_avx512})
    for name in ("matmul_cpu", "prefill_attention_cpu"):
        path = sys.modules[f"minivllm.kernels.{name}"].__file__
        spec = importlib.util.spec_from_file_location(f"minivllm.kernels.{name}_copy", path)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        monkeypatch.setitem(sys.modules, f"minivllm.kernels.{name}", copy)
    assert (48 if has_avx512 else 24) == copy.WIDTH
    for head_dim in (16, 64, 80):
        case = Case([n for _, n in LENGTHS], [q for q, _ in LENGTHS], (9, 3), head_dim)
        assert_matches(prefill(case, copy), case.expected_prefill(), torch.float32)


def test_large_scores_of_a_prefill_do_not_overflow():
    """Would catch exp without the largest score subtracted, and a largest score of zeros beyond the end."""
    case = Case([60, 130], [60, 40], (6, 2))
    case.query *= 500
    # Scores of some thousands have rounding errors of some 1e-4, and so have the weights.
    torch.testing.assert_close(prefill(case).double(), case.expected_prefill(), rtol=0, atol=0.02)
    case.query, case.key_cache = case.query.abs(), -case.key_cache.abs()  # every score is far below zero
    torch.testing.assert_close(prefill(case).double(), case.expected_prefill(), rtol=0, atol=0.02)


def test_a_row_of_a_prefill_has_the_same_bits_however_its_prompt_is_cut():
    """Would catch a sum whose order depends on the rows beside it: texts would change with the chunks."""
    case = Case([150], [150], (6, 2))
    whole = prefill(case)
    part = Case([150], [37], (6, 2), tables=case.tables, num_blocks=case.num_blocks)
    part.query, part.key_cache, part.value_cache = case.query[-37:], case.key_cache, case.value_cache
    assert torch.equal(prefill(part), whole[-37:])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(num_threads):
    """Would catch scratch memory shared by programs, and tiles dealt out but left out or done twice."""
    case = Case([150, 77, 200], [150, 77, 9], (9, 3))
    expected = prefill(case)
    before = use_threads(num_threads)
    try:
        assert torch.equal(prefill(case), expected)
    finally:
        use_threads(before)


@pytest.mark.parametrize("count", [1, ENOUGH - 1, ENOUGH, ENOUGH + 5])
@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("heads", [(4, 2), (9, 3), (5, 1)])
def test_decode_is_right_with_a_program_per_head_and_with_one_per_sequence(heads, block_size, count):
    """Would catch a head left out by one of the two ways to share the work, and a row asked for out of it."""
    case = Case([1 + 13 * r for r in range(count)], heads=heads, block_size=block_size)
    assert_matches(decode(case), case.expected_decode(), torch.float32)


@pytest.mark.parametrize("bug", Bug)
def test_the_assertion_rejects_known_bugs_of_a_decode(bug):
    """Negative control."""
    case = Case([1 + 40 * r for r in range(ENOUGH)], heads=(6, 2))
    case.query *= 4  # a maximum which grows from block to block
    with pytest.raises(AssertionError):
        assert_matches(decode(case), case.expected_decode(bug=bug), torch.float32)


def test_a_cache_in_bfloat16_is_read_as_what_it_holds():
    """Would catch the two halves of a pair exchanged, bits read as float32, and blocks asked for by wrong bytes."""
    case = Case([1 + 13 * r for r in range(ENOUGH)], heads=(9, 3))
    case.query_lens = [min(n, 9) for n in case.lens]
    case.query = torch.randn(sum(case.query_lens), 9, case.head_dim)
    unrounded = case.expected_decode(), case.expected_prefill()
    case.key_cache, case.value_cache = case.key_cache.bfloat16(), case.value_cache.bfloat16()
    for run, expected, wrong in zip(
        (decode, prefill), (case.expected_decode(), case.expected_prefill()), unrounded, strict=True
    ):
        assert_matches(run(case), expected, torch.float32)  # nothing but the cache is rounded
        with pytest.raises(AssertionError):  # negative control
            assert_matches(run(case), wrong, torch.float32)


def test_python_itself_runs_the_loops():
    """Would catch an instruction of LLVM's without a counterpart in Python: no debugger could step through."""
    script = """
import torch
from tests.kernels.attention_case import Case, assert_matches
from tests.kernels.test_attention_cpu import decode, prefill
case = Case([5, 18], [5, 2], (4, 2), head_dim=8, block_size=4)
assert_matches(prefill(case), case.expected_prefill(), torch.float32)
assert_matches(decode(case), case.expected_decode(), torch.float32)
case.key_cache, case.value_cache = case.key_cache.bfloat16(), case.value_cache.bfloat16()
assert_matches(prefill(case), case.expected_prefill(), torch.float32)
assert_matches(decode(case), case.expected_decode(), torch.float32)
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)
