"""The Triton kernels on a GPU: microseconds, bytes, and percent of what a copy reaches in the same run.

    $ python -m minivllm bench kernels --output-json docs/data/kernels_h100.json
    $ python -m minivllm bench kernels --tune "llama-3.1-8b B64 n4096"

How it is measured. Each call is captured in a CUDA graph and replayed, as in the engine, so that a launch
from Python does not count. Before each replay a buffer larger than the L2 cache is read: in a model the KV of
a layer has long been displaced when its turn comes again. The times are those of CUDA events. What they and
the graph add by themselves is measured too, on a kernel with nothing to do; it is not subtracted.

Example, Llama-3.1-8B with 64 sequences of 4,096 tokens in float16: 1,074,790,400 bytes have to be moved for
one layer. In 412.3 us that is 2,607 GB/s; beside a copy of 3,000 GB/s the kernel gets 86.9% of what can be
got.

Contenders (`kernel_contenders.py`): the kernel as the heuristics launch it, with and without split-KV, the
same on K and V in one piece (what scattering them costs), the naive lesson, torch's
scaled_dot_product_attention on *contiguous* K and V (the paper reports that paging takes 20-26% more time),
compiled flex attention, and flash-attn where it is installed. Shapes and the arithmetic are in
`kernel_shapes.py`, tables and figure in `kernel_report.py`.

vLLM: `benchmarks/kernels/benchmark_paged_attention.py`.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from minivllm.bench import report
from minivllm.bench.kernel_contenders import (
    Timer,
    make_batch,
    measure_copy,
    measure_decode,
    measure_floor,
    measure_prefill,
    measure_rows,
)
from minivllm.bench.kernel_report import plot, print_report
from minivllm.bench.kernel_shapes import DECODE_SHAPES, PREFILL_SHAPES, Measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minivllm bench kernels`.

    `--only n16384` selects by a part of the name, as in "llama-3.1-8b B1 n16384".
    """
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of q, K and V")
    parser.add_argument("--repeats", type=int, default=50, help="timed replays of each kernel")
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--tune", metavar="SHAPE", help="try tiles and splits on this decode shape instead")
    parser.add_argument("--output-json", help="write all measurements and their provenance to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw the decode shapes")


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status is 1 where there is no GPU.

    Args:
        args: the parsed options; `--tune` replaces the usual list of shapes by one.

    Returns:
        The exit status, 0, or 1 where there is no GPU. All else that goes wrong with our kernels raises.
    """
    if not torch.cuda.is_available():
        print(
            "bench kernels needs a CUDA GPU, and torch sees none here. In Triton's interpreter, which runs "
            "the kernels on a CPU, a time says nothing about the kernel."
        )
        return 1
    # The copy first: every percentage below is a share of it.
    timer, dtype = Timer(args.repeats), getattr(torch, args.dtype)
    copy_rate, floor = measure_copy(timer), measure_floor(timer)
    print(f"{torch.cuda.get_device_name()}: copy {copy_rate / 1e9:.0f} GB/s (read and written)\n", flush=True)
    if args.tune:
        found = tune(args.tune, dtype, timer)
    else:
        found = measure_shapes(args.only, dtype, timer)
    # Once: it asks git and the driver, and a lent machine has better things to do at every measurement.
    result = as_json([], copy_rate, args) | {"floor_microseconds": floor.as_json()}
    measurements = []
    for measurement in found:
        measurements.append(measurement)
        print(f"{measurement.shape}: {measurement.contender} {measurement.microseconds:.1f} us", flush=True)
        if args.tune:
            measurements.sort(key=lambda m: m.microseconds.median)
        result["results"] = [m.as_json(copy_rate) for m in measurements]
        # After each: minutes of a machine that may have been lent are not lost to the last contender.
        if args.output_json:
            report.write_json(args.output_json, result)
    if not measurements:
        raise ValueError(f"--only {args.only!r} is part of no shape's name.")
    print()
    print_report(result)
    if args.plot:
        plot(result, args.plot)
    return 0


def measure_shapes(only: str, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """Every shape whose name contains `only`; the row kernels if that is empty.

    Args:
        only: part of a shape's name, or empty for all.
        dtype: of queries, keys and values.
        timer: a `Timer`.

    Yields:
        Measurements as they are made, decode first.
    """
    for decode in DECODE_SHAPES:
        if only in decode.name:
            yield from measure_decode(decode, dtype, timer)
    for prefill in PREFILL_SHAPES:
        if only in prefill.name:
            yield from measure_prefill(prefill, dtype, timer)
    if not only:
        yield from measure_rows(4096, dtype, timer)


def tune(name: str, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """Tiles and splits on one decode shape: where `kernels/heuristics.py` is checked.

    36 tiles times 3 numbers of splits: the one that the heuristics choose, half and twice as many. Each is a
    kernel to compile, so it takes some minutes. Not an autotuner: the engine never runs this. Its outcome is
    read by a human, who changes an if/else in `heuristics.py`.

    Yields:
        Measurements as they are made, the likeliest tiles first.

    Raises:
        ValueError: `name` is not one of the decode shapes.
    """
    from minivllm.kernels.heuristics import Tiles, chip_of, choose_num_splits
    from minivllm.kernels.paged_attention import paged_attention

    shapes = {shape.name: shape for shape in DECODE_SHAPES}
    if name not in shapes:
        raise ValueError(f"--tune takes one of the shapes {', '.join(shapes)}; got {name!r}.")
    shape = shapes[name]
    batch = make_batch(shape, dtype, timer.device)
    query = batch.query[:, 0]  # (R, Hq, D)
    caches = (batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens)
    scale, needed = shape.heads.head_dim**-0.5, shape.bytes_needed(query.element_size())
    chosen = choose_num_splits(
        chip_of(query.device), shape.num_seqs * shape.heads.num_kv_heads, shape.seq_len
    )
    # BLOCK_M stays 16: no KV head of these shapes serves more query heads.
    for block_n, num_warps, num_stages in itertools.product((64, 32, 128, 16), (4, 8, 2), (3, 5, 2)):
        tiles = Tiles(16, block_n, num_warps, num_stages)
        for splits in sorted({max(1, chosen // 2), chosen, 2 * chosen}):
            try:
                time = timer(
                    lambda t=tiles, n=splits: paged_attention(query, *caches, scale, num_splits=n, tiles=t)
                )
            except Exception as error:  # too large for this chip; Triton's own classes differ by version
                # Too much shared memory with one split is too much with all: on to the next tiles.
                print(f"{tiles}: {type(error).__name__}")
                break
            label = f"N{block_n} warps {num_warps} stages {num_stages} splits {splits}"
            yield Measurement("decode", shape.name, label, time, needed, splits)


def as_json(measurements: list[Measurement], copy_rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """The result file: where it was measured, how, and every time.

    Args:
        measurements: all of them.
        copy_rate: bytes per second of the copy, read and written.
        args: the command's options, as far as they are part of the method.
    """
    return {
        "benchmark": "kernels",
        "provenance": report.provenance() | {"driver": driver_version()},
        "method": {"dtype": args.dtype, "repeats": args.repeats, "l2": "flushed", "launch": "CUDA graph"},
        "copy_bytes_per_second": copy_rate,
        "results": [m.as_json(copy_rate) for m in measurements],
    }


def driver_version() -> str | None:
    """The NVIDIA driver's version; None if nvidia-smi does not say.

    torch does not know it, and a time belongs to it as it does to the chip.
    """
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0].strip() if answer.strip() else None
