"""The paper's memory figures, simulated without a model and printed beside the paper's numbers.

    $ python -m minivllm bench memory                            all figures, about four minutes
    $ python -m minivllm bench memory --figures 2 --num-prompts 60 --plot memory.png         ten seconds

What it answers: how much of the KV memory holds tokens if sequences are contiguous, and how much if they are
paged (Figure 2); how many requests therefore run at once (13); what sharing saves (15); what the block size
costs (the memory side of 18b); and what the scheduler itself costs. The simulation is `simulation.py`.

How to read a line of Figure 2: of 15,728 slots Orca (Max) holds tokens in 20.4%, keeps 13.3% for tokens still
to come, has reserved 57.3% that nobody will ever use, and 8.9% are left over between reservations::

    |#### used ####|== reserved ==|........... internal ...........|  external  |      adds up to 100%

A share counts as reproduced within 5 points of the paper's, a number of requests within 10%. `CAVEATS` says
what makes this a simulation and not the paper's experiment; it is printed below every result.

Paper: Figures 2, 13, 15, 18b. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from minivllm.bench import simulation
from minivllm.bench.options import add_output_arguments, positive_int
from minivllm.bench.report import provenance, write_json
from minivllm.bench.workloads import ALPACA_LIKE, SHAREGPT_LIKE, LengthModel
from minivllm.sampling_params import BeamSearchParams, SamplingParams


@dataclass(frozen=True)
class Dataset:
    """Lengths, and how many times the requests: short ones are cheap, and more of them run at once.

    Attributes:
        lengths: what prompt and output lengths are drawn from.
        factor: 4 stands for four times `--num-prompts` requests.
    """

    lengths: LengthModel
    factor: int


# "-like": the means are the data sets', the requests are drawn. See CAVEATS.
DATASETS = {"ShareGPT": Dataset(SHAREGPT_LIKE, 1), "Alpaca": Dataset(ALPACA_LIKE, 4)}
SYSTEMS = {"max": "Orca (Max)", "pow2": "Orca (Pow2)", "oracle": "Orca (Oracle)", "paged": "paged"}
# In the order of the paper's bars, from the bottom up.
KINDS = ("used", "reserved", "internal", "external")
# Completions of a prompt, or beams: the paper's three.
WIDTHS = (2, 4, 6)
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
# From a busy GPU to far beyond one: does the time for each sequence stay what it is?
RUNNING = (64, 1_000, 10_000)
TURNS = 5
Row = dict[str, Any]
FIGURES = ("2", "15", "18b", "scheduler")

# The paper's numbers. Figure 2 in percent of all slots (for vLLM only the first is given), Figure 13 in
# requests, Figure 15 in percent of blocks; for ShareGPT the text gives the first and the last width only.
PAPER_USAGE = {
    "max": {"used": 20.4, "reserved": 13.3, "internal": 57.3, "external": 8.9},
    "pow2": {"used": 26.8, "reserved": 17.9, "internal": 13.6, "external": 41.6},
    "oracle": {"used": 38.2, "reserved": 25.2, "internal": 0.0, "external": 36.6},
    "paged": {"used": 96.3},
}
PAPER_BATCH = {
    "ShareGPT": {"max": 7.00, "pow2": 9.81, "oracle": 13.62, "paged": 30.42},
    # The 132.44 requests that vLLM ran are left out: see CAVEATS.
    "Alpaca": {"max": 7.00, "pow2": 43.24, "oracle": 72.75},
}
PAPER_SAVING = {
    ("Alpaca", "parallel"): {2: 6.09, 4: 8.53, 6: 9.79},
    ("Alpaca", "beam"): {2: 37.56, 4: 53.13, 6: 55.16},
    ("ShareGPT", "parallel"): {2: 16.2, 6: 30.5},
    ("ShareGPT", "beam"): {2: 44.3, 6: 66.3},
}
MAX_SHARE_DIFFERENCE = 5.0  # points
MAX_BATCH_DIFFERENCE = 0.10  # of the paper's

CAVEATS = (
    "Lengths are drawn from gamma distributions with the paper's means. The spread of ShareGPT's outputs (cv "
    "0.88) follows from Figure 2, the other spreads are guesses.",
    "The queue is never empty. The paper's requests arrive at 2 (ShareGPT) and 30 (Alpaca) a second, so its "
    "vLLM runs fewer than memory would allow: 132.44 on Alpaca are 30 requests/s x 58.45 tokens x 76 ms a "
    "step. Saturated memory holds more, so that number has no counterpart here.",
    "The buddy allocator begins with 15,728 slots split into powers of two; its smallest chunk is a block.",
    "What a step needs is counted, admission included; the authors' accounting may differ in such details.",
    "Beam search runs on independent random logits, flatter than any language model's: its savings are a "
    "shape, not a number.",
    'Less than 4% waste is a property of the block size and of the lengths: at block size 16 short requests '
    "waste more.",
)  # fmt: skip


# -- measuring --------------------------------------------------------------------------------------


def measure_systems(num_requests: int, block_size: int, seed: int) -> list[Row]:
    """Figures 2 and 13: each system on each data set.

    Args:
        num_requests: ShareGPT-like ones; 400 mean 1,600 Alpaca-like.
        block_size: of the paged system, and the smallest chunk of the buddy allocator.
        seed: of the lengths. All systems get the same requests.

    Returns:
        Eight rows, four systems on two data sets, the fields of `simulation.Usage` and what they belong to.
    """
    rows = []
    for name, dataset in DATASETS.items():
        for system in SYSTEMS:
            count = num_requests * dataset.factor
            usage = simulation.measure_usage(system, block_size, dataset.lengths, count, seed)
            rows.append({"dataset": name, "system": system, "block_size": block_size, **asdict(usage)})
    return rows


def measure_savings(num_requests: int, block_size: int, seed: int) -> list[Row]:
    """Figure 15: parallel sampling, and beam search, which takes far longer to simulate.

    Args:
        num_requests: for parallel sampling. Beam search gets an eighth, since every step sorts candidates and
            forks: 400 mean 50 ShareGPT-like and 200 Alpaca-like ones.

    Returns:
        Twelve rows; `saving` is a share, 0.0979 for 9.79%.
    """
    rows = []
    for name, dataset in DATASETS.items():
        for method, width in itertools.product(("parallel", "beam"), WIDTHS):
            # Ends exactly where the drawn length says: `ignore_eos`, and dummy tokens that are no end of
            # sequence.
            count, params = num_requests, SamplingParams(n=width, ignore_eos=True)
            if method == "beam":
                count = max(1, num_requests * dataset.factor // 8)
                params = BeamSearchParams(width, simulation.MAX_MODEL_LEN, ignore_eos=True)
            saving = simulation.measure_sharing(params, dataset.lengths, count, seed, block_size)
            rows.append({"dataset": name, "method": method, "width": width, "saving": saving})
    return rows


def measure_block_sizes(num_requests: int, seed: int) -> list[Row]:
    """The memory side of Figure 18b: the paged system at every block size, with half the requests.

    Only the memory side: that small blocks make the paper's kernel slower is not in it. By memory alone a
    block size of 1 would be best.
    """
    rows = []
    for name, dataset in DATASETS.items():
        for block_size in BLOCK_SIZES:
            count = max(1, num_requests * dataset.factor // 2)
            usage = simulation.measure_usage("paged", block_size, dataset.lengths, count, seed)
            rows.append({"dataset": name, "block_size": block_size, **asdict(usage)})
    return rows


def measure_scheduler() -> list[Row]:
    """Time of scheduler and manager, a step in which everybody generates one token.

    In turns, because only the ratios matter: a machine that slows down for a while slows all sizes.

    Returns:
        One row for each number in RUNNING, with the median over steps in seconds, and all under `all`.
    """
    seconds: dict[int, list[float]] = {num_running: [] for num_running in RUNNING}
    for _ in range(TURNS):
        for num_running in RUNNING:
            seconds[num_running] += simulation.scheduling_seconds(num_running, num_steps=4)
    return [
        {"num_running": num_running, "median_seconds": statistics.median(times), "all": times}
        for num_running, times in seconds.items()
    ]


# -- printing ---------------------------------------------------------------------------------------


def beside(simulated: float, paper: float | None, is_share: bool) -> str:
    """A simulated number, the paper's, the difference, and "!" if that is more than the mark allows.

    Always 25 characters, so that columns line up. Examples, with the marks of 5 points and 10%::

        beside(19.5, 20.4, is_share=True)      "  19.50   20.40    -0.9  "
        beside(37.0, 45.0, is_share=True)      "  37.00   45.00    -8.0! "
        beside(32.8, 30.42, is_share=False)    "  32.80   30.42   +7.8%  "
    """
    if paper is None:
        return f"{simulated:7.2f}" + " " * 18
    # Points for shares, as 2% against 1% is close; percent for requests, as 7 against 6 is not.
    difference = simulated - paper if is_share else simulated / paper - 1
    too_far = abs(difference) > (MAX_SHARE_DIFFERENCE if is_share else MAX_BATCH_DIFFERENCE)
    text = f"{difference:+.1f}" if is_share else f"{difference:+.1%}"
    return f"{simulated:7.2f} {paper:7.2f} {text:>7}{'!' if too_far else ' '} "


def print_systems(rows: list[Row]) -> None:
    """Figure 2 in percent of all slots, Figure 13 in requests.

    The paper shows Figure 2 for ShareGPT only, so the Alpaca-like rows appear under 13 alone.
    """
    print("\nFigure 2: where the slots are, in % of all (simulated, paper, difference in points)")
    print(f"{'ShareGPT-like':<15}" + "".join(f"{kind:^25}" for kind in KINDS))
    for row in rows:
        if row["dataset"] == "ShareGPT":
            paper = PAPER_USAGE[row["system"]]
            cells = [beside(row[kind] * 100, paper.get(kind), is_share=True) for kind in KINDS]
            print(f"{SYSTEMS[row['system']]:<15}" + "".join(cells))
    print("\nFigure 13: requests running (simulated, paper, difference)")
    for row in rows:
        paper = PAPER_BATCH[row["dataset"]].get(row["system"])
        text = beside(row["batch"], paper, is_share=False)
        print(f"{row['dataset'] + '-like':<15}{SYSTEMS[row['system']]:<15}{text}")


def print_savings(rows: list[Row]) -> None:
    """Figure 15. No marks for beams: random logits give a shape, not a number."""
    print("\nFigure 15: blocks saved by sharing, in % (simulated, paper, difference in points)")
    for row in rows:
        paper = PAPER_SAVING[row["dataset"], row["method"]].get(row["width"])
        text = beside(row["saving"] * 100, paper, is_share=True)
        if row["method"] == "beam":
            text = text.replace("!", " ") + "shape, not number"
        print(f"{row['dataset'] + '-like':<15}{row['method']:<9} {row['width']}  {text}")


def print_block_sizes(rows: list[Row]) -> None:
    """Waste against block size, beside the rule of thumb: half a block a sequence.

    The rule fails where most sequences are shorter than one block.

    Example, ShareGPT-like at block size 16 with a mean of 465 tokens: 7.5 / (465 + 7.5) = 1.6%.
    """
    print("\nFigure 18b, memory side: the block size (paper: 16 to 128 serve ShareGPT best, 16 to 32 Alpaca)")
    print(f"{'':<15}{'block':>6}{'used %':>9}{'waste % of held':>17}{'rule of thumb':>15}{'running':>9}")
    for row in rows:
        size = row["block_size"]
        # Mean tokens of a running sequence: slots in use, divided by the sequences that use them.
        context = row["used"] * simulation.NUM_SLOTS / row["batch"]
        expected = (size - 1) / 2 / (context + (size - 1) / 2)
        print(
            f"{row['dataset'] + '-like':<15}{size:>6}{row['used']:>9.1%}{row['waste']:>17.1%}"
            f"{expected:>15.1%}{row['batch']:>9.1f}"
        )


def print_scheduler(rows: list[Row]) -> None:
    """Linear means: the time for each sequence stays the same."""
    print("\nScheduler and memory manager, processor time a step, everybody generates one token")
    for row in rows:
        each = row["median_seconds"] / row["num_running"]
        print(
            f"{row['num_running']:>7} running {row['median_seconds'] * 1e3:9.2f} ms {each * 1e6:7.1f} us each"
        )


def print_report(result: dict[str, Any]) -> None:
    """Print every figure that was simulated, from what `--output-json` writes."""
    setting, figures = result["setting"], result["figures"]
    printers = {
        "2": print_systems,
        "15": print_savings,
        "18b": print_block_sizes,
        "scheduler": print_scheduler,
    }
    print(
        f"{setting['num_slots']:,} slots (12 GiB at 800 KiB a token, OPT-13B), at most "
        f"{setting['max_model_len']} tokens a request, {setting['num_prompts']} requests, seed "
        f'{setting["seed"]}. "!" is more than {MAX_SHARE_DIFFERENCE:.0f} points or '
        f"{MAX_BATCH_DIFFERENCE:.0%} off."
    )
    for figure, rows in figures.items():
        printers[figure](rows)
    print("\nCaveats")
    for caveat in result["caveats"]:
        print(f"  - {caveat}")


# -- the command ------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `bench memory`.

    `--seed` changes the lengths and nothing else; two runs with one seed print the same shares.
    """
    parser.add_argument(
        "--figures",
        nargs="+",
        choices=FIGURES,
        default=list(FIGURES),
        help="2 includes 13: one run",
    )
    parser.add_argument(
        "--num-prompts",
        type=positive_int,
        default=400,
        help="ShareGPT-like requests to serve; 4x Alpaca-like",
    )
    parser.add_argument("--block-size", type=positive_int, default=16, help="tokens a block (all but 18b)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the lengths")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate what was asked for; print, and if asked write JSON and a figure.

    Returns:
        The exit status, 0, or 2 if there would be nothing to draw, found out before minutes are spent.
    """
    if args.plot and args.figures == ["scheduler"]:
        print("--plot has nothing to draw: ask for at least one of the figures 2, 15, 18b.")
        return 2
    # Functions, so that only what was asked for is simulated.
    measures = {
        "2": lambda: measure_systems(args.num_prompts, args.block_size, args.seed),
        "15": lambda: measure_savings(args.num_prompts, args.block_size, args.seed),
        "18b": lambda: measure_block_sizes(args.num_prompts, args.seed),
        "scheduler": measure_scheduler,
    }
    # A bar, because the whole takes minutes and is printed when all of it is there.
    figures = [figure for figure in FIGURES if figure in args.figures]
    results = {figure: measures[figure]() for figure in tqdm(figures, desc="figures")}
    document = {
        "benchmark": "memory",
        "provenance": provenance(),
        "setting": {
            "num_slots": simulation.NUM_SLOTS,
            "max_model_len": simulation.MAX_MODEL_LEN,
            "num_prompts": args.num_prompts,
            "block_size": args.block_size,
            "seed": args.seed,
        },
        "caveats": CAVEATS,
        "figures": results,
    }
    print_report(document)
    if args.output_json:
        write_json(args.output_json, document)
    if args.plot:
        # Here, because it needs matplotlib, and because it imports this module.
        from minivllm.bench.memory_plot import draw

        draw(results, args.plot)
    return 0
