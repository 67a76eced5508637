"""The product of `matmul_cpu.py` against float64: its edges, its bits, and what it must not touch."""

import importlib.util

import llvmlite.binding
import numba
import numpy as np
import pytest
import torch
from llvmlite import ir

from minivllm.kernels import bfloat16_cpu
from minivllm.kernels import matmul_cpu as module
from minivllm.kernels.compile_cpu import use_threads
from minivllm.kernels.matmul_cpu import ROWS, WIDTH, matmul_cpu, pack_panels

# Sums of up to 577 products of standard normal numbers: float32 is some 1e-5 off, another row some 20.
TOLERANCE = 1e-3


def product(x, weight, kernel=module):
    """x W^T, with poisoned memory before and after x and y; fails if the product wrote outside of y."""
    before, after = 3, 5
    poison = np.nan if x.dtype == np.float32 else 0x7FC07FC0  # two NaNs
    inputs = np.full((before + len(x) + after, x.shape[1]), poison, x.dtype)
    inputs[before : before + len(x)] = x
    outputs = np.full((before + len(x) + after, len(weight)), np.inf, np.float32)
    kernel.matmul_cpu(
        inputs[before : before + len(x)], kernel.pack_panels(weight), outputs[before : before + len(x)]
    )
    assert np.isposinf(outputs[:before]).all()
    assert np.isposinf(outputs[before + len(x) :]).all()
    return outputs[before : before + len(x)]


def assert_product(actual, x, weight):
    """The one assertion on numbers."""
    np.testing.assert_allclose(
        actual, x.astype(np.float64) @ weight.T.astype(np.float64), rtol=0, atol=TOLERANCE
    )


def pairs_of(array):
    """Neighbours of each row, rounded to bfloat16, as one uint32; and what they hold, as float32."""
    rounded = torch.from_numpy(array).bfloat16()
    return rounded.view(torch.uint32).numpy(), rounded.float().numpy()


def random(*shape):
    return torch.randn(*shape).numpy()


# Whole panels, a last panel which shares columns, one panel only; steps which are no multiple of STEPS.
SHAPES = [(2 * WIDTH, 16), (2 * WIDTH + 1, 61), (3 * WIDTH - 1, 577), (WIDTH, 3), (WIDTH, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 31, 100])
def test_the_product_is_right_at_every_edge_and_writes_nothing_else(rows, shape):
    """Would catch a tile which reads or writes beyond the last row, column or step."""
    weight, x = random(*shape), random(rows, shape[1])
    actual = product(x, weight)
    assert_product(actual, x, weight)
    for wrong in (np.zeros_like(actual), np.roll(actual, 1, axis=1), 0.9 * actual):  # negative controls
        with pytest.raises(AssertionError):
            assert_product(wrong, x, weight)


@pytest.mark.parametrize("has_pairs", sorted({False, bfloat16_cpu.HAS_PAIRS}))
@pytest.mark.parametrize("shape", [(2 * WIDTH, 16), (2 * WIDTH + 1, 62), (WIDTH, 578), (WIDTH, 2)])
def test_pairs_of_bfloat16_are_multiplied_as_what_they_hold(shape, has_pairs, tmp_path, monkeypatch):
    """Would catch the halves of a pair exchanged on one side, a sum in bfloat16, and the way without vdpbf16ps."""
    monkeypatch.setattr(bfloat16_cpu, "HAS_PAIRS", has_pairs)
    kernel = copy_of_the_kernel(tmp_path, monkeypatch)
    weight, weight64 = pairs_of(random(*shape))
    for rows in (1, ROWS, ROWS + 1, 33):
        x, x64 = pairs_of(random(rows, shape[1]))
        actual = product(x, weight, kernel)
        assert_product(actual, x64, weight64)
        swapped = x64.reshape(rows, -1, 2)[..., ::-1].reshape(rows, -1)
        for wrong in (np.zeros_like(actual), (swapped @ weight64.T), 0.9 * actual):  # negative controls
            with pytest.raises(AssertionError):
                assert_product(wrong, x64, weight64)


@pytest.mark.parametrize("columns", [1, 2, 61, 576])
@pytest.mark.parametrize("rows", [1, 33])
def test_numbers_are_rounded_to_pairs_as_pytorch_rounds_them(rows, columns):
    """Would catch a fraction cut off, a tie rounded up, a pair with its halves exchanged, and a NaN made infinite."""
    bits = torch.randint(0, 2**32, (rows, columns)).to(torch.uint32)
    numbers = torch.where(
        torch.rand(rows, columns) < 0.5, torch.randn(rows, columns), bits.view(torch.float32)
    )
    numbers.view(torch.int32)[::2] &= -0x8000  # ties, and what is a bfloat16 already
    pairs = np.full((rows, (columns + 1) // 2), 7, np.uint32)
    bfloat16_cpu.pack_pairs(numbers.numpy(), pairs)
    actual = torch.from_numpy(pairs).view(torch.bfloat16)
    expected = torch.nn.functional.pad(numbers, (0, columns % 2)).bfloat16()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(3.0), expected.nan_to_num(3.0))
    one_by_one = [bfloat16_cpu.narrow(number) for number in numbers[0].numpy()]
    assert [int(each) for each in one_by_one] == [int(each) for each in pairs.view(np.uint16)[0, :columns]]
    cut_off = (numbers.view(torch.int32) & -0x10000).view(torch.float32).bfloat16()  # negative control
    assert rows * columns < 10 or not torch.equal(
        cut_off.nan_to_num(3.0), expected[:, :columns].nan_to_num(3.0)
    )


@pytest.mark.parametrize("has_pairs", [False, True])
def test_pairs_are_one_instruction_where_there_is_one_and_two_elsewhere(has_pairs, monkeypatch):
    """Would catch a name that LLVM does not know, also on a processor which could not run the instruction."""
    monkeypatch.setattr(bfloat16_cpu, "HAS_PAIRS", has_pairs)
    vector = ir.VectorType(ir.FloatType(), 16)
    function = ir.Function(ir.Module(), ir.FunctionType(vector, [vector] * 3), "pairs")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(bfloat16_cpu.emit_multiply_add_pairs(builder, *function.args))
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    machine = llvmlite.binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine("znver4")
    assembly = machine.emit_assembly(llvmlite.binding.parse_assembly(str(function.module)))
    assert (assembly.count("vdpbf16ps"), assembly.count("vfmadd")) == ((1, 0) if has_pairs else (0, 2))


def test_a_row_of_pairs_has_the_same_bits_in_any_batch():
    """Would catch a batch that decides how the two products of a pair are added."""
    weight, _ = pairs_of(random(2 * WIDTH, 578))
    x, _ = pairs_of(random(33, 578))
    together = product(x, weight)
    for first, last in ((0, 1), (32, 33), (5, 7), (1, 33)):
        assert np.array_equal(product(x[first:last], weight), together[first:last])


def test_rows_of_a_slice_are_read_where_they_are():
    """Would catch a distance between rows taken from the number of columns."""
    weight, wide = random(2 * WIDTH, 40), random(9, 100)
    outputs = np.empty((9, 2 * WIDTH), np.float32)
    matmul_cpu(wide[:, 20:60], pack_panels(weight), outputs)
    assert_product(outputs, wide[:, 20:60], weight)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_batch(num_threads):
    """Would catch sums in another order for another number of rows, as libraries choose them."""
    weight, x = random(3 * WIDTH, 577), random(33, 577)
    used = use_threads(num_threads)
    assert used <= num_threads
    together = product(x, weight)
    for first, last in ((0, 1), (32, 33), (5, 7), (1, 33)):
        assert np.array_equal(product(x[first:last], weight), together[first:last])
    backwards = product(x[:, ::-1], weight[:, ::-1])  # negative control: the other order has other bits
    assert not np.array_equal(backwards, together)
    use_threads(numba.config.NUMBA_NUM_THREADS)


def test_what_is_not_finite_stays_in_its_row():
    """Would catch a row repeated in the place of a missing one whose result is added and not replaced."""
    weight, x = random(2 * WIDTH, 50), random(6, 50)
    expected = product(x, weight)
    x[3, 7], x[5, 0] = np.nan, np.inf
    actual = product(x, weight)
    assert np.isnan(actual[3]).all()
    assert not np.isfinite(actual[5]).any()
    assert np.array_equal(actual[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


def test_the_last_panel_ends_with_the_last_column():
    """Would catch columns which no panel has."""
    weight = random(2 * WIDTH + 12, 5)
    panels = pack_panels(weight)
    assert panels.shape == (3, 5, WIDTH)
    assert np.array_equal(panels[0], weight[:WIDTH].T)
    assert np.array_equal(panels[2], weight[WIDTH + 12 :].T)


def copy_of_the_kernel(folder, monkeypatch):
    """The kernel compiled anew, with what is patched at this moment."""
    # A cache of its own, so that the copy does not replace the kernel.
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    spec = importlib.util.spec_from_file_location("minivllm.kernels.matmul_cpu_copy", module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize("has_avx512", [False, True])
def test_the_tile_is_right_for_the_other_width_of_registers(has_avx512, tmp_path, monkeypatch):
    """Would catch a kernel which is right on this machine's registers only."""
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"avx512f": has_avx512})
    copy = copy_of_the_kernel(tmp_path, monkeypatch)
    assert (48 if has_avx512 else 24) == copy.WIDTH
    weight = random(2 * copy.WIDTH + 5, 61)
    for rows in (1, 3, 4, 33):
        x = random(rows, 61)
        assert_product(product(x, weight, copy), x, weight)
