"""The pages of measurements are what the files say: written by `docs/make_performance.py`, not by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("make_performance", DOCS / "make_performance.py")
make_performance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_performance)


@pytest.mark.parametrize("name", ["performance.md", "gpu.md"])
def test_the_committed_page_is_what_the_files_give(name):
    """Would catch a number typed by hand, and a measurement whose page was not written again."""
    assert make_performance.pages(DOCS / "data")[name] == (DOCS / name).read_text()


def test_every_measurement_has_a_section():
    """Would catch a file of results that no page shows."""
    sections = make_performance.SECTIONS + make_performance.KNOWN_SECTIONS + make_performance.GPU_SECTIONS
    listed = {name for name, *_ in sections}
    assert {path.name for path in (DOCS / "data").glob("*.json")} <= listed


def test_without_gpu_results_every_mark_is_open(tmp_path):
    """Would catch a page that lets a reader believe that something was measured."""
    page = make_performance.pages(tmp_path)["gpu.md"]
    assert "None of the marks has been measured so far" in page and "## Measured" not in page
    assert "reached\n" not in page and "not measured" not in page  # said once, not for each mark
    assert page.index("In short") < page.index("## The marks")  # what is known comes first


def test_the_page_is_drawn_from_the_files_of_a_report(tmp_path):
    """Would catch a page that breaks on what `make gpu-report` writes; the files are made up."""
    where = {
        "gpu": "a GPU made up", "cpu": "a CPU", "cores": 16, "threads": 16, "load_average": [3.0, 3.0, 3.0],
        "driver": "580.1", "versions": {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0"},
        "python": "3.12.3", "date": "2026-11-27T12:00:00+00:00", "commit": "0" * 40, "command_line": ["bench", "x"],
    }  # fmt: skip
    stages = [
        {"stage": "tests", "outcome": "done", "seconds": 100.0},
        {
            "stage": "8b",
            "outcome": "stopped after 240 s; its file has what was measured by then",
            "seconds": 241.0,
        },
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
    shape, name = "llama-3.1-8b B64 n4096", make_performance.kernel_report.FLASH
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
    files = {
        "gpu_report": {"benchmark": "gpu-report", "stages": stages},
        "gpu_tests": {"benchmark": "gpu-tests", "runs": runs},
        "gpu_kernels": {
            "benchmark": "kernels", "results": kernels, "copy_bytes_per_second": 3e12,
            "floor_microseconds": [2.0], "method": {"repeats": 50},
        },
    }  # fmt: skip
    for file_name, result in files.items():
        (tmp_path / f"{file_name}.json").write_text(json.dumps({"provenance": where} | result))
    page = make_performance.pages(tmp_path)["gpu.md"]
    lines = {" ".join(line.split()) for line in page.splitlines()}
    assert "kernel tests on the device, passed all 499 of 500" in lines
    assert f"{shape}, of a copy 90% 89.6%" in lines and f"{shape}, of flash attention 95% 97.5%" in lines
    assert "llama-3.1-8b, of generate_batch 5x not measured" in lines and "so far" not in page
    assert "8b 241 s stopped after 240 s; its file has what was measured by then" in lines
    assert "control 99 passed 1 failed 9 s cut short" in lines and "driver 580.1, triton 3.6.0" in lines


def test_the_engines_mark_is_the_ratio_to_generate_batch(tmp_path):
    """Would catch the ratio the wrong way round, or that of another peer."""
    for shape, ours, theirs in (("llama-3.2-1b", 600.0, 100.0), ("llama-3.1-8b", 300.0, 200.0)):
        rates = {"minivllm": [ours, ours * 1.1], "hf-continuous": [theirs, theirs * 1.1]}
        backends = {name: {"output_tokens_per_second": {"values": values}} for name, values in rates.items()}
        where = {"load_average": [3.1, 0.1, 0.1], "cores": 16, "gpu": "made up"}
        result = {"backends": backends, "provenance": where}
        (tmp_path / f"gpu_{shape}.json").write_text(json.dumps(result))
    marks = " ".join(make_performance.gpu_marks(tmp_path).split())
    rows = make_performance.gpu_mark_rows(tmp_path)
    assert "llama-3.2-1b, of generate_batch 5x 6.00 [6.00, 6.00]x" in marks
    assert "llama-3.1-8b, of generate_batch 5x 1.50 [1.50, 1.50]x" in marks
    assert sum(reached == "not measured" for *_, reached in rows) == len(rows) - 2
    where["load_average"][0] = 9.0  # beside a GPU, half the cores may be busy
    (tmp_path / "gpu_llama-3.1-8b.json").write_text(json.dumps(result))
    assert "5x load 9.00 at the start, the limit is 8.0" in " ".join(
        make_performance.gpu_marks(tmp_path).split()
    )
