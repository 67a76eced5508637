"""Write `performance.md` from the measurements in `data/`: `python docs/make_performance.py`.

Each section is the report of one JSON file, printed by the code that printed it when it was measured, below
the command that measured it. So no number on that page was typed by hand.
"""

import contextlib
import io
import json
from pathlib import Path

from minivllm.bench import sharing
from minivllm.bench.throughput_report import print_report

HERE = Path(__file__).parent

INTRODUCTION = """\
# Performance

What minivllm does on a CPU, beside its peers, and where a step's time goes. All runs of a section were made
in one process or one script, in turns, so that a machine that slows down slows everybody. Medians, with the
smallest and largest value in brackets. The files are in `docs/data/`; this page is written from them by
`python docs/make_performance.py`.

The *bound* is the time that the matrix products of the model alone would take at the same number of rows in
each step, measured in the same process. What is missing to 100% is attention, sampling, scheduling and
everything that is neither.
"""

# file in data/, title, command, what to look at
SECTIONS = [
    (
        "cpu_throughput.json",
        "Against Hugging Face",
        "python -m minivllm bench throughput --backend minivllm hf --repeats 5 --profile "
        "--output-json docs/data/cpu_throughput.json",
        "`hf` is `generate` in static batches of 8.",
    ),
    (
        "cpu_hf_continuous.json",
        "Against Hugging Face's continuous batching",
        "python -m minivllm bench throughput --backend minivllm hf-continuous --repeats 5 "
        "--output-json docs/data/cpu_hf_continuous.json",
        "`hf-continuous` is `generate_batch`.",
    ),
    (
        "cpu_fixed_32.json",
        "Exactly 32 sequences running",
        "python -m minivllm bench throughput --num-running 32 --backend minivllm --repeats 5 --profile "
        "--output-json docs/data/cpu_fixed_32.json",
        "The share of the bound at a fixed batch, prompts of 128 and outputs of 128 tokens.",
    ),
    (
        "cpu_sampling_32.json",
        "The same with everything the sampler can do",
        "python -m minivllm bench throughput --num-running 32 --backend minivllm --repeats 5 --profile "
        "--sampling full --output-json docs/data/cpu_sampling_32.json",
        "Three penalties, top_p, a seed and five log-probabilities a token: the sampler's share of a step.",
    ),
    (
        "cpu_vllm.json",
        "Against vLLM on a CPU",
        "python -m minivllm bench vllm --repeats 5 --output-json docs/data/cpu_vllm.json",
        "vLLM runs in an environment of its own, in turns with minivllm.",
    ),
    (
        "cpu_vllm_sharegpt.json",
        "Against vLLM on a CPU, lengths as in ShareGPT",
        "python -m minivllm bench vllm --workload sharegpt-like --repeats 5 "
        "--output-json docs/data/cpu_vllm_sharegpt.json",
        "Longer outputs, and more different ones.",
    ),
    (
        "cpu_2x2.json",
        "What each idea is worth",
        "python -m minivllm bench throughput --max-model-len 512 --num-blocks 512 --repeats 5 "
        "--backend static-contiguous orca-max static-paged minivllm --output-json docs/data/cpu_2x2.json "
        "--plot docs/data/cpu_2x2.png",
        "The same engine with one part exchanged, on one KV budget of 8,192 tokens: contiguous memory "
        "reserves 512 tokens a request (Orca Max), static batches wait for their longest member.",
    ),
    (
        "cpu_trace.json",
        "What the trace costs",
        "python -m minivllm bench throughput --backend minivllm minivllm-traced --repeats 7 "
        "--output-json docs/data/cpu_trace.json",
        "Every figure of the notebooks is drawn from a trace; recording one has to be cheap.",
    ),
    (
        "cpu_sharing.json",
        "Sharing",
        "python -m minivllm bench sharing --repeats 5 --output-json docs/data/cpu_sharing.json",
        "Eight completions of one prompt, and a prefix of 512 tokens that 16 requests have in common.",
    ),
]


def report_of(name: str, result: dict) -> str:
    """What the benchmark printed about `result`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        (sharing.print_report if "sharing" in name else print_report)(result)
    return printed.getvalue().strip("\n")


def page() -> str:
    """The whole page, with a section for each measurement that has been made."""
    parts = [INTRODUCTION]
    for name, title, command, text in SECTIONS:
        path = HERE / "data" / name
        if path.exists():
            report = report_of(name, json.loads(path.read_text()))
            parts.append(f"## {title}\n\n{text}\n\n```bash\n{command}\n```\n\n```text\n{report}\n```\n")
            if path.with_suffix(".png").exists():
                parts.append(
                    f"![{title}: the rates printed above, as bars]({path.parent.name}/{path.stem}.png)\n"
                )
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "performance.md").write_text(page())
