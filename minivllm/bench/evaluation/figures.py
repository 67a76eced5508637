"""Which runs make which figure of the paper, and what the paper says of each.

A figure is a list of `Run`s, made on as many cores as there are; what the paper says are `Claim`s about
ratios of their rates::

    Run("13B ShareGPT", "vLLM", ...)     1.72 requests/s     \\
    Run("13B ShareGPT", "Oracle", ...)   1.02 requests/s      >   Claim: 1.7 to 2.7, here 1.68, -1%

What is the paper's: means of the lengths, slots, systems, prefixes of 80 and 341 tokens. What is guessed: the
spread of the lengths (`workloads.py`); the lengths of the translations (35 in, 40 out, as WMT16 sentences
have some 25 words); how long a chat's history is (mean 3,000 tokens, so that most prompts are cut to 1,024).

Paper: sections 6.2 to 6.5, 7.2 and 7.3. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from minivllm.bench import simulation
from minivllm.bench.evaluation.events import ONE, Demand, System, arrivals, arrive, saturate
from minivllm.bench.evaluation.setups import DEPLOYMENTS
from minivllm.bench.evaluation.step_time import Work
from minivllm.bench.paper import PAPER_BATCH, PAPER_SAVING
from minivllm.bench.report import available_cores
from minivllm.bench.workloads import ALPACA_LIKE, SHAREGPT_LIKE, Gamma, LengthModel
from minivllm.sampling_params import BeamSearchParams, SamplingParams

Row = dict[str, Any]
MAX_DIFFERENCE = 0.25  # from the paper's number, or from the nearer end of its range

SYSTEMS = {
    "vLLM": System("paged"),
    "Oracle": System("oracle"),
    "Pow2": System("pow2"),
    "Max": System("max"),
    "FasterTransformer": System("max", static=True),
}
TRANSLATION = LengthModel(Gamma(35, 0.5), Gamma(40, 0.5))
HISTORY = LengthModel(Gamma(3000, 1.0), SHAREGPT_LIKE.output, max_total=1 << 30)
# Requests that a run serves; short ones are cheap, and more of them run at once.
TRAFFIC = {
    "ShareGPT": (SHAREGPT_LIKE, 100),
    "Alpaca": (ALPACA_LIKE, 400),
    "translation": (TRANSLATION, 300),
    "chat": (HISTORY, 60),
}
LOADS = (0.4, 0.7, 0.9)  # of the capacity: where the curves of figure 12 are drawn
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
WIDTHS = (2, 4, 6)


def lengths_of(traffic: str, seed: int = 0) -> Iterator[tuple[int, int]]:
    """(prompt, output) lengths without end. A chat's prompt is the last 1,024 tokens of its history."""
    for prompt_len, output_len in simulation.endless_lengths(TRAFFIC[traffic][0], seed):
        yield (
            (min(prompt_len, 1024), min(output_len, 1023)) if traffic == "chat" else (prompt_len, output_len)
        )


@dataclass(frozen=True)
class Run:
    """One saturated system, and points of its curve at `loads`, as shares of what it can serve."""

    panel: str  # runs of one panel are compared
    name: str
    system: System
    traffic: str
    model: str = "13B"
    demand: Demand = ONE
    loads: tuple[float, ...] = ()

    def result(self, seed: int = 0, share: float = 1.0) -> Row:
        """The numbers of this run, ready for JSON, from a share of its requests."""
        where = DEPLOYMENTS[self.model]
        count = max(2, int(share * TRAFFIC[self.traffic][1] / self.demand.width))
        capacity = saturate(self.system, where, lengths_of(self.traffic, seed), count, self.demand)
        curve = []
        for load in self.loads:
            rate = load * capacity.rate
            requests = arrivals(lengths_of(self.traffic, seed), rate, count, seed)
            served = arrive(self.system, where, requests)
            curve.append({"rate": rate, "normalized_latency": served.normalized_latency})
        return {"panel": self.panel, "name": self.name, **vars(capacity), "curve": curve}


@dataclass(frozen=True)
class Saving:
    """Figure 15: blocks saved by sharing, on fewer requests than `bench memory` takes."""

    panel: str
    name: str
    width: int

    def result(self, seed: int = 0, share: float = 1.0) -> Row:
        """The saving, 0 to 1, from a share of the requests."""
        data, method = self.panel.split()
        params: SamplingParams | BeamSearchParams = SamplingParams(n=self.width, ignore_eos=True)
        count = max(2, int(share * TRAFFIC[data][1] / 2))
        if method == "beam":
            count = max(2, count // 10)
            params = BeamSearchParams(self.width, simulation.MAX_MODEL_LEN, ignore_eos=True)
        saving = simulation.measure_sharing(params, TRAFFIC[data][0], count, seed)
        return {"panel": self.panel, "name": self.name, "saving": saving}


@dataclass(frozen=True)
class SwapCost:
    """Figure 19a: milliseconds to bring back 512 tokens, by copying their blocks or computing them again."""

    panel: str
    name: str
    block_size: int
    num_tokens: int = 512

    def result(self, seed: int = 0, share: float = 1.0) -> Row:
        """Arithmetic, no run: `seed` and `share` change nothing."""
        model = DEPLOYMENTS["13B"].model
        num_blocks = -(-self.num_tokens // self.block_size)
        pairs = self.num_tokens * (self.num_tokens + 1) / 2
        again = sum(model.parts(Work(self.num_tokens, 1, self.num_tokens, pairs)).values())
        one_way = 1e3 * num_blocks * model.swap_seconds(self.block_size)
        return {"panel": self.panel, "name": self.name, "swap_ms": 2 * one_way, "recompute_ms": 1e3 * again}


def figure_12() -> list[Run]:
    """Three models, two data sets, five systems."""
    return [
        Run(f"{model} {data}", name, system, data, model, loads=LOADS)
        for model, data, (name, system) in itertools.product(
            DEPLOYMENTS, ("ShareGPT", "Alpaca"), SYSTEMS.items()
        )
    ]


def figure_13() -> list[Run]:
    """Requests running: the batch of figure 12's first two panels."""
    return [replace(run, loads=()) for run in figure_12() if run.model == "13B" and not run.system.static]


def figure_14() -> list[Run]:
    """n completions and beams, against Oracle, which shares nothing."""
    demands = {"basic": ONE}
    demands |= {f"parallel {width}": Demand(width) for width in WIDTHS}
    demands |= {f"beam {width}": Demand(width, beams=True) for width in WIDTHS}
    return [
        Run(panel, name, SYSTEMS[name], "Alpaca", demand=demand)
        for panel, demand in demands.items()
        for name in ("vLLM", "Oracle")
    ]


def figure_15() -> list[Saving]:
    """Blocks saved."""
    panels = itertools.product(("Alpaca", "ShareGPT"), ("parallel", "beam"), WIDTHS)
    return [Saving(f"{data} {method}", f"{width}", width) for data, method, width in panels]


def figure_16() -> list[Run]:
    """A prefix of one example (80 tokens) or five (341): vLLM keeps it once, Oracle for each request."""
    vllm = System("paged", shares_prefix=True)
    return [
        Run(panel, name, system, "translation", demand=Demand(prefix_len=length))
        for panel, length in (("1-shot", 80), ("5-shot", 341))
        for name, system in (("vLLM", vllm), ("Oracle", SYSTEMS["Oracle"]))
    ]


def figure_17() -> list[Run]:
    """A chat: prompts of up to 1,024 tokens, up to 1,024 generated."""
    return [Run("chat", name, SYSTEMS[name], "chat") for name in ("vLLM", "Oracle", "Pow2", "Max")]


def figure_18() -> list[Run]:
    """18b: the block size. Small blocks slow the kernel down, large ones leave their ends empty."""
    return [
        Run(data, f"{size}", System("paged", size), data)
        for data, size in itertools.product(("ShareGPT", "Alpaca"), BLOCK_SIZES)
    ]


def figure_19() -> list[Run | SwapCost]:
    """19a: the cost of one return from preemption; 19b: what is left of it in the rate."""
    costs = [SwapCost("19a", f"{size}", size) for size in BLOCK_SIZES]
    modes = {"recompute": False, "swap": True}
    sizes = (1, 16, 64, 256)
    return costs + [
        Run(f"19b, blocks of {size}", name, System("paged", size, swap=swap), "ShareGPT")
        for size, (name, swap) in itertools.product(sizes, modes.items())
    ]


FIGURES = {
    "12": figure_12, "13": figure_13, "14": figure_14, "15": figure_15, "16": figure_16, "17": figure_17,
    "18": figure_18, "19": figure_19,
}  # fmt: skip


def _result(job: tuple[Run | Saving | SwapCost, int, float]) -> Row:
    run, seed, share = job
    return run.result(seed, share)


def simulate(
    figures: list[str], seed: int = 0, num_workers: int | None = None, share: float = 1.0
) -> dict[str, list[Row]]:
    """Make the figures, with a share of the requests; -> rows by figure.

    Runs are independent of each other, so they are dealt out to processes: the numbers are the same for any
    number of workers.
    """
    jobs = [(figure, run) for figure in figures for run in FIGURES[figure]()]
    rows: dict[str, list[Row]] = {figure: [] for figure in figures}
    work = [(run, seed, share) for _, run in jobs]
    workers = num_workers or len(available_cores())
    if workers == 1:
        results = [_result(job) for job in work]
    else:
        with ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(_result, work))
    for (figure, _), row in zip(jobs, results, strict=True):
        rows[figure].append(row)
    return rows


# -- what the paper says -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A number of the paper, as a range, and ours; `leaves_out` says what may explain a difference."""

    figure: str
    text: str
    ours: float
    low: float
    high: float
    leaves_out: str = ""

    @property
    def difference(self) -> float:
        """0 inside the range, else relative to its nearer end. Example: 1.2 of 1.6 to 2.7 is -25%."""
        nearest = min(max(self.ours, self.low), self.high)
        return self.ours / nearest - 1

    @property
    def holds(self) -> bool:
        """Inside the range, or within 25% of it."""
        return abs(self.difference) <= MAX_DIFFERENCE


@dataclass(frozen=True)
class Panels:
    """Rows of one figure, to be asked for ratios."""

    rows: list[Row]
    rates: dict[tuple[str, str], float] = field(init=False)

    def __post_init__(self) -> None:
        rates = {(row["panel"], row["name"]): row["rate"] for row in self.rows if "rate" in row}
        object.__setattr__(self, "rates", rates)

    def ratio(self, panel: str, ours: str, theirs: str) -> float:
        """Rate of one system over that of another."""
        return self.rates[panel, ours] / self.rates[panel, theirs]


LARGE = (
    "memory for 60,100 tokens: both systems run enough requests for arithmetic to matter as much as memory; "
    "without any host time the ratios would be 1.2 and 1.9"
)
CHAT = "twice the requests run, but reading their K and V makes each step a third longer"
COPIES = "the copies' times are guessed; at the 12 GB/s of PCIe 3.0 both take as long"


def claims_12(rows: list[Row]) -> list[Claim]:
    """Ranges are the paper's over all ShareGPT panels; for Alpaca it gives none."""
    panels, claims = Panels(rows), []
    for model in DEPLOYMENTS:
        panel, why = f"{model} ShareGPT", LARGE if model == "175B" else ""
        claims.append(
            Claim("12", f"{panel}: vLLM / Oracle", panels.ratio(panel, "vLLM", "Oracle"), 1.7, 2.7, why)
        )
        claims.append(Claim("12", f"{panel}: vLLM / Max", panels.ratio(panel, "vLLM", "Max"), 2.7, 8.0, why))
    names = {row["panel"] for row in rows}
    most = max(panels.ratio(panel, "vLLM", "FasterTransformer") for panel in sorted(names))
    return [*claims, Claim("12", "vLLM / FasterTransformer, the largest", most, 22.0, 22.0)]


def claims_13(rows: list[Row]) -> list[Claim]:
    """Requests running. vLLM's on Alpaca are left out: there the paper's rate is the limit, not memory."""
    names = {"Max": "max", "Pow2": "pow2", "Oracle": "oracle", "vLLM": "paged"}
    claims = []
    for row in rows:
        theirs = PAPER_BATCH[row["panel"].split()[1]].get(names[row["name"]])
        if theirs is not None:
            claims.append(
                Claim("13", f"{row['panel']}: {row['name']}, running", row["batch"], theirs, theirs)
            )
    return claims


def claims_14(rows: list[Row]) -> list[Claim]:
    """The paper names the two ends."""
    panels = Panels(rows)
    why = "Oracle is spared the copies that beams in contiguous memory need"
    return [
        Claim("14", "basic: vLLM / Oracle", panels.ratio("basic", "vLLM", "Oracle"), 1.3, 1.3),
        Claim("14", "beam 6: vLLM / Oracle", panels.ratio("beam 6", "vLLM", "Oracle"), 2.3, 2.3, why),
    ]


def claims_15(rows: list[Row]) -> list[Claim]:
    """In percent. Random logits are flatter than a language model's: beams part sooner."""
    claims = []
    for row in rows:
        data, method = row["panel"].split()
        theirs = PAPER_SAVING[data, method].get(int(row["name"]))
        if theirs is not None:
            why = "the beams follow random logits" if method == "beam" else "spread of the lengths is guessed"
            text = f"{row['panel']} {row['name']}: blocks saved, %"
            claims.append(Claim("15", text, 100 * row["saving"], theirs, theirs, why))
    return claims


def claims_16(rows: list[Row]) -> list[Claim]:
    """Both prefixes."""
    panels, why = Panels(rows), "lengths of the translations are not in the paper"
    return [
        Claim("16", f"{panel}: vLLM / Oracle", panels.ratio(panel, "vLLM", "Oracle"), number, number, why)
        for panel, number in (("1-shot", 1.67), ("5-shot", 3.58))
    ]


def claims_17(rows: list[Row]) -> list[Claim]:
    """The three Orcas behave alike, because a run of 1,024 + 338 tokens is rounded up to 2,048."""
    panels = Panels(rows)
    alike = panels.ratio("chat", "Oracle", "Max")
    return [
        Claim("17", "chat: vLLM / Oracle", panels.ratio("chat", "vLLM", "Oracle"), 2.0, 2.0, CHAT),
        Claim("17", "chat: Oracle / Max (alike)", alike, 1.0, 1.0),
    ]


def claims_18(rows: list[Row]) -> list[Claim]:
    """The best block sizes lose at most 5%."""
    claims = []
    for data, low, high in (("ShareGPT", 16, 128), ("Alpaca", 16, 32)):
        rates = {int(row["name"]): row["rate"] for row in rows if row["panel"] == data}
        best = max(rates, key=rates.__getitem__)
        claims.append(Claim("18b", f"{data}: best block size", best, low, high))
    return claims


def claims_19(rows: list[Row]) -> list[Claim]:
    """Swapping block by block is slow; at 16 to 64 both are about as fast, recompute at most 20% behind."""
    costs = {row["name"]: row for row in rows if row["panel"] == "19a"}
    rates = Panels(rows)
    slow = costs["1"]["swap_ms"] / costs["16"]["swap_ms"]
    behind = [costs[size]["recompute_ms"] / costs[size]["swap_ms"] for size in ("16", "32", "64")]
    even = rates.ratio("19b, blocks of 16", "recompute", "swap")
    return [
        Claim("19a", "swap, blocks of 1 / of 16", slow, 2.0, 20.0, COPIES),
        Claim("19a", "recompute / swap, 16 to 64, largest", max(behind), 0.0, 1.2, COPIES),
        Claim("19b", "blocks of 16: recompute / swap, rate", even, 1.0, 1.0),
    ]


CLAIMS = {
    "12": claims_12, "13": claims_13, "14": claims_14, "15": claims_15, "16": claims_16, "17": claims_17,
    "18": claims_18, "19": claims_19,
}  # fmt: skip


def claims_of(rows: dict[str, list[Row]]) -> list[Claim]:
    """What the paper says of every figure that was made."""
    return [claim for figure in rows for claim in CLAIMS[figure](rows[figure])]
