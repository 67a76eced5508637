"""`python -m minivllm bench paper`: figures 12 to 19 of the paper from the real managers, beside its numbers.

    $ python -m minivllm bench paper --figure all --plot paper.png          under three minutes on two cores
    $ python -m minivllm bench paper --figure 16

    figure                              here   paper   difference      0% inside the paper's range, else from
    16  1-shot: vLLM / Oracle           1.51    1.67   -10%            its nearer end; "!" is beyond 25%

Two runs with one seed print the same, but for figure 18a, which is measured on this machine. Paper: sections
6 and 7. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minivllm.bench import kernel_report, options, report
from minivllm.bench.evaluation import drawing, figures
from minivllm.bench.evaluation.kernel_cost import NAME, measure_kernels
from minivllm.bench.evaluation.setups import FIXED_SECONDS, SEQUENCE_SECONDS

GPU_KERNELS = Path(__file__).parents[3] / "docs" / "data" / "gpu_kernels.json"
CAVEATS = (
    "Step times come from a roofline, and lengths from gamma distributions with the paper's means. Systems "
    "are compared by what they serve per second when the queue is never empty.",
    f"The host takes {1e3 * FIXED_SECONDS:.1f} ms per step and {1e6 * SEQUENCE_SECONDS:.0f} us per sequence. "
    "Both were fitted to the two step times that Figure 13 implies; no ratio was used.",
    "FasterTransformer's padding is left out, and that it answers only when the whole batch is done.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--seed` changes lengths and moments of arrival."""
    names = [*figures.FIGURES, "all"]
    parser.add_argument("--figure", nargs="+", choices=names, default=["all"], help="which figures")
    parser.add_argument("--workers", type=options.positive_int, help="processes; as many as there are cores")
    text = "of the requests: less is quicker and scatters more"
    parser.add_argument("--share", type=float, default=1.0, help=text)
    options.add_seed(parser)
    options.add_output_arguments(parser, plot=True)


def run(args: argparse.Namespace) -> int:
    """Simulate what was asked for and report; -> the exit status, 0. ValueError: no share of the requests."""
    if not 0 < args.share <= 10:
        raise ValueError(f"--share must be above 0 and at most 10, got {args.share}.")
    wanted = [name for name in figures.FIGURES if name in args.figure or "all" in args.figure]
    result = report.new_result("paper", seed=args.seed, share=args.share, caveats=CAVEATS)
    result["rows"] = figures.simulate(wanted, args.seed, args.workers, args.share)
    result["claims"] = [
        asdict(claim) | {"difference": claim.difference, "holds": claim.holds}
        for claim in figures.claims_of(result["rows"])
    ]
    if "18" in wanted:
        result["kernels"] = measure_kernels()
    return report.finish(args, result, print_report, drawing.draw)


def print_report(result: report.Result) -> None:
    """The paper's statements, then the runs behind them."""
    print(report.describe(result["provenance"]))
    print("\nThe paper's statements: inside its range, or by how much not\n")
    lines = [("figure", "", "here", "paper", "difference")]
    for claim in result["claims"]:
        low, high = claim["low"], claim["high"]
        theirs = f"{low:.2f}" if low == high else f"{low:g} to {high:g}"
        mark = f"{claim['difference']:+.0%}" + (" " if claim["holds"] else "!")
        lines.append((claim["figure"], claim["text"].ljust(44), f"{claim['ours']:.2f}", theirs, mark))
    print(report.table(lines))
    for claim in result["claims"]:
        if not claim["holds"] and claim["leaves_out"]:
            print(f"! {claim['text']}: {claim['leaves_out']}")
    if "kernels" in result:
        print_kernels(result["kernels"], result["provenance"])
    print_runs(result["rows"])
    print("\nCaveats", *result["caveats"], sep="\n  - ")


def print_kernels(kernels: dict[str, Any], where: report.Result) -> None:
    """Figure 18a on this processor, and on a GPU if one was measured."""
    paged, contiguous = (report.Spread.from_json(kernels[name]) for name in ("paged", "contiguous"))
    ratio = report.paired_ratio(paged, contiguous)
    print(f"\nFigure 18a, {NAME}: paged over contiguous (paper: +20 to +26% against FasterTransformer's)")
    print(f"  {where['cpu']}: {paged:.2f} against {contiguous:.2f} ms, {ratio.median - 1:+.0%}")
    if GPU_KERNELS.exists():
        measured = json.loads(GPU_KERNELS.read_text())
        gpu = measured["provenance"]["gpu"]
        for shape, ratios in kernel_report.paging_costs(kernel_report.measurements_of(measured)).items():
            texts = [f"{each - 1:+.0%} against {name}" for name, each in ratios.items()]
            print(f"  {gpu}, {shape}: {', '.join(texts)}")


def print_runs(rows: dict[str, list[figures.Row]]) -> None:
    """Requests per second, requests running, milliseconds per step."""
    for figure, runs in rows.items():
        served = [row for row in runs if "rate" in row]
        if not served:
            continue
        print(f"\nFigure {figure}: what each system serves")
        lines = [("", "", "requests/s", "running", "ms per step")]
        for row in served:
            numbers = f"{row['rate']:.2f}", f"{row['batch']:.1f}", f"{1e3 * row['step_seconds']:.1f}"
            lines.append((row["panel"], row["name"].ljust(18), *numbers))
        print(report.table(lines))
