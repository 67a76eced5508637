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
    listed = {name for name, *_ in make_performance.SECTIONS + make_performance.GPU_SECTIONS}
    assert {path.name for path in (DOCS / "data").glob("*.json")} <= listed


def test_without_gpu_results_every_mark_is_open(tmp_path):
    """Would catch a page that lets a reader believe that something was measured."""
    page = make_performance.pages(tmp_path)["gpu.md"]
    assert page.count("not measured") == 6 and "## Measured" not in page


def test_the_engines_mark_is_the_ratio_to_generate_batch(tmp_path):
    """Would catch the ratio the wrong way round, or that of another peer."""
    for shape, ours, theirs in (("llama-3.2-1b", 600.0, 100.0), ("llama-3.1-8b", 300.0, 200.0)):
        rates = {"minivllm": [ours, ours * 1.1], "hf-continuous": [theirs, theirs * 1.1]}
        backends = {name: {"output_tokens_per_second": {"values": values}} for name, values in rates.items()}
        result = {"backends": backends, "provenance": {"load_average": [0.1, 0.1, 0.1]}}
        (tmp_path / f"gpu_{shape}.json").write_text(json.dumps(result))
    marks = " ".join(make_performance.gpu_marks(tmp_path).split())
    assert "llama-3.2-1b, of generate_batch 5x 6.00 [6.00, 6.00]x" in marks
    assert "llama-3.1-8b, of generate_batch 5x 1.50 [1.50, 1.50]x" in marks
    assert marks.count("not measured") == 4
    result["provenance"]["load_average"][0] = 2.0
    (tmp_path / "gpu_llama-3.1-8b.json").write_text(json.dumps(result))
    assert "5x load 2.00 at the start" in " ".join(make_performance.gpu_marks(tmp_path).split())
