"""Offsets beyond 2^31 elements, in a subprocess: a wrapped address ends the process it happens in.

The caches have 2.3 * 10^9 elements each, 4.6 GB in float16. `torch.empty` only reserves that much address
space; pages come to life when they are touched, and only a few blocks are.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import sys
from pathlib import Path
import torch

from tests.kernels.broken_copy import load_copy

B, S, Hkv, D = 140_000, 16, 8, 128
last = B - 1
assert last * S * Hkv * D > 2**31
caches = [torch.empty(B, S, Hkv, D, dtype=torch.float16) for _ in range(2)]
kernels = load_copy(Path(sys.argv[1]), "copied_kernels", EDITS)
paged_attention = kernels.paged_attention.paged_attention
"""
READ = """
small = [torch.randn(1, S, Hkv, D).half() for _ in range(2)]
for cache, block in zip(caches, small):
    cache[last] = block[0]
query, lens = torch.randn(1, 8, D).half(), torch.tensor([S], dtype=torch.int32)
starts = torch.tensor([0, 1], dtype=torch.int32)
def attend(k, v, block):
    table = torch.tensor([[block]], dtype=torch.int32)
    yield paged_attention(query, k, v, table, lens, 0.1)
    yield kernels.paged_attention.paged_attention_naive(query, k, v, table, lens, 0.1)
    yield kernels.prefill_attention.prefill_attention(query, k, v, table, lens, starts, 0.1)
for far, near in zip(attend(*caches, last), attend(*small, 0)):
    assert torch.equal(far, near) and far.abs().sum() > 0
"""
WRITE = """
key, value = torch.randn(2, 1, Hkv, D).half()
kernels.reshape_and_cache.reshape_and_cache(key, value, *caches, torch.tensor([last * S + 5]))
assert torch.equal(caches[0][last, 5], key[0]) and torch.equal(caches[1][last, 5], value[0])
"""
STRIDE = """
storage = torch.empty(2**31 + 10_000, dtype=torch.float16)
far = storage.as_strided((2, 4, 1, 64), (2**31 + 64, 64, 64, 1))
far[1] = torch.randn(4, 1, 64).half()
query, lens = torch.randn(1, 3, 64).half(), torch.tensor([4], dtype=torch.int32)
out = [
    paged_attention(query, kv, kv, torch.tensor([[block]], dtype=torch.int32), lens, 0.1)
    for kv, block in ((far, 1), (far[1:].clone(), 0))
]
assert torch.equal(*out) and out[0].abs().sum() > 0
"""
BROKEN = {
    "reading": (READ, ("online_softmax.py", "other=0).to(tl.int64)  # (BLOCK_N,)", "other=0).to(tl.int32)")),
    "writing": (WRITE, ("reshape_and_cache.py", "+ token).to(tl.int64)", "+ token).to(tl.int32)")),
}


def run_case(folder: Path, code: str, edits: list[tuple[str, str, str]]) -> subprocess.CompletedProcess:
    """Run setup and `code` in the interpreter, in a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    program = f"EDITS = {edits!r}\n{SETUP}{code}\nprint('done')"
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def wrapped(result: subprocess.CompletedProcess) -> bool:
    """Whether an address that wrapped ended the program: it left the program's memory, or a comparison failed.

    An assertion with a text, as of a stale edit, and every other exception say nothing of addresses.
    """
    if result.returncode in (-signal.SIGSEGV, -signal.SIGBUS):
        return True
    return result.returncode == 1 and result.stderr.splitlines()[-1:] == ["AssertionError"]


def test_offsets_beyond_32_bits(tmp_path):
    """Catches block * stride in 32 bits, which wraps around and reads or writes somewhere else."""
    result = run_case(tmp_path, READ + WRITE + STRIDE, edits=[])
    assert result.stdout == "done\n", f"exit {result.returncode}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("name", BROKEN)
def test_the_subprocess_notices_an_address_that_wraps(name, tmp_path):
    """Negative control: the same kernel with its block number in 32 bits crashes or gives another answer."""
    code, edit = BROKEN[name]
    result = run_case(tmp_path, code, [edit])
    assert wrapped(result), f"exit {result.returncode}\n{result.stderr[-2000:]}"


def test_an_error_of_another_kind_is_no_wrapped_address(tmp_path):
    """Would catch a control that is content with any crash, as of an interpreter that does not run at all."""
    code, (file, old, _) = BROKEN["reading"]
    result = run_case(tmp_path / "broken", code, [(file, old, f"{old[: old.index(')')]}).no_such_method()")])
    assert result.returncode == 1 and "no_such_method" in result.stderr and not wrapped(result)
    result = run_case(tmp_path / "stale", code, [(file, "no such line", "")])
    assert result.returncode == 1 and "stale edit" in result.stderr and not wrapped(result)
