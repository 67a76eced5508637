"""The files of measurements in `docs/data/`: how each is made, and how it is read.

A measurement may be there once, on several processors, or not at all::

    cpu_vllm.json              the newest
    cpu_vllm_zen3.json         the same on another one: a word more at the end
    (cpu_headline.json)        not there: the page shows the command that makes it

A page must say where a number comes from, so nothing here knows numbers, only where they are.
"""

from __future__ import annotations

import json
from pathlib import Path

from minivllm.bench.report import Result, Spread, paired_ratio, why_no_ratio
from minivllm.bench.throughput_report import RATE

# What makes each file, without "python -m minivllm" and without where the output goes.
COMMANDS = {
    "cpu_vllm.json": "bench vllm --backend minivllm vllm hf --repeats 5",
    "cpu_openvino.json": "bench openvino --repeats 5",
    "cpu_vllm_sharegpt.json": "bench vllm --workload sharegpt-like --num-prompts 8 --repeats 5",
    "cpu_hf_static_32.json": "bench throughput --backend minivllm hf --hf-max-batch-size 32 --repeats 5",
    "cpu_prefill.json": (
        "bench throughput --backend minivllm vllm openvino hf --workload fixed --num-prompts 1 "
        "--input-len 1024 --output-len 1 --max-model-len 1100 --repeats 7"
    ),
    "cpu_hf_continuous.json": "bench throughput --num-prompts 12 --backend minivllm hf-continuous "
    "--repeats 5",
    "cpu_fixed_32.json": "bench throughput --num-running 32 --backend minivllm --repeats 5 --profile",
    "cpu_fixed_64.json": (
        "bench throughput --num-running 64 --output-len 64 --backend minivllm --repeats 5 --profile"
    ),
    "cpu_sampling_32.json": (
        "bench throughput --num-running 32 --output-len 64 --backend minivllm --sampling full --repeats 5 "
        "--profile"
    ),
    "cpu_2x2.json": (
        "bench throughput --num-prompts 16 --max-model-len 512 --num-blocks 128 --repeats 5 "
        "--backend static-contiguous orca-max static-paged minivllm --plot docs/data/cpu_2x2.png"
    ),
    "cpu_compiled_steps.json": "bench throughput --backend minivllm minivllm-eager --repeats 5",
    "cpu_headline.json": "bench headline --ratios 2 4 7.7 16 --repeats 5",
    "cpu_sharing.json": "bench sharing --repeats 5",
    "cpu_speculative.json": "bench speculative",
    "cpu_http.json": (
        "bench http --backend offline minivllm watched vllm --request-rate 1 4 inf --max-num-seqs 32 "
        "--repeats 5"
    ),
    "cpu_serve.json": (
        "bench serve --num-prompts 24 --max-model-len 512 --num-blocks 256 --goodput ttft:1000 tpot:100 "
        "--backend minivllm orca-max static-contiguous --request-rate 0.75 1.5 3"
    ),
    "cpu_latency.json": "bench latency --num-iters-warmup 2 --num-iters 10",
    "cpu_parallel.json": "bench parallel",
    "cpu_trace.json": "bench throughput --num-prompts 12 --backend minivllm minivllm-traced --repeats 7",
    "cpu_compare.json": "compare --with hf vllm --backends auto torch",
    "cpu_step_time.json": "bench step-time",
    "paper.json": "bench paper --figure all",
    "memory.json": "bench memory",
    "kernel_resources.json": "bench resources",
}


def name_of(path: Path) -> str:
    """Which measurement a file is of: the longest name that it begins with. "cpu_vllm_sharegpt_zen3.json" is
    one of "cpu_vllm_sharegpt.json", and not of "cpu_vllm.json".
    """
    stems = [Path(name).stem for name in COMMANDS]
    found = [stem for stem in stems if f"{path.stem}_".startswith(f"{stem}_")]
    return f"{max(found, key=len, default=path.stem)}.json"


def paths_of(data: Path, name: str) -> list[Path]:
    """The files of one measurement, the one with the plain name first; none if it has not been made."""
    return sorted(path for path in data.glob(f"{Path(name).stem}*.json") if name_of(path) == name)


def results_of(data: Path, name: str) -> list[Result]:
    """What these files hold."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths_of(data, name)]


def read(data: Path, name: str) -> Result | None:
    """The first of them; None if there is none."""
    return next(iter(results_of(data, name)), None)


def command_of(name: str) -> str:
    """What to type for a file that is not there. KeyError: no page says how it is made."""
    return f"python -m minivllm {COMMANDS[name]} --output-json docs/data/{name}"


def processor(result: Result) -> str:
    """Where it was measured, for a heading: "AMD EPYC, 2 cores"."""
    where = result["provenance"]
    name = (where["gpu"] or where["cpu"]).replace("(R)", "")
    return f"{name}, {where['cores']} cores"


def option(result: Result, name: str, default: str) -> str:
    """What an option was set to on the command line that made a result."""
    words = result["provenance"]["command_line"]
    return words[words.index(name) + 1] if name in words else default


def rates_of(result: Result) -> dict[str, Spread]:
    """Output tokens per second of each backend of `bench throughput` and its like."""
    return {name: Spread.from_json(entry[RATE]) for name, entry in result["backends"].items()}


def ratio_words(ours: Spread, theirs: Spread, result: Result) -> str:
    """ "**1.35x** (1.30 to 1.41)": by how much `ours` is faster, round by round, or why that is not said."""
    if reason := why_no_ratio(result["provenance"], {"minivllm": ours, "the other": theirs}):
        return f"no ratio: {reason}"
    ratio = paired_ratio(ours, theirs)
    return f"**{ratio.median:.2f}x** ({min(ratio.values):.2f} to {max(ratio.values):.2f})"
