"""The command line and the demo."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minivllm.cli import main, make_parser
from minivllm.viz.drawing import draw_block_tables, fullest_step
from minivllm.viz.trace import Trace
from tests.helpers import add, make_scheduler, run_model

ROOT = Path(__file__).parent.parent


def test_generate_prints_each_completion(tiny_llama, capsys):
    """Would catch an option that is parsed and then not handed on."""
    argv = ["generate", "abc", "de", "--model", str(tiny_llama), "--max-tokens", "3", "--temperature", "0"]
    assert main([*argv, "--num-blocks", "16"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split(",")[0] for line in lines if line.startswith("Prompt: ")] == [
        "Prompt: 'abc'",
        "Prompt: 'de'",
    ]


def test_chat_quick_answers_one_question(tiny_llama, capsys):
    """Would catch a chat that waits for input after --quick."""
    assert (
        main(["chat", "-q", "hi", "--model", str(tiny_llama), "--max-tokens", "4", "--num-blocks", "64"]) == 0
    )
    assert capsys.readouterr().out.endswith("\n")


def test_chat_ends_with_the_input(tiny_llama, capsys, monkeypatch):
    """Would catch a conversation that cannot be left with Ctrl-D."""
    lines = iter(["hello", "and more"])

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", "--model", str(tiny_llama), "--max-tokens", "4", "--num-blocks", "64"]) == 0
    assert "an empty line or Ctrl-D ends" in capsys.readouterr().out


def test_a_wrong_value_is_one_line_and_exit_status_one(tiny_llama, capsys):
    """Would catch a traceback where a sentence is enough."""
    assert main(["generate", "a", "--model", str(tiny_llama), "--block-size", "0"]) == 1
    assert capsys.readouterr().err == "ValueError: block_size must be at least 1, got 0.\n"


@pytest.mark.parametrize("command", ["generate", "chat", "demo"])
def test_help_names_vllms_options(command, capsys):
    """Would catch an option renamed away from vLLM's spelling."""
    with pytest.raises(SystemExit) as exit_info:
        make_parser().parse_args([command, "--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--model", "--dtype", "--max-model-len", "--block-size", "--max-num-seqs", "--seed",
                   "--max-num-batched-tokens", "--enable-prefix-caching", "--no-enable-prefix-caching",
                   "--num-gpu-blocks-override", "--kv-cache-memory-bytes", "--enforce-eager"):  # fmt: skip
        assert option in shown


def test_the_command_line_starts_without_torch():
    """Would catch a --help that takes seconds because it loads a model library."""
    code = "import sys; from minivllm.cli import make_parser; make_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_demo_reports_what_ran(tiny_llama, capsys):
    """Would catch a report whose numbers do not come from the run: they are added up again here."""
    argv = ["demo", "--model", str(tiny_llama), "--max-tokens", "8", "--block-size", "16", "--num-blocks", "128",
            "--max-model-len", "256"]  # fmt: skip
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "Question: What is the capital of France?" in shown
    assert shown.count("Generated text:") == 4
    assert "5 requests, " in shown and " output tokens/s" in shown
    drawn = shown[shown.index("block table\n") :]
    tokens = drawn.split("KV memory")[0].count("#")
    assert f"used {tokens * 256 * 2 / (1 << 20):.2f} MiB" in shown  # 2 layers x 2 x 2 heads x 16 x 4 bytes
    assert "Reserving max_model_len = 256 tokens for each of the 5 sequences" in shown


def test_drawing_of_the_worked_example():
    """Would catch a drawing that shows another table than the engine's (README shows this one)."""
    scheduler = make_scheduler(num_blocks=8, block_size=4)
    blocks = scheduler.kv.pool.allocate(8)
    scheduler.kv.pool.free([blocks[7], blocks[2]])
    add(scheduler, 0, 6, max_tokens=3)
    trace = Trace(start_time=0.0)
    plan = scheduler.schedule()
    updated = scheduler.update_from_output(plan, run_model(scheduler, plan))
    trace.record(plan, updated, scheduler, now=0.1)
    drawn = draw_block_tables(fullest_step(trace), trace.block_size)
    assert drawn == "request  tokens  block table\n0             6  [7 2]  |####|##..|"


def test_drawing_shows_a_sequence_that_was_never_freed():
    """Would catch a KeyError just when a student looks for the leak."""
    scheduler = make_scheduler(num_blocks=8, block_size=4)
    add(scheduler, "a", 6, max_tokens=3)
    trace = Trace(start_time=0.0)
    plan = scheduler.schedule()
    updated = scheduler.update_from_output(plan, run_model(scheduler, plan))
    trace.record(plan, updated, scheduler, now=0.1)
    leaked = replace(trace.steps[0], requests={}, filled={})
    assert draw_block_tables(leaked, 4).split("\n")[1] == "(leaked)       0  [0 1]  |....|....|"
    scheduler.abort("a")


def test_drawing_marks_shared_blocks_and_cuts_long_tables():
    """Would catch shared blocks that look like private ones."""
    scheduler = make_scheduler(num_blocks=64, block_size=2)
    add(scheduler, 0, 21, n=2, max_tokens=4)
    trace = Trace(start_time=0.0)
    plan = scheduler.schedule()
    updated = scheduler.update_from_output(plan, run_model(scheduler, plan))
    trace.record(plan, updated, scheduler, now=0.1)
    drawn = draw_block_tables(trace.steps[0], 2, max_columns=4).split("\n")
    assert len(drawn) == 3
    assert "[0* 1* .. 9* 10*]" in drawn[1]
    assert drawn[1].endswith("|##|##|..|##|#.|")
    with pytest.raises(ValueError, match="the trace has no steps"):
        fullest_step(Trace())
