"""What the wrappers refuse, what they say, and that importing Triton in any order works."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minivllm.kernels
import minivllm.kernels.common
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive
from minivllm.kernels.prefill_attention import prefill_attention
from minivllm.kernels.reshape_and_cache import reshape_and_cache
from minivllm.kernels.rms_norm import rms_norm
from minivllm.kernels.rotary_embedding import rotary_embedding
from minivllm.kernels.silu_and_mul import silu_and_mul
from tests.kernels.attention_case import Case

ROOT = Path(__file__).resolve().parents[2]
# position in decode_args, replacement, part of the message
WRONG_DECODE = {
    "query axes": (0, lambda t: t[0], ValueError, r"query must have shape \(N, Hq, 64\), got \(4, 64\)"),
    "query head_dim": (0, lambda t: t[..., :32], ValueError, r"got \(2, 4, 32\)"),
    "query heads": (0, lambda t: t[:, :3], ValueError, "3 query heads and 2 KV heads"),
    "query dtype": (0, lambda t: t.half(), TypeError, "must share one dtype, got query torch.float16"),
    "query rows": (0, lambda t: t[:1], ValueError, "2 rows, got 1"),
    "query strides": (0, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), ValueError, "last axis"),
    "not a tensor": (1, lambda t: t.tolist(), TypeError, "key_cache must be a torch.Tensor, got list"),
    "cache dtype": (1, lambda t: t.int(), TypeError, "torch.float32, torch.float16, torch.bfloat16"),
    "cache shapes": (2, lambda t: t[:-1], ValueError, "value_cache must have shape"),
    "table dtype": (
        3,
        lambda t: t.float(),
        TypeError,
        "block_tables must have one of the dtypes torch.int32",
    ),
    "table rows": (3, lambda t: t[:1], ValueError, r"block_tables must have shape \(2, max_blocks\)"),
    "lens axes": (4, lambda t: t[None], ValueError, r"seq_lens must have shape \(R,\), got \(1, 2\)"),
    "lens dtype": (4, lambda t: t.float(), TypeError, "seq_lens"),
}


@pytest.mark.parametrize("name", WRONG_DECODE)
def test_attention_refuses_what_would_read_other_memory(name, device):
    """Catches a check that is missing: a kernel trusts its arguments completely."""
    case = Case([20, 33], device=device)
    position, change, error, message = WRONG_DECODE[name]
    args = list(case.decode_args())
    args[position] = change(args[position])
    with pytest.raises(error, match=message):
        paged_attention(*args)
    with pytest.raises(error, match=message):
        paged_attention_naive(*args)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_splits": 0}, "num_splits must be at least 1, got 0"),
    ],
)
def test_attention_refuses_options_out_of_range(options, message, device):
    """Catches an option that would divide by zero or silently do nothing."""
    with pytest.raises(ValueError, match=message):
        paged_attention(*Case([20, 33], device=device).decode_args(), **options)


def test_attention_refuses_heads_too_wide_for_a_tile(device):
    """Catches a tile that no chip's shared memory holds."""
    with pytest.raises(ValueError, match="at most 256 to fit in one tile, got 288"):
        paged_attention(*Case([3], head_dim=288, device=device).decode_args())


@pytest.fixture
def no_launch_check(monkeypatch):
    """Let CPU tensors through where the kernels are compiled: these checks fail before any launch."""
    monkeypatch.setattr(minivllm.kernels.common, "check_launchable", lambda tensor: None)


def test_on_the_cpu_bad_indices_are_an_error_instead_of_a_segmentation_fault(no_launch_check):
    """Catches an index that ends the whole process: the interpreter follows any pointer."""
    case = Case([20, 33])
    query, key_cache, value_cache, tables, lens, scale = case.decode_args()
    beyond = tables.clone()
    beyond[1, 2] = case.num_blocks
    with pytest.raises(ValueError, match=f"must lie in \\[0, {case.num_blocks}\\)"):
        paged_attention(query, key_cache, value_cache, beyond, lens, scale)
    with pytest.raises(ValueError, match="seq_lens must lie in"):
        paged_attention(query, key_cache, value_cache, tables, lens + 1000, scale)
    key = torch.randn(2, 2, 64)
    for slots in ([0, case.num_blocks * 16], [-2, 0]):
        with pytest.raises(ValueError, match=r"slot_mapping must lie in \[-1, "):
            reshape_and_cache(key, key, key_cache, value_cache, torch.tensor(slots))
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 8\), got values from 3 to 8"):
        rotary_embedding(torch.tensor([3, 8]), key, key.clone(), torch.ones(8, 64))


def test_nothing_is_written_when_a_check_fails(no_launch_check):
    """Catches a check after the launch."""
    case = Case([20, 33])
    before = case.key_cache.clone()
    key = torch.randn(2, 2, 64)
    with pytest.raises(ValueError, match="slot_mapping"):
        reshape_and_cache(key, key, case.key_cache, case.value_cache, torch.tensor([0, 10**6]))
    assert torch.equal(case.key_cache.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize(
    "starts, message",
    [([0, 4, 24], "query_start_loc must lie in"), ([0, 9, 5], "differences"), ([0, 21, 23], "minus")],
)
def test_prefill_refuses_starts_that_do_not_cut_the_queries(starts, message, no_launch_check):
    """Catches queries beyond the tensor, negative lengths, and more queries than tokens."""
    case = Case([20, 33], [20, 3])
    query, key_cache, value_cache, tables, lens, _, scale = case.prefill_args()
    with pytest.raises(ValueError, match=message):
        starts = torch.tensor(starts, dtype=torch.int32)
        prefill_attention(query, key_cache, value_cache, tables, lens, starts, scale)


def test_the_other_wrappers_refuse_wrong_shapes_and_dtypes(device):
    """Catches a row read with another row's length."""
    x, weight = torch.randn(3, 64, device=device), torch.ones(64, device=device)
    with pytest.raises(ValueError, match=r"x must have shape \(T, 32\)"):
        rms_norm(x, weight[:32], 1e-5)
    with pytest.raises(ValueError, match=r"residual must have shape \(3, 64\), got \(2, 64\)"):
        rms_norm(x, weight, 1e-5, x[:2])
    with pytest.raises(TypeError, match="must share one dtype"):
        rms_norm(x, weight.half(), 1e-5)
    with pytest.raises(ValueError, match="even number of columns"):
        silu_and_mul(x[:, :63])
    with pytest.raises(TypeError, match="x must have one of the dtypes"):
        silu_and_mul(x.long())
    heads, positions = torch.randn(3, 2, 32, device=device), torch.arange(3, device=device)
    with pytest.raises(ValueError, match="must be even and at most head_dim 32, got 64"):
        rotary_embedding(positions, heads, heads.clone(), torch.ones(8, 64, device=device))
    with pytest.raises(ValueError, match=r"positions must have shape \(3,\), got \(2,\)"):
        rotary_embedding(positions[:2], heads, heads.clone(), torch.ones(8, 32, device=device))
    with pytest.raises(ValueError, match=r"value must have shape \(3, 2, 32\)"):
        cache = torch.zeros(4, 4, 2, 32, device=device)
        reshape_and_cache(heads, heads[:2], cache, cache.clone(), positions)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a new Python without a GPU, in the repository root."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


USE_A_KERNEL = """
import torch
from minivllm.kernels.rms_norm import rms_norm, rms_norm_reference
x, weight = torch.randn(2, 24), torch.randn(24)
assert (rms_norm(x, weight, 1e-5) - rms_norm_reference(x, weight, 1e-5)).abs().max() < 1e-5
print("same")
"""


@pytest.mark.parametrize("first", ["pass", "from transformers import LlamaForCausalLM"])
def test_the_kernels_work_after_any_first_import_of_triton(first):
    """Catches "Cannot call @triton.jit'd outside of the scope of a kernel": Triton reads its switch early."""
    result = run_python(first + USE_A_KERNEL)
    assert result.stdout == "same\n", result.stderr[-2000:]


def test_the_reading_order_names_every_file():
    """Catches a file added without a place in the lesson, and one that is gone."""
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", minivllm.kernels.__doc__, flags=re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "kernels").glob("*.py")}


def test_importing_the_package_imports_neither_torch_nor_triton():
    """Catches an import that costs seconds although no kernel was asked for."""
    code = "import sys, minivllm.kernels; print('triton' in sys.modules, 'torch' in sys.modules)"
    assert run_python(code).stdout == "False False\n"


def test_without_the_interpreter_cpu_tensors_are_refused_with_the_way_out():
    """Catches Triton's own message for this, "0 active drivers", which helps no reader."""
    result = run_python(USE_A_KERNEL, TRITON_INTERPRET="0")
    assert "ValueError" in result.stderr and "set TRITON_INTERPRET=1" in result.stderr


def test_the_kernels_import_their_tools_only():
    """Catches a kernel that reaches up into the engine, which could then not be read or used alone."""
    tools = {"torch", "triton", "numba", "llvmlite", "numpy"}
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= tools | sys.stdlib_module_names, (
                f"{path.name} imports {names}"
            )
