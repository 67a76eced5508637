"""The Triton kernels on a GPU: microseconds, bytes, and percent of what a copy reaches in the same run.

    $ python -m minivllm bench kernels --output-json docs/data/kernels_h100.json
    $ python -m minivllm bench kernels --tune "llama-3.1-8b B64 n4096"

Each call is captured in a CUDA graph and replayed, as in the engine. Before each replay a buffer larger than
the L2 cache is read: in a model the KV of a layer has long been displaced when its turn comes again. What
events and graph add by themselves is measured on a kernel with nothing to do, and not subtracted.

Example, Llama-3.1-8B with 64 sequences of 4,096 tokens in float16: 1,074,790,400 bytes have to be moved for
one layer. In 412.3 us that is 2,607 GB/s, or 86.9% of a copy of 3,000 GB/s.

A kernel of ours that fails is named in the file and in the report, and the others are still measured.

Contenders are in `kernel_contenders.py`, how one is timed in `kernel_timing.py`; shapes, their work, tables
and figure in `kernel_report.py`. vLLM: `benchmarks/kernels/benchmark_paged_attention.py`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch

from minivllm.bench import kernel_contenders as contenders
from minivllm.bench import kernel_report, kernel_timing, options, report
from minivllm.bench.kernel_report import DECODE_SHAPES, PREFILL_SHAPES, Failure, Measurement
from minivllm.bench.kernel_timing import Timer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--only n16384` selects by a part of the name, as in "llama-3.1-8b B1 n16384"."""
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of q, K and V")
    options.add_counts(parser, repeats=(50, "timed replays of each kernel"))
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--tune", metavar="SHAPE", help="try tiles and splits on this decode shape instead")
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Measure and print; -> 0, or 1 where there is no GPU or a kernel of ours failed: the file names it."""
    if not torch.cuda.is_available():
        print(
            "bench kernels needs a CUDA GPU, and torch sees none here. In Triton's interpreter, which runs "
            "the kernels on a CPU, a time says nothing about the kernel."
        )
        return 1
    method = {"dtype": args.dtype, "repeats": args.repeats, "l2": "flushed", "launch": "CUDA graph"}
    result = report.new_result("kernels", method=method, results=[], failures=[])
    # The copy first: every percentage below is a share of it.
    timer, dtype = Timer(args.repeats), getattr(torch, args.dtype)
    result["copy_bytes_per_second"] = kernel_timing.measure_copy(timer)
    result["floor_microseconds"] = kernel_timing.measure_floor(timer)
    for found in tune(args.tune, dtype, timer) if args.tune else measure_shapes(args.only, dtype, timer):
        if isinstance(found, Failure):
            result["failures"].append(asdict(found))
        else:
            result["results"].append(asdict(found))
            print(f"{found.shape}: {found.contender} {found.median:.1f} us", flush=True)
        if args.tune:
            result["results"].sort(key=lambda record: Measurement(**record).median)
        # After each: minutes of a machine that may have been lent are not lost to the last contender.
        if args.output_json:
            report.write_json(args.output_json, result)
    if not result["results"] and not result["failures"]:
        raise ValueError(f"--only {args.only!r} is part of no shape's name.")
    print()
    report.finish(args, result, kernel_report.print_report, kernel_report.plot)
    return int(bool(result["failures"]))


def measure_shapes(only: str, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement | Failure]:
    """Every shape whose name contains `only`, and if that is empty the row kernels too.

    What the marks ask for comes first, what compiles for long comes last: the time may be over at any moment.
    """
    shapes = [shape for shape in (*DECODE_SHAPES, *PREFILL_SHAPES) if only in shape.name]
    shapes.sort(key=lambda shape: shape.name not in kernel_report.MARKED_SHAPES)  # stable: the others behind
    for wanted in contenders.PASSES:
        for shape in shapes:
            measure = contenders.measure_decode if shape.kind == "decode" else contenders.measure_prefill
            yield from measure(shape, dtype, timer, wanted)
    if not only:
        yield from contenders.measure_rows(4096, dtype, timer)


def tune(name: str, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """36 tiles times 3 numbers of splits on one decode shape, the likeliest first: some minutes of compiling.
    The engine never runs this: a human reads it, and changes an if/else in `kernels/heuristics.py`.
    """
    from minivllm.kernels.heuristics import Tiles, chip_of, choose_num_splits
    from minivllm.kernels.paged_attention import paged_attention

    shapes = {shape.name: shape for shape in DECODE_SHAPES}
    if name not in shapes:
        raise ValueError(f"--tune takes one of the shapes {', '.join(shapes)}; got {name!r}.")
    shape, heads = shapes[name], shapes[name].heads
    batch = contenders.make_batch(shape, dtype, timer.device)
    query = batch.query[:, 0]  # (R, Hq, D)
    work, scale = shape.work(query.element_size()), heads.head_dim**-0.5
    chosen = choose_num_splits(chip_of(query.device), shape.num_seqs * heads.num_kv_heads, shape.seq_len)
    attention = partial(paged_attention, query, *batch.paged, scale)
    # BLOCK_M stays 16: no KV head of these shapes serves more query heads.
    for block_n, num_warps, num_stages in itertools.product((64, 32, 128, 16), (4, 8, 2), (3, 5, 2)):
        tiles = Tiles(16, block_n, num_warps, num_stages)
        for splits in sorted({max(1, chosen // 2), chosen, 2 * chosen}):
            try:
                times = timer(partial(attention, num_splits=splits, tiles=tiles))
            except Exception as error:  # too large for this chip; Triton's own classes differ by version
                print(f"{tiles}: {type(error).__name__}")
                break  # too much shared memory with one split is too much with all
            label = f"N{block_n} warps {num_warps} stages {num_stages} splits {splits}"
            yield Measurement("decode", shape.name, label, times, work, splits)
