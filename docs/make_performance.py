"""Write `performance.md` and `gpu.md` from the measurements in `data/`: `python docs/make_performance.py`.

Each section is the report of one JSON file, printed by the `print_report` that printed it when it was
measured, below the command that measured it. So no number on these pages was typed by hand. A file that is
not there yet has no section; on the page about GPUs its mark says "not measured".
"""

import contextlib
import io
import json
from pathlib import Path

from minivllm.aot import resources
from minivllm.baselines import compare
from minivllm.bench import (
    kernel_report,
    latency,
    memory,
    plan,
    serve,
    sharing,
    speculative,
    throughput_report,
)
from minivllm.bench.report import Spread, paired_ratio, why_no_ratio

HERE = Path(__file__).parent

INTRODUCTION = """\
# Performance

What minivllm does on a CPU, beside its peers, and where a step's time goes. All runs of a section were made
in one process or one script, in turns, so that a machine that slows down slows every backend. Values are
medians, with the smallest and largest value in brackets. The files are in `docs/data/`; this page is written
from them by `python docs/make_performance.py`.

**Read a ratio with its machine.** Which engine is faster depends on the processor, so every report begins
with its name. A ratio is formed per round and quoted with the range of the rounds. It is not quoted where the
machine was busy at the start (load average above 0.7) or where the rounds of one backend differ by more than
15% of their median. The files of November 2026 were measured on a busy Intel Xeon, so most of them show rates
and no ratio. This page once said that minivllm was 1.20 times as fast as vLLM: a ratio of medians of rounds
that went from 46 to 101 tokens per second against 61 to 94, best against best 1.08. On an AMD EPYC (Zen 4)
with two cores it is the other way round: 75 to 83 tokens per second against 134 to 148 for vLLM (0.57 times)
and 193 to 213 for OpenVINO GenAI (0.40 times), at commit 3a6d948; no file of these is in `docs/data/`.

The *bound* is the time that the matrix products of the model alone would take at the same number of rows in
each step, measured in the same process. What is missing to 100% is attention, sampling, scheduling and so on.
"""

PRINTERS = {
    "throughput": throughput_report.print_report,
    "sharing": sharing.print_report,
    "serve": serve.print_report,
    "speculative": speculative.print_report,
    "latency": latency.print_report,
    "memory": memory.print_report,
    "compare": compare.print_report,
    "kernels": kernel_report.print_report,
    "resources": resources.print_report,
    "plan": plan.print_report,
}

# file in data/, title, what to look at; the command that made the file stands in the file itself
SECTIONS = [
    (
        "cpu_vllm.json",
        "Against vLLM and Hugging Face",
        "vLLM's CPU build runs in an environment of its own, in turns with minivllm and with `generate` in "
        "static batches of 8 (`hf`). One Intel Xeon, busy: rates, and no ratio.",
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
        "Three penalties, top_p, a seed and five log-probabilities per token: the sampler's share of a step.",
    ),
    (
        "cpu_2x2.json",
        "What each idea is worth",
        "The same engine with one part exchanged, on one KV budget of 2,048 tokens: contiguous memory "
        "reserves 512 tokens per request (Orca Max), static batches wait for their longest member.",
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
        "cpu_speculative.json",
        "Drafts",
        "n-gram drafts on three texts that repeat and one that does not; from which acceptance on they pay.",
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


GPU_INTRODUCTION = """\
# The kernels on a GPU

What the Triton kernels are to reach on an H100, and what they have reached. Everything on this page is
written from files in `docs/data/` by `python docs/make_performance.py`; the first command below makes them,
on a machine with a CUDA GPU.

```bash
make bench-gpu
```

## The marks

"Of a copy" is the share of the bandwidth that a device-to-device copy reaches in the same run. Decode
attention has to read K and V once, so a kernel that reads at the speed of a copy leaves little to gain: only
what reading alone is faster than reading and writing in turns.

```text
{marks}
```
"""

PAGING = """\
## Where paging costs

The paper reports that its kernel takes 20 to 26% longer than a contiguous one (section 7.1, figure 18a).
Three costs can be told apart, and each has a number in this project:

1. **The look-up.** Every key needs its block number before its address is known: one more load, which has to
   arrive before the key itself can be asked for, and some integer arithmetic. The table of instructions below
   counts it: it is the same source, compiled with and without the block table. Where the memory is the limit,
   as in decode, these instructions should fall into places that are free anyway. In prefill the arithmetic
   units are the limit, so there they should show.
2. **Scattered reads.** A block of 16 tokens of Llama-3.1-8B has 16 rows of 256 bytes for each KV head. Rows
   are read whole either way; `bench kernels` times the same kernel on blocks in random order and on one block
   per sequence.
3. **The block tables themselves.** 4 bytes for 16 tokens, read by each of the 8 KV heads' programs, against
   16 x 4,096 bytes of K and V in a layer: 0.05%.

What paging saves in return is memory, and so a larger batch: that is the subject of [](performance.md).
"""

# as SECTIONS above
GPU_SECTIONS = [
    (
        "gpu_kernels.json",
        "Measured: the kernels alone",
        "L2 cache cold, each call replayed from a CUDA graph, medians. What graph and events add is part of "
        "every time.",
    ),
    (
        "gpu_llama-3.2-1b.json",
        "Measured: the engine, Llama-3.2-1B's size",
        "Random weights, 64 prompts, against `generate_batch` of transformers (`hf-continuous`).",
    ),
    (
        "gpu_llama-3.1-8b.json",
        "Measured: the engine, Llama-3.1-8B's size",
        "The same with weights of 16 GB.",
    ),
    (
        "kernel_resources.json",
        "Known without a GPU",
        "The machine code of every kernel for six chips, beside their data sheets. *Programs* run side by "
        "side on a multiprocessor; *under way* are the bytes of K and V that they have asked for when all "
        "programs wait, in brackets what must be under way at any time to keep the memory busy; *issue* is "
        "the share of its instruction slots that a multiprocessor needs while the memory runs at full speed. "
        "The naive lesson shows the other side: above 100% the memory has to wait. None of these numbers is "
        "a speed: they count instructions, not the time in which instructions wait for each other.",
    ),
]
END_TO_END_MARK = 5.0  # times `generate_batch`


def report_of(result: dict) -> str:
    """What the benchmark printed about `result`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PRINTERS[result["benchmark"]](result)
    return printed.getvalue().strip("\n")


def sections_of(data: Path, sections: list[tuple[str, str, str]]) -> list[str]:
    """A section for each measurement that has been made, in order."""
    parts = []
    for name, title, text in sections:
        path = data / name
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        command = " ".join(["python -m minivllm", *result["provenance"]["command_line"]])
        report = report_of(result)
        parts.append(f"## {title}\n\n{text}\n\n```bash\n{command}\n```\n\n```text\n{report}\n```\n")
        if path.with_suffix(".png").exists():
            parts.append(f"![The numbers above, drawn](data/{path.stem}.png)\n")
    return parts


def gpu_marks(data: Path) -> str:
    """The kernels' marks and the engine's, with what was reached or that nothing was."""
    marks = []
    for shape in ("llama-3.2-1b", "llama-3.1-8b"):
        path, reached = data / f"gpu_{shape}.json", kernel_report.NOT_MEASURED
        if path.exists():
            result = json.loads(path.read_text())
            rates = {
                name: Spread.from_json(result["backends"][name]["output_tokens_per_second"])
                for name in ("minivllm", "hf-continuous")
            }
            reached = why_no_ratio(result["provenance"], rates) or f"{paired_ratio(*rates.values()):.2f}x"
        marks.append((f"{shape}, of generate_batch", f"{END_TO_END_MARK:.0f}x", reached))
    path = data / "gpu_kernels.json"
    return kernel_report.marks_table(json.loads(path.read_text()) if path.exists() else None, tuple(marks))


def pages(data: Path) -> dict[str, str]:
    """File name -> text of each page that is written from `data`."""
    gpu = [GPU_INTRODUCTION.format(marks=gpu_marks(data)), PAGING, *sections_of(data, GPU_SECTIONS)]
    return {
        "performance.md": "\n".join([INTRODUCTION, *sections_of(data, SECTIONS)]),
        "gpu.md": "\n".join(gpu),
    }


if __name__ == "__main__":
    for file_name, text in pages(HERE / "data").items():
        (HERE / file_name).write_text(text)
