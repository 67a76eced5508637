"""How the CPU kernels are compiled: on PyTorch's threads, and anew when any of them has changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from minivllm.kernels import compile_cpu

SCRIPT = """
import torch
{before}
import minivllm.kernels.{module}
import numba
from minivllm.kernels.compile_cpu import use_threads
print(torch.get_num_threads(), use_threads(torch.get_num_threads()), numba.get_num_threads())
"""

MODULES = (
    "bfloat16_cpu",
    "matmul_cpu",
    "rows_cpu",
    "paged_attention_cpu",
    "prefill_attention_cpu",
    "decode_step_cpu",
)


def threads_after(module: str, before: str = "", **environment: str) -> list[int]:
    """PyTorch's number of threads in a new process that has imported a kernel, and Numba's, as told and as set."""
    script = SCRIPT.format(before=before, module=module)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@pytest.mark.parametrize("module", MODULES)
def test_a_kernel_leaves_pytorch_the_number_of_threads_that_was_set(module):
    """Numba's threads, when they start, set OpenMP's number, which is PyTorch's too: one thread became all cores."""
    assert threads_after(
        module, "torch.set_num_threads(1); torch.get_num_threads()", NUMBA_NUM_THREADS="3"
    ) == [1, 1, 1]


def test_omp_num_threads_holds_for_the_kernels_too():
    """The same where the number comes from the environment."""
    assert threads_after("matmul_cpu", OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="3") == [1, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch and Numba have OpenMPs of their own")
def test_without_the_repair_numba_changes_pytorchs_number():
    """The control: where the number cannot be put back, the assertions above have to fail."""
    before = "torch.set_num_threads(1); torch.get_num_threads(); torch.set_num_threads = lambda number: None"
    found = threads_after("matmul_cpu", before, NUMBA_NUM_THREADS="3", NUMBA_THREADING_LAYER="omp")
    assert found == [3, 3, 3]


PART = """
from {package}.compile_cpu import inline

@inline
def part(x):
    return x + {number}
"""
WHOLE = """
import numba
from {package}.compile_cpu import kept
from {package}.part_cpu import part

@{decorator}
def whole(x):
    return part(x) * 10
"""


@pytest.mark.parametrize(
    ("decorator", "second"), [('kept("int64(int64)")', 20), ('numba.njit("int64(int64)", cache=True)', 10)]
)
def test_a_kernel_is_compiled_anew_when_a_part_in_another_file_has_changed(decorator, second, tmp_path):
    """Would catch an edit which changes nothing, and a test that passes on the machine code of yesterday. What
    Numba does by itself is the negative control.
    """
    package = tmp_path / "kernels_to_be"
    package.mkdir()
    source = Path(compile_cpu.__file__).read_text()
    (package / "compile_cpu.py").write_text(source)
    names = {"package": package.name, "decorator": decorator}
    (package / "whole_cpu.py").write_text(WHOLE.format(**names))
    results = []
    for number in (1, 1, 2):
        (package / "part_cpu.py").write_text(PART.format(**names, number=number))
        done = subprocess.run(
            [sys.executable, "-c", f"from {package.name}.whole_cpu import whole; print(whole(0))"],
            cwd=tmp_path, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(int(done.stdout))
    assert results == [10, 10, second]
    versions = list((package / "__pycache__").glob("numba_*"))
    assert len(versions) == (1 if decorator.startswith("kept") else 0)  # the old one is gone
