"""Write `performance.md` and `gpu.md` from the measurements in `data/`: `python docs/make_performance.py`.

Each section is the report of one JSON file, printed by the `print_report` that printed it when it was
measured, below the command that measured it. So no number on these pages was typed by hand. A file that is
not there yet has no section; on the page about GPUs its mark is open.
"""

import contextlib
import io
import json
from pathlib import Path

from minivllm.aot import resources
from minivllm.baselines import compare
from minivllm.bench import (
    gpu_report,
    gpu_tests,
    kernel_report,
    latency,
    memory,
    parallel,
    plan,
    serve,
    sharing,
    speculative,
    throughput_report,
)
from minivllm.bench.evaluation import command, headline, validate
from minivllm.bench.report import Spread, paired_ratio, table, why_no_ratio

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
    "gpu-tests": gpu_tests.print_report,
    "gpu-report": gpu_report.print_report,
    "parallel": parallel.print_report,
    "paper": command.print_report,
    "headline": headline.print_report,
    "step-time": validate.print_report,
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
        "reserves 512 tokens per request (Orca Max), static batches wait for their longest member. In the "
        "figure one thing changes along each arrow, points are the rounds, and an arrow has no factor where "
        "none may be quoted.",
    ),
    (
        "cpu_headline.json",
        "Paging against reservation",
        "The paper's headline on the real model: continuous batching with max_model_len reserved for each "
        "request (Orca Max), with a power of two, with the exact length, and with paging. Memory is given in "
        "reservations of max_model_len. The paper's machine has room for 7.7 (15,728 slots / 2,048): there "
        "memory limits the batch, not arithmetic. The curve shows what another choice would have given.",
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
        "keeps up. Marks in the figure are the rounds; two lines closer than their marks are not different.",
    ),
    (
        "cpu_speculative.json",
        "Drafts",
        "n-gram drafts on three texts that repeat and one that does not, and the acceptance from which on "
        "drafts pay.",
    ),
    (
        "cpu_latency.json",
        "One batch alone",
        "Eight prompts of 32 tokens, 128 tokens each.",
    ),
    (
        "cpu_parallel.json",
        "Several workers, here and on GPUs",
        "Measured: the same step by 1, 2 and 3 processes on the cores of one machine, which is a lesson and "
        "not a speed-up. Computed: its time on GPUs (`bench/parallel_model.py` has the sources).",
    ),
    (
        "cpu_compare.json",
        "Where the texts differ from Hugging Face's",
        "Greedy texts, the first token that differs, and how the hidden states drift apart layer by layer. A "
        "gap of the size of the rounding error is a tie that rounding decides; a large one would be a bug.",
    ),
    (
        "cpu_step_time.json",
        "Does the step-time model predict real steps?",
        "Five rates, fitted to half of a grid of real steps, predict the other half and a run of `bench "
        "serve`. The figures of the next section rest on this model.",
    ),
    (
        "paper.json",
        "The paper's serving figures, simulated",
        "The real scheduler and managers under the clock of that model, with the constants of A100s, beside "
        "the paper's statements.",
    ),
    (
        "memory.json",
        "The paper's memory figures, simulated",
        "The real block pool, manager and scheduler without a model, beside the paper's numbers.",
    ),
]


GPU_INTRODUCTION = """\
# The kernels on a GPU

What is known about the Triton kernels without a GPU, what they are to reach on an H100, and what they have
reached. Everything in a box on this page is written from files in `docs/data/` by `python
docs/make_performance.py`.

**In short.** On an H100 a multiprocessor holds four programs of the decode kernel at once, which have five
times as many bytes under way as it takes to keep the memory busy, and use a fifth of the instruction slots:
nothing in the machine code keeps it from the speed of the memory. The prefill kernel runs on Hopper's
warp-group products. Two variants save instructions in every turn of the loop: a mask for the last tile only,
14% of decode's and 23% of prefill's, and one block number per block, 16% and 7%. A third idea, a hint to
the L2 cache, turned out to do nothing in Triton 3.7. How fast all this is, only a GPU can tell.
"""

MARKS = """\
## The marks

"Of a copy" is the share of the bandwidth that a device-to-device copy reaches in the same run. Decode
attention has to read K and V once, so a kernel that reads at the speed of a copy leaves little to gain:
only what reading alone is faster than reading and writing in turns. "Of flash attention" is the speed
beside torch's FlashAttention-2 on keys and values that lie in one piece.{open}

```bash
make gpu-report
```

```text
{marks}
```
"""
OPEN = """ None of the marks has been measured so far, because no
GPU was at hand. One command measures them, in stages
which each write their file at once; it needs nothing that is not on the machine, and has been rehearsed on
a CPU, without a network, with torch 2.11, triton 3.6 and transformers 5.17."""

SWITCHES = """\
## Variants that wait for a measurement

The kernels have three switches (`Switches` in `kernels/heuristics.py`), all of them off: each computes the
same by other machine code, and `bench kernels` times each of them alone.

- **Least tokens per split.** A CUDA graph fixes the number of splits by the longest possible sequence. A
  sequence of 500 tokens with a limit of 131,072 is launched in 32 splits, of which eight get one tile each
  and 24 none. With the switch two splits of 256 tokens do the work, and the others end at once.
- **Masked tail.** Only the last tile of a sequence can reach beyond its end, and only the tiles on the
  diagonal of a prompt hide anything. All others need no mask.
- **One number per block.** Every key looks its block up by itself, although 16 neighbours share it. With
  the switch the number is loaded and multiplied once per block. Written plainly, this made the kernel
  *worse*: 2.5 times the instructions and no asynchronous copies, because the compiler no longer saw that a
  row's address is a multiple of 16. `tl.multiple_of` tells it.

No switch became of `evict_first`, the hint that K and V, which are read once, may leave the L2 cache first:
Triton's asynchronous copies do not pass it on. None in the decode kernel carries it (`hinted` in the
file), while the same kernel without asynchronous copies does. A test will notice when that changes.
"""

PAGING = """\
## Where paging costs

The paper reports that its kernel takes 20 to 26% longer than a contiguous one (section 7.1, figure 18a).
Three costs can be told apart, and each has a number in this project:

1. **The look-up.** Every key needs its block number before its address is known: one more load, which has to
   arrive before the key itself can be asked for, and some integer arithmetic. The table of instructions above
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

HOST = """\
## The host between two steps

A GPU waits while Python schedules the next step; nothing here overlaps the two. With {rows} sequences that
decode, scheduling and bookkeeping take {scheduling:.1f} ms per step, and making the input tensors
{inputs:.1f} ms (`docs/data/cpu_fixed_64.json`, {cpu}).

A step of Llama-3.2-1B on an H100 takes at least the time to read 2.5 GB of weights at 3,350 GB/s, 0.7 ms,
and for 64 sequences of 1,000 tokens 2.1 GB of K and V, 0.6 ms. So at this size the host takes longer than
the GPU. The aim, at most 20% of a step, would be 0.3 ms. Small repairs do not give that: production engines
schedule step t + 1 while step t runs (in vLLM `v1/core/sched/async_scheduler.py`). At Llama-3.1-8B's size,
16 GB of weights and 8 GB of K and V, 7.3 ms, the same host time is about a quarter of a step.
"""

# as SECTIONS above
KNOWN_SECTIONS = [
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
GPU_SECTIONS = [
    (
        "gpu_report.json",
        "Measured: how the stages ended",
        "A stage that failed or ran out of time keeps what it had measured by then.",
    ),
    (
        "gpu_tests.json",
        "Measured: the kernel tests, compiled",
        "Elsewhere the kernels are interpreted. The second line is a control without pipelining.",
    ),
    (
        "gpu_kernels.json",
        "Measured: the kernels alone",
        "L2 cache cold, each call replayed from a CUDA graph, medians. What graph and events add is part of "
        "every time.",
    ),
    (
        "gpu_tune.json",
        "Measured: other tiles and splits",
        "For the decode shape that missed its mark by most, the fastest first.",
    ),
    (
        "gpu_llama-3.2-1b.json",
        "Measured: the engine, Llama-3.2-1B's size",
        "Random weights, 64 prompts, against `generate_batch` of transformers (`hf-continuous`) and without "
        "CUDA graphs (`minivllm-eager`).",
    ),
    (
        "gpu_graphs.json",
        "Measured: CUDA graphs with eight sequences",
        "The fewer sequences, the more of a step is launching.",
    ),
    (
        "gpu_llama-3.1-8b.json",
        "Measured: the engine, Llama-3.1-8B's size",
        "The same with weights of 16 GB.",
    ),
]
PLOTS = {"cpu_2x2": throughput_report.plot, "cpu_serve": serve.plot, "gpu_kernels": kernel_report.plot}
HF = "hf-continuous"
# file in data/, what the mark is called, the backend that ours is compared with, how many times as fast
ENGINE_MARKS = [
    ("gpu_llama-3.2-1b.json", "llama-3.2-1b, of generate_batch", HF, 5.0),
    ("gpu_llama-3.1-8b.json", "llama-3.1-8b, of generate_batch", HF, 5.0),
    ("gpu_graphs.json", "llama-3.2-1b, 8 sequences, of eager", "minivllm-eager", 1.5),
]


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


def read(data: Path, name: str) -> dict | None:
    """A file of results; None if it is not there."""
    path = data / name
    return json.loads(path.read_text()) if path.exists() else None


def host_section(data: Path) -> list[str]:
    """What bookkeeping takes, beside what a step on a GPU takes at least; nothing without the measurement."""
    result = read(data, "cpu_fixed_64.json")
    if result is None:
        return []
    parts = result["profile"]["ms_a_decode_step"]
    scheduling, inputs = parts["scheduling and bookkeeping"], parts["input tensors"]
    cpu, rows = result["provenance"]["cpu"], result["workload"]["num_prompts"]
    return [HOST.format(scheduling=scheduling, inputs=inputs, cpu=cpu, rows=rows)]


def gpu_mark_rows(data: Path) -> list[tuple[str, str, str]]:
    """The marks of the tests, the kernels and the engine, with what was reached or that nothing was."""
    reached = kernel_report.NOT_MEASURED
    if tests := read(data, "gpu_tests.json"):
        passed, failed = (sum(counts) for counts in zip(*map(gpu_tests.counts, tests["runs"]), strict=True))
        reached = f"{passed} of {passed + failed}"
    rows = [("kernel tests on the device, passed", "all", reached)]
    rows += kernel_report.mark_rows(read(data, "gpu_kernels.json"))
    for name, mark, peer, asked in ENGINE_MARKS:
        reached = kernel_report.NOT_MEASURED
        if result := read(data, name):
            rates = {
                name: Spread.from_json(result["backends"][name]["output_tokens_per_second"])
                for name in ("minivllm", peer)
            }
            reached = why_no_ratio(result["provenance"], rates) or f"{paired_ratio(*rates.values()):.2f}x"
        rows.append((mark, f"{asked:g}x", reached))
    return rows


def gpu_marks(data: Path) -> str:
    """The section of the marks. Where nothing has been measured yet it says so once."""
    rows, is_open = gpu_mark_rows(data), ""
    if all(reached == kernel_report.NOT_MEASURED for _, _, reached in rows):
        rows, is_open = [row[:2] for row in rows], OPEN
    heads = ("mark", "asked", "reached")[: len(rows[0])]
    return MARKS.format(open=is_open, marks=table([heads, *rows]))


def pages(data: Path) -> dict[str, str]:
    """File name -> text of each page that is written from `data`."""
    gpu = [GPU_INTRODUCTION, *sections_of(data, KNOWN_SECTIONS), PAGING, SWITCHES]
    gpu += [*host_section(data), gpu_marks(data)]
    return {
        "performance.md": "\n".join([INTRODUCTION, *sections_of(data, SECTIONS)]),
        "gpu.md": "\n".join([*gpu, *sections_of(data, GPU_SECTIONS)]),
    }


def main() -> None:
    """Draw again what is drawn from its file alone, and write the pages."""
    data = HERE / "data"
    for name, plot in PLOTS.items():
        if result := read(data, f"{name}.json"):
            plot(result, str(data / f"{name}.png"))
    for file_name, text in pages(data).items():
        (HERE / file_name).write_text(text)


if __name__ == "__main__":
    main()
