"""The tables of the page about performance: Markdown, written from the files and from nothing else.

`engines` sets minivllm beside each other engine, one table per processor, since a ratio belongs to one.
`summary` is one line per question, answered by a function per file::

    | question                                    | answer                               | measured on |
    | [What does HTTP cost?](#behind-http)        | the server reaches 0.97 times ...    | AMD EPYC    |
    | [What do drafts gain?](#drafts)             | not measured here yet                |             |

A question whose file is missing keeps its line, so that a reader sees what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from measured.files import option, processor, rates_of, ratio_words, read, results_of
from minivllm.baselines import compare
from minivllm.bench.backends import FLOAT32, OURS, WATERMARK
from minivllm.bench.evaluation import headline, validate
from minivllm.bench.report import Result, Spread, paired_ratio, why_no_ratio
from minivllm.bench.speculative import speedup_of

ENGINE_FILES = ("cpu_vllm.json", "cpu_openvino.json", "cpu_vllm_sharegpt.json",
                "cpu_hf_static_32.json", "cpu_hf_continuous.json")  # fmt: skip
NAMES = {
    "vllm": "vLLM (CPU build)",
    FLOAT32: "minivllm in float32",
    "openvino": "OpenVINO GenAI",
    "hf-continuous": "Hugging Face, continuous batching",
}
MISSING = "not measured here yet"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar inside a cell would end it, so there must be none."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# -- beside other engines ---------------------------------------------------------------------------


def engine_name(result: Result, backend: str) -> str:
    """What readers call a backend; Hugging Face's static batches with their size."""
    if backend == "hf":
        return f"Hugging Face, static batches of {option(result, '--hf-max-batch-size', '8')}"
    return NAMES.get(backend, backend)


def work_of(result: Result) -> str:
    """ "uniform, 32 requests, float32", and "partial" if it was stopped before its end."""
    workload = result["workload"]
    dtype = option(result, "--dtype", "float32")
    partial = ", partial" if "partial" in result else ""
    return f"{workload['name']}, {workload['num_prompts']} requests, {dtype}{partial}"


def engine_rows(result: Result) -> list[list[str]]:
    """One file: a line for each engine that ran in turns with minivllm."""
    rates, rows = rates_of(result), []
    for name, rate in rates.items():
        if name != OURS:
            same = f"{result['same_tokens'][name]} of {result['workload']['num_prompts']}"
            ratio = ratio_words(rates[OURS], rate, result)
            texts = [engine_name(result, name), work_of(result), f"{rates[OURS]:.1f}", f"{rate:.1f}"]
            rows.append([*texts, ratio, same])
    return rows


def engines(data: Path) -> str:
    """A table per processor, in the order of the files."""
    tables: dict[str, list[list[str]]] = {}
    for result in (result for name in ENGINE_FILES for result in results_of(data, name)):
        tables.setdefault(processor(result), []).extend(engine_rows(result))
    heads = ("beside", "work", "minivllm, tokens/s", "the other, tokens/s", "minivllm is", "same texts")
    parts = [f"**{name}**\n\n{markdown(heads, rows)}" for name, rows in tables.items()]
    return "\n".join(parts) or f"{MISSING.capitalize()}.\n"


def engine_sentence(data: Path) -> str:
    """The first file in one sentence: it stands below the chart, also for readers who cannot see that."""
    result = read(data, ENGINE_FILES[0])
    if result is None:
        return f"{MISSING.capitalize()}."
    texts = [f"{engine_name(result, name)}: {rate.median:.1f}" for name, rate in rates_of(result).items()]
    return f"Output tokens per second, {work_of(result)}, on {processor(result)}. {'; '.join(texts)}."


# -- one answer per file ----------------------------------------------------------------------------


def kv_usage(result: Result) -> str:
    """Figure 2 of the paper."""
    used = {row["system"]: row["used"] for row in result["figures"]["2"] if row["dataset"] == "ShareGPT"}
    return (
        f"with blocks {used['paged']:.1%} of the KV slots hold tokens, with the maximum length reserved "
        f"{used['max']:.1%} (simulated; the paper: 96.3% and 20.4%)"
    )


def papers_point(result: Result) -> Result:
    """Of `bench headline`, the size of memory nearest to the paper's."""
    return min(result["points"], key=lambda point: abs(point["ratio"] - headline.PAPER_RATIO))


def headline_gain(result: Result) -> str:
    """Paging against Orca (Max): the rates, by how much they differ, and how many requests run."""
    point = papers_point(result)
    names = (OURS, WATERMARK, "orca-max")
    ours, kept_free, theirs = (Spread.from_json(point["rates"][name]) for name in names)
    running = point["batch"]
    return (
        f"{ours.median:.1f} tokens/s while requests wait, {theirs.median:.1f} where the maximum is reserved "
        f"({ratio_words(ours, theirs, result)}), {kept_free.median:.1f} with 5% kept free of newcomers "
        f"({ratio_words(kept_free, theirs, result)}); {result['setting']['num_prompts']} requests, memory "
        f"for {point['ratio']:g} reservations: {running[OURS]:.1f} run at once, not {running['orca-max']:.1f}"
    )


def decode_parts(result: Result) -> dict[str, float]:
    """Part of a decode step -> milliseconds, the largest first; in older files the mean of all steps."""
    profile = result["profile"]
    parts = profile.get("ms_a_decode_step", profile["ms_a_step"])
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def step_parts(result: Result) -> str:
    """The three largest parts."""
    parts = decode_parts(result)
    total, rows = sum(parts.values()), result["workload"]["num_prompts"]
    texts = [f"{name} {ms / total:.0%}" for name, ms in list(parts.items())[:3]]
    dtype = option(result, "--dtype", "float32")
    return f"with {rows} sequences in {dtype} a step takes {total:.0f} ms: {', '.join(texts)}"


def http_cost(result: Result) -> str:
    """Rates when requests come fastest, and how our server's compare, round by round."""
    rates = [point["request_rate"] for point in result["points"]]
    fastest = None if None in rates else max(rates)
    speeds = {
        point["backend"]: Spread(tuple(point["rounds_tokens_per_second"]))
        for point in result["points"]
        if point["request_rate"] == fastest
    }
    when = "all requests at once" if fastest is None else f"{fastest:g} requests/s"
    if result.get("client", OURS) != OURS:
        when += ", sent by vLLM's load generator"
    text = f"{when}: " + ", ".join(f"{name} {speed.median:.1f} tokens/s" for name, speed in speeds.items())
    if reason := why_no_ratio(result["provenance"], speeds):
        return f"{text}; no ratio: {reason}"
    ours = speeds.pop(OURS)
    ratios = [f"**{paired_ratio(ours, other).median:.2f}x** of {name}" for name, other in speeds.items()]
    return f"{text}; our server reaches {', '.join(ratios)}"


def draft_gain(result: Result) -> str:
    """Speedup of each text; a workload is called "edit 1" for one sequence at a time."""
    texts, reasons = [], []
    for name, entry in result["workloads"].items():
        seconds = {key: Spread.from_json(value) for key, value in entry["seconds"].items()}
        if reason := why_no_ratio(result["provenance"], seconds):
            reasons.append(reason)
        texts.append(f"{name}: {'no ratio' if reason else f'{speedup_of(entry).median:.2f}x'}")
    if len(reasons) == len(texts):
        return f"no ratio: {reasons[0]}"
    return f"time without drafts over time with them (text, sequences): {', '.join(texts)}"


def sharing_saves(result: Result) -> str:
    """Blocks of n completions, tokens of a common prefix: counts."""
    together, apart = result["parallel_sampling"]["variants"].values()
    cached, computed = result["shared_prefix"]["variants"].values()
    return (
        f"8 completions of a prompt hold {together['most_blocks']} blocks instead of {apart['most_blocks']}; "
        f"with the prefix cache {cached['num_computed_tokens']:,} tokens are computed instead of "
        f"{computed['num_computed_tokens']:,}"
    )


def same_texts(result: Result) -> str:
    """Equal greedy texts of each engine and type, over all its settings."""
    counts: dict[str, list[int]] = {}
    for each in result["comparisons"]:
        name, num_prompts = f"{each['engine']} in {each['dtype']}", each["num_prompts"]
        equal, all_texts = counts.setdefault(name, [0, 0])
        counts[name] = [equal + num_prompts - len(each["divergences"]), all_texts + num_prompts]
    return ", ".join(f"{name}: {equal} of {total} texts" for name, (equal, total) in counts.items())


def clock_error(result: Result) -> str:
    """Errors of the step-time model."""
    found = validate.summary(result)
    return (
        f"steps that it did not see: median error {found['held_out']:.1%}; a whole run: {found['run']:+.1%}"
    )


def paper_claims(result: Result) -> str:
    """How many statements of the paper hold under the simulated clock."""
    holds = [claim["holds"] for claim in result["claims"]]
    return (
        f"{sum(holds)} of {len(holds)} numbers are inside the paper's range, or within 25% of it (simulated)"
    )


# question, heading of its section, file, what answers it
ANSWERS: tuple[tuple[str, str, str, Callable[[Result], str]], ...] = (
    ("How full is the KV cache?", "the-papers-memory-figures-simulated", "memory.json", kv_usage),
    ("What does paging bring?", "paging-against-reservation", "cpu_headline.json", headline_gain),
    ("Where does a step's time go?", "where-a-steps-time-goes", "cpu_fixed_32.json", step_parts),
    ("What does sharing save?", "sharing", "cpu_sharing.json", sharing_saves),
    ("What does HTTP cost?", "behind-http", "cpu_http.json", http_cost),
    ("What do drafts gain?", "drafts", "cpu_speculative.json", draft_gain),
    (
        "Is the text Hugging Face's?",
        "where-the-texts-differ-from-hugging-faces",
        "cpu_compare.json",
        same_texts,
    ),
    (
        "Do the paper's serving figures come out?",
        "the-papers-serving-figures-simulated",
        "paper.json",
        paper_claims,
    ),
    (
        "Does the simulated clock keep time?",
        "does-the-step-time-model-predict-real-steps",
        "cpu_step_time.json",
        clock_error,
    ),
)


def summary(data: Path) -> str:
    """A line per question and processor."""
    rows = []
    for question, anchor, name, answer in ANSWERS:
        link = f"[{question}](#{anchor})"
        found = [[link, answer(result), processor(result)] for result in results_of(data, name)]
        rows += found or [[link, MISSING, ""]]
    return markdown(("question", "answer", "where"), rows)


def answer(data: Path, name: str) -> str:
    """What the summary says of a file."""
    result = read(data, name)
    find = next(find for _, _, file, find in ANSWERS if file == name)
    return MISSING if result is None else find(result)


def longer_step(data: Path, few: int = 8, many: int = 32, length: int = 128) -> str:
    """How many times as long a step of many sequences takes as one of few, all of `length` tokens: "1.67"."""
    result = read(data, "cpu_step_time.json")
    assert result is not None, "ask `measured` first"
    works = zip(result["works"], result["seconds"], strict=True)
    seconds = {work["rows"]: seconds for work, seconds in works if work["kv_tokens"] == length * work["rows"]}
    return f"{seconds[many] / seconds[few]:.2f}"


# -- layer by layer ---------------------------------------------------------------------------------


def layers(data: Path) -> str:
    """How far the hidden states of two engines are apart; the columns are types and backends."""
    result = read(data, "cpu_compare.json")
    if result is None:
        return f"{MISSING.capitalize()}.\n"
    settings = compare.layer_settings(result["comparisons"])
    shares = [compare.relative_differences(each) for each in settings.values()]
    number = partial("{:.1e}".format)
    largest = [f"{max(column):.1e} (layer {column.index(max(column))})" for column in shares]
    rows = [
        ["one rounding of this type", *map(number, map(compare.rounding_unit, settings.values()))],
        ["after the first layer", *(number(column[0]) for column in shares)],
        ["the largest", *largest],
        ["after the last layer and the final norm", *(number(column[-1]) for column in shares)],
    ]
    return markdown(("largest difference / largest value", *settings), rows)
