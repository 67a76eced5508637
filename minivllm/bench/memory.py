"""The paper's memory figures, simulated without a model and printed beside the paper's numbers.

    $ python -m minivllm bench memory                            all figures, about four minutes
    $ python -m minivllm bench memory --figures 2 --num-prompts 60 --plot memory.png         ten seconds

Where the KV memory is (Figure 2); how many requests therefore run at once (13); what sharing saves (15); what
the block size costs (the memory side of 18b); and what the scheduler itself costs. The simulation is
`simulation.py`; the paper's numbers, the caveats and the drawing are in `paper.py`.

How to read a line of Figure 2: of 15,728 slots Orca (Max) holds tokens in 20.4%, keeps 13.3% for tokens still
to come, has reserved 57.3% that will never be used, and 8.9% are left over between reservations::

    |#### used ####|== reserved ==|........... internal ...........|  external  |      adds up to 100%
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from tqdm import tqdm

from minivllm.bench import options, paper, report, simulation
from minivllm.bench.paper import Row, beside, rule_of_thumb
from minivllm.bench.simulation import KINDS
from minivllm.sampling_params import BeamSearchParams, SamplingParams

# From a busy GPU to far beyond one: does the time per sequence stay what it is?
RUNNING = (64, 1_000, 10_000)
ROUNDS = 5


def usage_rows(
    args: argparse.Namespace, systems: Iterable[str], sizes: Sequence[int], divisor: int
) -> list[Row]:
    """Each system at each block size on each data set, all with the same requests."""
    rows = []
    for (name, dataset), system, block_size in itertools.product(paper.DATASETS.items(), systems, sizes):
        count = max(1, args.num_prompts * dataset.factor // divisor)
        usage = simulation.measure_usage(system, block_size, dataset.lengths, count, args.seed)
        rows.append({"dataset": name, "system": system, "block_size": block_size, **asdict(usage)})
    return rows


def measure_savings(args: argparse.Namespace) -> list[Row]:
    """Figure 15 as shares: parallel sampling, and beam search, slower to simulate, on an eighth of it."""
    rows = []
    methods = ("parallel", "beam")
    for (name, dataset), method, width in itertools.product(paper.DATASETS.items(), methods, paper.WIDTHS):
        # Ends exactly where the drawn length says: a dummy token does not end a sequence.
        count, params = args.num_prompts, SamplingParams(n=width, ignore_eos=True)
        if method == "beam":
            count = max(1, args.num_prompts * dataset.factor // 8)
            params = BeamSearchParams(width, simulation.MAX_MODEL_LEN, ignore_eos=True)
        saving = simulation.measure_sharing(params, dataset.lengths, count, args.seed, args.block_size)
        rows.append({"dataset": name, "method": method, "width": width, "saving": saving})
    return rows


def measure_scheduler(args: argparse.Namespace) -> list[Row]:
    """Seconds of scheduler and manager per step in which each sequence generates one token."""
    sizes = {str(number): partial(simulation.scheduling_seconds, number, 4) for number in RUNNING}
    return [
        {"num_running": int(number), "median_seconds": float(np.median(seconds)), "all": seconds}
        for number, seconds in report.in_turns(sizes, ROUNDS).items()
    ]


def print_systems(rows: list[Row]) -> None:
    """Figure 2 in percent of all slots, for ShareGPT only as in the paper; Figure 13 in requests."""
    print("\nFigure 2: where the slots are, in % of all (simulated, paper, difference in points)")
    lines = [("ShareGPT-like", *itertools.chain.from_iterable((kind, "", "") for kind in KINDS))]
    for row in rows:
        if row["dataset"] == "ShareGPT":
            theirs = paper.PAPER_USAGE[row["system"]]
            cells = [beside(row[kind] * 100, theirs.get(kind), is_share=True) for kind in KINDS]
            lines.append((paper.SYSTEMS[row["system"]], *itertools.chain.from_iterable(cells)))
    print(report.table(lines))
    print("\nFigure 13: requests running (simulated, paper, difference)")
    lines = []
    for row in rows:
        theirs = paper.PAPER_BATCH[row["dataset"]].get(row["system"])
        cells = beside(row["batch"], theirs, is_share=False)
        lines.append((f"{row['dataset']}-like {paper.SYSTEMS[row['system']]}", *cells))
    print(report.table(lines))


def print_savings(rows: list[Row]) -> None:
    """Figure 15. No marks for beams: random logits give a shape, not a number."""
    print("\nFigure 15: blocks saved by sharing, in % (simulated, paper, difference in points)")
    lines = []
    for row in rows:
        theirs = paper.PAPER_SAVING[row["dataset"], row["method"]].get(row["width"])
        *cells, difference = beside(row["saving"] * 100, theirs, is_share=True)
        remark = "shape, not number" if row["method"] == "beam" else ""
        difference = difference.replace("!", " ") if remark else difference
        lines.append((f"{row['dataset']}-like {row['method']} {row['width']}", *cells, difference, remark))
    print(report.table(lines))


def print_block_sizes(rows: list[Row]) -> None:
    """Waste against block size, beside the rule of thumb."""
    print("\nFigure 18b, memory side: the block size (paper: 16 to 128 serve ShareGPT best, 16 to 32 Alpaca)")
    lines = [("", "block", "used %", "waste % of held", "rule of thumb", "running")]
    for row in rows:
        shares = (row["used"], row["waste"], rule_of_thumb(row))
        cells = (str(row["block_size"]), *(f"{share:.1%}" for share in shares), f"{row['batch']:.1f}")
        lines.append((f"{row['dataset']}-like", *cells))
    print(report.table(lines))


def print_scheduler(rows: list[Row]) -> None:
    """Linear means: the time per sequence stays the same."""
    print("\nScheduler and memory manager, processor time per step, each sequence generates one token")
    for row in rows:
        number, seconds = row["num_running"], row["median_seconds"]
        print(f"{number:>7} running {seconds * 1e3:9.2f} ms {seconds / number * 1e6:7.1f} us each")


FIGURES = {
    "2": (lambda args: usage_rows(args, paper.SYSTEMS, [args.block_size], divisor=1), print_systems),
    "15": (measure_savings, print_savings),
    # With half the requests; small blocks also slow down the kernel, which is not in these numbers.
    "18b": (lambda args: usage_rows(args, ["paged"], paper.BLOCK_SIZES, divisor=2), print_block_sizes),
    "scheduler": (measure_scheduler, print_scheduler),
}


def print_report(result: report.Result) -> None:
    """Print every figure that was simulated, from what `--output-json` writes."""
    setting = result["setting"]
    print(report.describe(result["provenance"]))
    print(
        f"{setting['num_slots']:,} slots (12 GiB at 800 KiB per token, OPT-13B), at most "
        f"{setting['max_model_len']} tokens per request, {setting['num_prompts']} requests, seed "
        f'{setting["seed"]}. "!" is more than {paper.MAX_SHARE_DIFFERENCE:.0f} points or '
        f"{paper.MAX_BATCH_DIFFERENCE:.0%} off."
    )
    for figure, rows in result["figures"].items():
        FIGURES[figure][1](rows)
    print("\nCaveats", *result["caveats"], sep="\n  - ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--seed` changes the lengths and nothing else; two runs with one seed print the same shares."""
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="2 includes 13")
    options.add_counts(
        parser,
        num_prompts=(400, "ShareGPT-like requests to serve; 4x Alpaca-like"),
        block_size=(16, "tokens per block (all but 18b)"),
    )
    options.add_seed(parser)
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Simulate what was asked for and report; -> the exit status, 0. ValueError: nothing to draw."""
    if args.plot and args.figures == ["scheduler"]:
        # Found out before minutes are spent.
        raise ValueError("--plot has nothing to draw: ask for at least one of the figures 2, 15, 18b.")
    setting = {"num_slots": simulation.NUM_SLOTS, "max_model_len": simulation.MAX_MODEL_LEN}
    setting |= {name: getattr(args, name) for name in ("num_prompts", "block_size", "seed")}
    result = report.new_result("memory", setting=setting, caveats=paper.CAVEATS)
    figures = [figure for figure in FIGURES if figure in args.figures]
    result["figures"] = {figure: FIGURES[figure][0](args) for figure in tqdm(figures, desc="figures")}
    return report.finish(args, result, print_report, paper.draw)
