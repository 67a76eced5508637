"""Write `performance.md` from the measurements in `data/`: `python docs/make_performance.py`.

Each section is the report of one JSON file, printed by the `print_report` that printed it when it was
measured, below the command that measured it. So no number on that page was typed by hand.
"""

import contextlib
import io
import json
from pathlib import Path

from minivllm.bench import compare, latency, memory, serve, sharing, throughput_report

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

PRINTERS = {
    "throughput": throughput_report.print_report,
    "sharing": sharing.print_report,
    "serve": serve.print_report,
    "latency": latency.print_report,
    "memory": memory.print_report,
    "compare": compare.print_report,
}

# file in data/, title, what to look at; the command that made it stands in the file itself
SECTIONS = [
    (
        "cpu_vllm.json",
        "Against vLLM and Hugging Face",
        "vLLM's CPU build runs in an environment of its own, in turns with minivllm and with `generate` in "
        "static batches of 8 (`hf`).",
    ),
    (
        "cpu_vllm_sharegpt.json",
        "Against vLLM, lengths as in ShareGPT",
        "Longer outputs, and more different ones.",
    ),
    (
        "cpu_hf_continuous.json",
        "Against Hugging Face's continuous batching",
        "`hf-continuous` is `generate_batch`.",
    ),
    (
        "cpu_fixed_32.json",
        "Exactly 32 sequences running",
        "The share of the bound at a fixed batch, prompts of 128 and outputs of 128 tokens, and where the "
        "rest of a step goes.",
    ),
    (
        "cpu_fixed_64.json",
        "Exactly 64 sequences running",
        "Scheduling and bookkeeping at the default limit of the batch.",
    ),
    (
        "cpu_sampling_32.json",
        "The same with everything the sampler can do",
        "Three penalties, top_p, a seed and five log-probabilities a token: the sampler's share of a step.",
    ),
    (
        "cpu_2x2.json",
        "What each idea is worth",
        "The same engine with one part exchanged, on one KV budget of 2,048 tokens: contiguous memory "
        "reserves 512 tokens a request (Orca Max), static batches wait for their longest member.",
    ),
    (
        "cpu_trace.json",
        "What the trace costs",
        "Every figure of the notebooks is drawn from a trace; recording one has to be cheap.",
    ),
    (
        "cpu_sharing.json",
        "Sharing",
        "Eight completions of one prompt, and a prefix of 512 tokens that 16 requests have in common.",
    ),
    (
        "cpu_serve.json",
        "Requests that arrive over time",
        "Poisson arrivals, open loop, as in the paper's figure 12: below the knee of a curve that policy "
        "keeps up.",
    ),
    (
        "cpu_latency.json",
        "One batch alone",
        "Eight prompts of 32 tokens, 128 tokens each.",
    ),
    (
        "cpu_compare.json",
        "Where the texts differ from Hugging Face's",
        "Greedy texts, the first token that differs, and how the hidden states drift apart layer by layer. A "
        "gap of the size of the rounding error is a tie that rounding decides; a large one would be a bug.",
    ),
    (
        "memory.json",
        "The paper's memory figures, simulated",
        "The real block pool, manager and scheduler without a model, beside the paper's numbers.",
    ),
]


def report_of(result: dict) -> str:
    """What the benchmark printed about `result`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PRINTERS[result["benchmark"]](result)
    return printed.getvalue().strip("\n")


def page() -> str:
    """The whole page, with a section for each measurement that has been made."""
    parts = [INTRODUCTION]
    for name, title, text in SECTIONS:
        path = HERE / "data" / name
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        command = " ".join(["python -m minivllm", *result["provenance"]["command_line"]])
        report = report_of(result)
        parts.append(f"## {title}\n\n{text}\n\n```bash\n{command}\n```\n\n```text\n{report}\n```\n")
        if path.with_suffix(".png").exists():
            parts.append(f"![The numbers above, drawn](data/{path.stem}.png)\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "performance.md").write_text(page())
