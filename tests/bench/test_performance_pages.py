"""The pages of measurements are what the files say: written by `docs/make_performance.py`, not by hand."""

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path

import make_performance
import pytest
from measured import charts, files, gpu, tables

from minivllm.baselines import compare
from minivllm.bench import COMMANDS, DEFAULTS, kernel_report, load_command

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "data"
WHERE = {
    "gpu": None, "cpu": "a CPU made up", "cores": 2, "threads": 2, "load_average": [0.1, 0.1, 0.1],
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "python": "3.12.3",
    "date": "2026-11-27T12:00:00+00:00", "commit": "0" * 40, "command_line": ["bench", "x"],
}  # fmt: skip


def spread(*values):
    return {"values": list(values), "median": sorted(values)[len(values) // 2]}


def throughput(rates, **where):
    """A file of `bench throughput`: backend -> rates of its rounds."""
    entry = {"requests_per_second": spread(1.0), "total_tokens_per_second": spread(1.0)}
    return {
        "benchmark": "throughput", "provenance": WHERE | where, "model": "a model", "reference": "minivllm",
        "workload": {"name": "uniform", "seed": 0, "num_prompts": 32, "num_prompt_tokens": 9, "num_output_tokens": 9},
        "backends": {name: entry | {"output_tokens_per_second": spread(*values)} for name, values in rates.items()},
        "same_tokens": dict.fromkeys(rates, 32),
    }  # fmt: skip


def write(folder, name, result):
    (folder / f"{name}.json").write_text(json.dumps(result))


# -- the committed pages ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["performance.md", "gpu.md", "results.inc"])
def test_the_committed_page_is_what_the_files_give(name):
    """Would catch a number typed by hand, and a measurement whose page was not written again."""
    assert make_performance.pages(DATA)[name] == (DOCS / name).read_text()


def test_every_measurement_has_a_section():
    """Would catch a file of results that no page shows, and one which no page says how to make again."""
    shown = "".join(path.read_text() for path in (DOCS / "measured").glob("*.jinja"))
    for path in DATA.glob("*.json"):
        name = files.name_of(path)
        assert f'"{name}"' in shown and (name in files.COMMANDS or name.startswith("gpu_")), path.name


def test_every_picture_that_a_page_shows_is_there():
    """Would catch a chart that was not drawn, or not committed."""
    for page in ("performance.md", "gpu.md", "results.inc"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (DOCS / page).read_text()):
            assert (DOCS / target).exists(), f"{page} shows {target}"


def test_what_a_reader_wants_first_comes_first():
    """Would catch a page which begins with console text, or shows some of it unfolded."""
    page = (DOCS / "performance.md").read_text()
    assert page.index("| minivllm is |") < page.index("data/engines.png") < page.index("## How to read")
    assert page.index("## How to read") < page.index("```")
    unfolded = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "```text" not in unfolded and page.count("```text") > 10


@pytest.mark.parametrize("name", files.COMMANDS)
def test_every_command_parses(name):
    """Would catch a page that gives a reader a command which does not exist."""
    python, dash, package, *words = shlex.split(files.command_of(name))
    assert (python, dash, package) == ("python", "-m", "minivllm")
    assert words[-2:] == ["--output-json", f"docs/data/{name}"]
    parser = argparse.ArgumentParser()
    if words[0] == "compare":
        compare.add_arguments(parser)
        parser.parse_args(words[1:])
        return
    assert words[0] == "bench" and words[1] in COMMANDS
    load_command(words[1]).add_arguments(parser)
    parser.set_defaults(**DEFAULTS.get(words[1], {}))
    parser.parse_args(words[2:])


# -- files that are not there, and files of two processors ------------------------------------------


def test_without_any_file_every_page_is_written_and_says_how_to_measure(tmp_path):
    """Would catch a build that breaks where a file is missing: each may be, in a fresh clone or a branch."""
    page = make_performance.pages(tmp_path)["performance.md"]
    for name in files.COMMANDS:
        assert name == "kernel_resources.json" or files.command_of(name) in page
    assert "tokens/s" not in page.partition("## How to read")[0]
    make_performance.draw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_file_alone_may_be_missing(tmp_path, monkeypatch):
    """Would catch a table or chart that needs a file which may be missing while others are there."""
    monkeypatch.setattr(make_performance, "section", lambda data, name: "")  # of one file each: tested above
    for path in DATA.glob("*.json"):
        shutil.copy(path, tmp_path)
    for path in sorted(tmp_path.glob("*.json")):
        text = path.read_text()
        path.unlink()
        assert make_performance.pages(tmp_path).keys() == {"performance.md", "gpu.md", "results.inc"}
        path.write_text(text)


def test_each_processor_has_a_table_and_its_own_ratio(tmp_path):
    """Would catch one processor's file hiding the other's, rates of two machines in one ratio, or the ratio upside down."""
    ours, theirs = (100.0, 102.0, 104.0), (50.0, 50.0, 50.0)
    write(tmp_path, "cpu_vllm", throughput({"minivllm": ours, "vllm": theirs}, cpu="Xeon"))
    write(
        tmp_path, "cpu_vllm_zen4", throughput({"minivllm": theirs, "vllm": (100.0, 99.0, 98.0)}, cpu="EPYC")
    )
    write(tmp_path, "cpu_vllm_sharegpt", throughput({"minivllm": theirs, "vllm": theirs}, cpu="EPYC"))
    assert [path.name for path in files.paths_of(tmp_path, "cpu_vllm.json")] == [
        "cpu_vllm.json",
        "cpu_vllm_zen4.json",
    ]
    xeon, epyc = tables.engines(tmp_path).split("**EPYC, 2 cores**")
    assert "**Xeon, 2 cores**" in xeon and "**2.04x** (2.00 to 2.08)" in xeon
    assert "| 102.0 [100.0, 104.0] | 50.0 [50.0, 50.0] |" in xeon
    assert (
        "**0.51x** (0.50 to 0.51)" in epyc
        and "**1.00x** (1.00 to 1.00)" in epyc
        and epyc.count("\n| vLLM") == 2
    )


@pytest.mark.parametrize(
    "where, values", [({"load_average": [0.83, 0, 0]}, (50.0, 51.0)), ({}, (40.0, 60.0)), ({}, (50.0,))]
)
def test_no_ratio_of_a_busy_machine_or_of_scattered_rounds(tmp_path, where, values):
    """Would catch a page that quotes what the benchmark itself refuses to print."""
    write(tmp_path, "cpu_vllm", throughput({"minivllm": values, "vllm": values}, **where))
    assert "no ratio: " in tables.engines(tmp_path) and "x**" not in tables.engines(tmp_path)


def test_static_batches_are_named_with_their_size():
    """Would catch batches of 8 and of 32 under one name: the smaller ones alone would flatter us."""
    result = throughput(
        {"minivllm": (1.0, 1.0), "hf": (1.0, 1.0)}, command_line=["bench", "--hf-max-batch-size", "32"]
    )
    assert tables.engine_name(result, "hf") == "Hugging Face, static batches of 32"
    assert tables.engine_name(throughput({}), "hf") == "Hugging Face, static batches of 8"


# -- files that are to be measured ------------------------------------------------------------------


def test_the_page_shows_paging_http_and_drafts_once_they_are_measured(tmp_path):
    """Would catch a summary that breaks on, or turns around, what these commands write; the files are made up."""
    rates = {
        "orca-max": 50.0,
        "orca-pow2": 60.0,
        "orca-oracle": 70.0,
        "minivllm": 105.0,
        "minivllm-watermark": 110.0,
    }
    point = {"ratio": 7.7, "batch": dict.fromkeys(rates, 7.0) | {"minivllm": 28.0},
             "rates": {name: spread(rate, rate) for name, rate in rates.items()}}  # fmt: skip
    point |= {
        "whole_run": point["rates"],
        "preemptions": dict.fromkeys(rates, 3),
        "recomputed": dict.fromkeys(rates, 70),
    }
    setting = {"num_prompts": 96, "max_model_len": 512, "seed": 0}
    common = {"provenance": WHERE, "model": "a model"}
    write(tmp_path, "cpu_headline", common | {"benchmark": "headline", "setting": setting, "points": [point]})
    times = {
        key: dict.fromkeys(("mean", "median", "p99"), 0.1)
        for key in ("ttft", "tpot", "itl", "e2el", "normalized_latency")
    }
    points = [
        {"backend": name, "request_rate": rate, "output_tokens_per_second": speed, "goodput": None,
         "rounds_tokens_per_second": [speed, speed], "rounds_ttft_median": [0.1, 0.1], **times}
        for rate in (1.0, None) for name, speed in (("offline", 100.0), ("minivllm", 98.0), ("vllm", 80.0))
    ]  # fmt: skip
    workload = throughput({})["workload"]
    http = {"benchmark": "http", "workload": workload, "goodput_limits_ms": {}, "points": points}
    write(tmp_path, "cpu_http", common | http)
    drafts = {
        f"{text} {batch}": {"seconds": {"plain": spread(3.0, 3.0), "drafts": spread(2.0, 2.0)}, "acceptance": 0.8,
                            "tokens_per_row": 3.0, "num_draft_tokens": 9, "same_tokens": True}
        for text in ("edit", "random") for batch in (1, 4)
    }  # fmt: skip
    curve = {batch: {tokens: 10.0 + tokens for tokens in range(1, 6)} for batch in ("1", "4")}
    speculative = {"benchmark": "speculative", "config": {"num_speculative_tokens": 4}, "curve": curve}
    write(tmp_path, "cpu_speculative", common | speculative | {"workloads": drafts})
    pages = make_performance.pages(tmp_path)
    shown = pages["performance.md"].partition("## How to read")[0]
    assert "where the maximum is reserved (**2.10x** (2.10 to 2.10))" in shown
    assert "110.0 with 5% kept free of newcomers (**2.20x** (2.20 to 2.20))" in shown
    assert "28.0 run at once, not 7.0" in shown
    assert "all requests at once: offline 100.0 tokens/s" in shown
    assert "our server reaches **0.98x** of offline, **1.23x** of vllm" in shown
    assert "edit 1: 1.50x" in shown and "random 4: 1.50x" in shown
    assert "2.10x" in pages["results.inc"] and "figure 12" not in pages["results.inc"]
    make_performance.draw(tmp_path)
    drawn = {"cpu_headline.png", "cpu_http.png", "cpu_speculative.png", "result_serving.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == drawn
    write(tmp_path, "cpu_http_client", common | http | {"client": "vllm"})
    page = make_performance.pages(tmp_path)["performance.md"]
    assert "all requests at once, sent by vLLM's load generator" in page


# -- charts -----------------------------------------------------------------------------------------


def test_a_bar_is_as_long_as_its_median_and_a_whisker_as_its_rounds(tmp_path):
    """Would catch bars of means, whiskers of something else, or a panel without its processor."""
    write(tmp_path, "cpu_vllm", throughput({"minivllm": (90.0, 100.0, 140.0), "vllm": (80.0, 80.0, 80.0)}))
    (axes,) = charts.engines(tmp_path, ["cpu_vllm.json"]).axes
    assert [patch.get_width() for patch in axes.patches] == [100.0, 80.0]
    ((start, end),) = [segment[:, 0] for segment in axes.collections[0].get_segments()]
    assert (start, end) == (90.0, 140.0)
    assert "a CPU made up, 2 cores" in axes.get_title(loc="left")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["minivllm", "vLLM (CPU build)"]


def test_the_parts_of_a_step_fill_its_bar():
    """Would catch shares of different totals."""
    (axes,) = charts.step(DATA).axes
    rows = {}
    for patch in axes.patches:
        rows[patch.get_y()] = rows.get(patch.get_y(), 0.0) + patch.get_width()
    num_files = sum(len(charts.paths_of(DATA, name)) for name in charts.STEP_FILES)
    assert list(rows.values()) == pytest.approx([100.0] * num_files) and num_files >= 2


# -- layers, memory ---------------------------------------------------------------------------------


def test_layer_differences_are_shares_of_the_layers_values():
    """Would catch the absolute numbers, which are large where the values are: 0.04 of 27,300 is little."""
    each = {
        "dtype": "float32",
        "backend": "torch",
        "layer_differences": [1e-6, 0.04],
        "layer_scales": [2.0, 2e4],
    }
    assert compare.relative_differences(each) == [5e-7, 2e-6]
    rows = [line.split() for line in compare.layer_table([each]).splitlines()]
    assert rows == [
        ["layer", "float32", "torch"],
        ["one", "rounding", "1.2e-07"],
        ["0", "5.0e-07"],
        ["1", "2.0e-06"],
    ]


def test_no_page_shows_memory_below_nothing():
    """Would catch a difference to memory that the system never handed out."""
    assert not re.search(r"-\d+\.\d MiB", (DOCS / "performance.md").read_text())


# -- GPUs -------------------------------------------------------------------------------------------


def test_without_gpu_results_every_mark_is_open(tmp_path):
    """Would catch a page that lets a reader believe that something was measured, or says many times that it was not."""
    for data in (tmp_path, DATA):
        page = make_performance.pages(data)["gpu.md"]
        assert page.count("No GPU was at hand") == 1 and "Measured:" not in page and "| reached |" not in page
        assert page.index("## What is known") < page.index("## What has never run")
    assert "not measured" not in page.lower()


def test_what_is_counted_comes_from_the_compiled_kernels():
    """Would catch the variant taken for the kernel itself; 484 of 415 instructions are the page's own table."""
    shown = gpu.counted(DATA)
    printed = (DOCS / "gpu.md").read_text()
    assert "decode +17%, prefill +11% of the instructions" in shown
    assert re.search(r"H100 SXM +decode +415 +484 +\+17%", printed)
    assert re.search(r"H100 SXM +masked tail +484 -> 416 \(-14%\).*\(-23%\)", printed)
    assert "decode -14%, prefill -23% of the instructions" in shown


def test_the_page_is_drawn_from_the_files_of_a_report(tmp_path):
    """Would catch a page that breaks on what `make gpu-report` writes; the files are made up."""
    where = WHERE | {
        "gpu": "a GPU made up", "cores": 16, "threads": 16, "load_average": [3.0, 3.0, 3.0], "driver": "580.1",
        "versions": {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0"},
    }  # fmt: skip
    outcome = "stopped after 240 s; its file has what was measured by then"
    stages = [
        {"stage": "tests", "outcome": "done", "seconds": 100.0},
        {"stage": "8b", "outcome": outcome, "seconds": 241.0},
    ]
    runs = [
        {"name": "all kernel tests", "passed": 400, "failed": [], "seconds": 90.0, "exit_status": 0},
        {
            "name": "control",
            "passed": 99,
            "failed": ["tests/a.py::b (call)"],
            "seconds": 9.0,
            "exit_status": None,
        },
    ]
    shape, name = "llama-3.1-8b B64 n4096", kernel_report.FLASH
    kernels = [
        {
            "kind": "decode",
            "shape": shape,
            "contender": contender,
            "microseconds": [time],
            "work": 1_074_790_400,
        }
        for contender, time in (("minivllm", 400.0), (name, 390.0))
    ]
    found = {
        "gpu_report": {"benchmark": "gpu-report", "stages": stages},
        "gpu_tests": {"benchmark": "gpu-tests", "runs": runs},
        "gpu_kernels": {
            "benchmark": "kernels", "results": kernels, "copy_bytes_per_second": 3e12,
            "floor_microseconds": [2.0], "method": {"repeats": 50},
            "failures": [{"shape": shape, "contender": "minivllm, naive lesson", "error": "OSError: no compiler"}],
        },
    }  # fmt: skip
    for file_name, result in found.items():
        write(tmp_path, file_name, {"provenance": where} | result)
    page = make_performance.pages(tmp_path)["gpu.md"]
    lines = {" ".join(line.split()) for line in page.splitlines()}
    assert "| kernel tests on the device, passed | all | 499 of 500 |" in lines
    assert (
        f"| {shape}, of a copy | 90% | 89.6% |" in lines
        and f"| {shape}, of flash attention | 95% | 97.5% |" in lines
    )
    assert "| llama-3.1-8b, of generate_batch | 5x | not measured |" in lines and "No GPU" not in page
    assert f"8b 241 s {outcome}" in lines
    assert f"{shape}: minivllm, naive lesson: OSError: no compiler" in lines
    assert "control 99 passed 1 failed 9 s cut short" in lines and "driver 580.1, triton 3.6.0" in lines


def test_the_engines_mark_is_the_ratio_to_generate_batch(tmp_path):
    """Would catch the ratio the wrong way round, or that of another peer."""
    where = {"load_average": [3.1, 0.1, 0.1], "cores": 16, "gpu": "made up"}
    for shape, ours, theirs in (("llama-3.2-1b", 600.0, 100.0), ("llama-3.1-8b", 300.0, 200.0)):
        rates = {"minivllm": (ours, ours * 1.1), "hf-continuous": (theirs, theirs * 1.1)}
        write(tmp_path, f"gpu_{shape}", throughput(rates, **where))
    assert "| llama-3.2-1b, of generate_batch | 5x | 6.00 [6.00, 6.00]x |" in gpu.marks(tmp_path)
    assert "| llama-3.1-8b, of generate_batch | 5x | 1.50 [1.50, 1.50]x |" in gpu.marks(tmp_path)
    rows = gpu.mark_rows(tmp_path)
    assert sum(reached == "not measured" for *_, reached in rows) == len(rows) - 2
    cut = throughput(rates, **where) | {"partial": {"rounds": 2, "asked": 3}}
    write(tmp_path, "gpu_llama-3.1-8b", cut)
    assert "| llama-3.1-8b, of generate_batch | 5x | 1.50 [1.50, 1.50]x (partial) |" in gpu.marks(tmp_path)
    assert "PARTIAL: written when 2 of 3 rounds counted" in make_performance.pages(tmp_path)["gpu.md"]
    alone = throughput({"minivllm": (300.0, 330.0)}, **where) | {"failed": {"hf-continuous": "OSError: gone"}}
    write(tmp_path, "gpu_llama-3.1-8b", alone)
    assert "| llama-3.1-8b, of generate_batch | 5x | hf-continuous failed |" in gpu.marks(tmp_path)
    assert "hf-continuous dropped out" in make_performance.pages(tmp_path)["gpu.md"]
    where["load_average"][0] = 9.0  # beside a GPU, half the cores may be busy
    write(tmp_path, "gpu_llama-3.1-8b", throughput(rates, **where))
    assert "| 5x | load 9.00 at the start, the limit is 8.0 |" in gpu.marks(tmp_path)
