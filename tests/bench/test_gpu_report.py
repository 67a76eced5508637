"""`make gpu-report` without a GPU: stages that fail, stages that take too long, and what is left of them."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minivllm.bench import gpu_report, gpu_tests, load_command, report
from minivllm.bench.gpu_report import STAGES, Setting, Stage
from minivllm.bench.gpu_tests import Recorder

FINE, BROKEN = ["-S", "-c", "print('fine')"], ["-S", "-c", "raise SystemExit('no compiler')"]


def parse(*argv):
    parser = argparse.ArgumentParser()
    gpu_report.add_arguments(parser)
    return parser.parse_args(argv)


def run(tmp_path, monkeypatch, stages, *argv):
    """The command on made-up stages; -> its exit status, and the outcome of each stage in its file."""
    monkeypatch.setattr(gpu_report, "STAGES", stages)
    folders = ["--output-dir", str(tmp_path / "out"), "--models-dir", str(tmp_path / "models")]
    status = gpu_report.run(parse("--rehearsal", *folders, *argv))
    result = json.loads((tmp_path / "out" / "gpu_report.json").read_text())
    return status, {stage["stage"]: stage["outcome"] for stage in result["stages"]}


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_each_stage_survives_the_failure_of_the_one_before(name, tmp_path, monkeypatch, capsys):
    """Would catch a failing stage, whichever it is, that takes the others with it."""
    stages = [Stage(each.name, 60, lambda _, n=each.name: [BROKEN if n == name else FINE]) for each in STAGES]
    status, outcomes = run(tmp_path, monkeypatch, stages)
    assert status == 1 and list(outcomes) == [stage.name for stage in STAGES]
    assert outcomes.pop(name) == "failed with exit status 1; see the log"
    assert set(outcomes.values()) == {"done"}
    log = (tmp_path / "out" / "gpu_report.log").read_text()
    assert log.count("fine\n") == len(STAGES) - 1 and "no compiler" in log
    assert "no compiler" in capsys.readouterr().out  # the end of each stage's output is shown as well


def test_a_stage_that_takes_too_long_ends_with_all_it_has_started(tmp_path, monkeypatch):
    """Would catch a stage that eats the time of those after it, or leaves compilers behind that do."""
    pid_file = tmp_path / "pid"
    child = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); open({str(pid_file)!r}, 'w').write(str(p.pid)); print('begun', flush=True); time.sleep(60)"
    stages = [
        Stage("slow", 2.0, lambda _: [["-S", "-c", child], FINE]),
        Stage("next", 60, lambda _: [FINE]),
    ]
    start = time.monotonic()
    status, outcomes = run(tmp_path, monkeypatch, stages, "--stages", "slow", "next")
    assert status == 1 and time.monotonic() - start < 50
    assert outcomes["slow"].startswith("stopped after 2 s") and outcomes["next"] == "done"
    assert "begun" in (tmp_path / "out" / "gpu_report.log").read_text()
    wait_until_gone(int(pid_file.read_text()))


def wait_until_gone(pid):
    """Fails unless the process ends (it may be a zombie until its new parent has looked)."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_an_interrupt_leaves_no_process_behind(tmp_path, monkeypatch):
    """Would catch Ctrl-C in the middle of a stage that leaves its processes on the GPU."""
    seen = []

    def interrupted(process, timeout=None):
        if not seen:
            seen.append(process.pid)
            raise KeyboardInterrupt
        return wait(process, timeout)

    wait = gpu_report.subprocess.Popen.wait
    monkeypatch.setattr(gpu_report.subprocess.Popen, "wait", interrupted)
    stages = [Stage("slow", 60, lambda _: [["-S", "-c", "import time; time.sleep(60)"]])]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, stages, "--stages", "slow")
    wait_until_gone(seen[0])


SLOW_REPORT = """
import sys
from minivllm import bench
from minivllm.bench import gpu_report
wait = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
gpu_report.STAGES = [gpu_report.Stage("slow", 600, lambda _: [["-S", "-c", wait, sys.argv[1]]])]
sys.exit(bench.main(["gpu-report", "--rehearsal", "--stages", "slow", "--output-dir", sys.argv[2]]))
"""


def test_a_killed_report_ends_its_stage(tmp_path):
    """Would catch a stage that goes on, and disturbs what runs on the GPU next: it is in a session of its own."""
    pid_file, command = tmp_path / "pid", [sys.executable, "-c", SLOW_REPORT]
    process = subprocess.Popen([*command, str(pid_file), str(tmp_path / "out")], cwd=gpu_report.ROOT)
    try:
        while not pid_file.exists() or not pid_file.read_text():
            assert process.poll() is None, "the report ended before its stage began"
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    finally:
        process.kill()
    wait_until_gone(int(pid_file.read_text()))


def test_a_report_ends_in_the_time_it_is_given(tmp_path, monkeypatch):
    """Would catch limits that add up to more than the machine is lent for: the last stages lose everything."""
    monkeypatch.setattr(gpu_report, "GRACE_SECONDS", 1)
    sleep = ["-S", "-c", "import time; time.sleep(600)"]
    stages = [Stage(name, 500, lambda _: [sleep]) for name in ("first", "second")]
    start = time.monotonic()
    status, outcomes = run(tmp_path, monkeypatch, stages, "--stages", "first", "second", "--seconds", "3")
    assert status == 1 and time.monotonic() - start < 120
    assert outcomes["first"].startswith("stopped after 2 s")
    assert outcomes["second"] == "not started: the 3 s of the report were over"


@pytest.mark.parametrize("commit", ["abc", "def", None])
def test_a_second_call_keeps_the_outcomes_of_the_first(commit, tmp_path, monkeypatch):
    """Would catch a second call that forgets the first, or takes another commit's stages for its own."""
    stages = [Stage("a", 60, lambda _: [BROKEN]), Stage("b", 60, lambda _: [FINE])]
    monkeypatch.setattr(report, "git_commit", lambda: "abc")
    assert run(tmp_path, monkeypatch, stages, "--stages", "a")[0] == 1
    monkeypatch.setattr(report, "git_commit", lambda: commit)
    status, outcomes = run(tmp_path, monkeypatch, stages, "--stages", "b")
    assert status == 0 and outcomes.pop("b") == "done"  # the status is that of this call
    assert list(outcomes) == (["a"] if commit == "abc" else [])


def test_what_needs_the_least_time_is_not_behind_what_needs_the_most():
    """Would catch CUDA graphs, measured in a minute, lost behind a model that `generate_batch` takes minutes for."""
    names = [stage.name for stage in STAGES]
    assert names.index("graphs") < names.index("1b") < names.index("8b")


@pytest.mark.parametrize("text", [gpu_report.__doc__, (gpu_report.ROOT / "docs" / "gpu.md").read_text()])
def test_the_two_calls_of_the_page_are_all_stages_in_their_order(text):
    """Would catch advice that leaves a stage out, gives one a time it cannot be in, or an option that is gone."""
    calls = re.findall(r'STAGES="([\w. ]+)" GPU_REPORT="(--seconds \d+)"', text)
    parsed = [parse("--stages", *names.split(), *words.split()) for names, words in calls]
    assert [name for args in parsed for name in args.stages] == [stage.name for stage in STAGES]
    assert all(args.seconds <= 600 for args in parsed) and sum(args.seconds for args in parsed) <= 900
    assert f"{sum(stage.seconds for stage in STAGES)} s" in text


def test_a_stage_whose_commands_cannot_be_found_is_only_its_own_failure(tmp_path, monkeypatch):
    """Would catch a broken result file of an earlier stage that ends the report."""

    def broken(setting):
        raise KeyError("results")

    stages = [Stage("tune", 60, broken), Stage("8b", 60, lambda _: [FINE])]
    assert run(tmp_path, monkeypatch, stages, "--stages", "tune", "8b") == (
        1,
        {"tune": "KeyError: 'results'", "8b": "done"},
    )


def test_results_are_written_after_each_stage(tmp_path, monkeypatch):
    """Would catch a summary that is written when all is over, on a machine that is gone by then."""
    known = []

    def look(setting):
        path = setting.results / "gpu_report.json"
        known.append(len(json.loads(path.read_text())["stages"]) if path.exists() else 0)
        return [FINE]

    stages = [Stage(str(number), 60, look) for number in range(3)]
    assert run(tmp_path, monkeypatch, stages, "--stages", "0", "1", "2")[0] == 0
    assert known == [0, 1, 2]


def test_without_a_gpu_nothing_is_started(tmp_path, monkeypatch, capsys):
    """Would catch six failures in place of one sentence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.run(parse("--output-dir", str(tmp_path / "out"))) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("rehearsal", [False, True])
def test_every_command_of_every_stage_exists(rehearsal, tmp_path):
    """Would catch an option that was renamed, found out on the lent machine."""
    setting = Setting(tmp_path, tmp_path / "models", rehearsal)
    shape = {"benchmark": "kernels", "copy_bytes_per_second": 1e12, "results": [
        {"kind": "decode", "shape": "llama-3.1-8b B16 n4096", "contender": "minivllm", "microseconds": [1e6], "work": 1}
    ]}  # fmt: skip
    (tmp_path / "gpu_kernels.json").write_text(json.dumps(shape))
    commands = {stage.name: stage.commands(setting) for stage in STAGES}
    assert "llama-3.1-8b B16 n4096" in commands["tune"][0]
    assert [len(each) for each in commands.values()] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # weights are made before they are used
    files = set()
    for command in [each for stage in commands.values() for each in stage]:
        if command[1] == "minivllm":
            module = load_command(command[3])
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            files.add(parser.parse_args(command[4:]).output_json)
    assert len(files) == 6  # and with report and log 8, in one folder
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "complete").touch()
    assert len(gpu_report.graphs(setting)) == (1 if rehearsal else 2)


def test_tuning_waits_for_a_missed_mark(tmp_path):
    """Would catch minutes spent on a kernel that is fast enough, or that was not measured."""
    assert gpu_report.tune(Setting(tmp_path, tmp_path, False)) == []


def test_the_recorder_keeps_what_has_run_so_far():
    """Would catch a test counted twice, a failure in a fixture that is not counted, and a file of the end only."""
    saved = []
    recorder = Recorder("all", lambda: saved.append(json.dumps(recorder.record)))
    for nodeid, when, outcome in (
        ("a", "setup", "passed"), ("a", "call", "passed"), ("a", "teardown", "passed"),
        ("b", "call", "failed"), ("c", "setup", "failed"),
    ):  # fmt: skip
        recorder.pytest_runtest_logreport(
            SimpleNamespace(nodeid=nodeid, when=when, failed=outcome == "failed")
        )
    assert (recorder.record["passed"], recorder.record["failed"]) == (1, ["b (call)", "c (setup)"])
    assert len(saved) == 3 and json.loads(saved[0])["exit_status"] is None
    recorder.finish(1)
    assert json.loads(saved[-1])["exit_status"] == 1


def test_gpu_tests_run_twice_and_the_second_time_without_pipelining(tmp_path, monkeypatch, capsys):
    """Would catch a control that is the same run again, and a failure that ends with exit status 0."""
    seen = []

    def main(arguments, plugins):
        seen.append(arguments)
        failed = len(seen) == 2
        plugins[0].pytest_runtest_logreport(SimpleNamespace(nodeid="x::y", when="call", failed=failed))
        return int(failed)

    monkeypatch.setattr(gpu_tests.pytest, "main", main)
    path = tmp_path / "tests.json"
    assert gpu_tests.run(argparse.Namespace(only=None, output_json=str(path))) == 1
    assert "--num-stages=1" not in seen[0] and "--num-stages=1" in seen[1]
    assert all(os.path.exists(name) for name in seen[1] if name.endswith(".py"))
    runs = json.loads(path.read_text())["runs"]
    assert [gpu_tests.counts(each) for each in runs] == [(1, 0), (0, 1)]
    assert "failed, attention with num_stages=1: x::y (call)" in capsys.readouterr().out


def test_gpu_tests_leave_out_every_file_that_needs_no_gpu(tmp_path, monkeypatch):
    """Would catch a new file of the CPU's kernels that costs a lent GPU its time, and a pattern that fits nothing."""
    seen = []
    monkeypatch.setattr(gpu_tests.pytest, "main", lambda arguments, plugins: seen.append(arguments) or 0)
    gpu_tests.run(argparse.Namespace(only=None, output_json=str(tmp_path / "tests.json")))
    prefix = "--ignore-glob="
    patterns = [word.removeprefix(prefix) for word in seen[0] if word.startswith(prefix)]
    found = {pattern: set(gpu_tests.FOLDER.glob(Path(pattern).name)) for pattern in patterns}
    assert all(found.values())
    left_out = {path.name for paths in found.values() for path in paths}
    assert {path.name for path in gpu_tests.FOLDER.glob("test_*_cpu.py")} < left_out
    # The first runs on CPUs only, the second in the interpreter, which a GPU's numpy may not suit.
    assert {"test_kernel_aot.py", "test_kernel_int64.py"} < left_out
    assert not left_out & {"test_kernel_gpu.py", "test_kernel_rows.py", *gpu_tests.ATTENTION}


def test_the_commit_can_be_told_where_there_is_no_git(monkeypatch):
    """Would catch results of a copy on a lent machine that belong to no commit."""

    def no_git(*arguments, **options):
        raise OSError

    monkeypatch.setattr(report.subprocess, "check_output", no_git)
    monkeypatch.delenv(report.COMMIT_VARIABLE, raising=False)
    assert report.git_commit() is None
    monkeypatch.setenv(report.COMMIT_VARIABLE, "abc")
    assert report.git_commit() == "abc"


def test_the_target_installs_nothing():
    """Would catch `make gpu-report` reaching for .venv or a package index."""
    lines = (gpu_report.ROOT / "Makefile").read_text().splitlines()
    start = lines.index("gpu-report:")  # no prerequisite: `install` is one
    assert "$(PYTHON) -m minivllm bench gpu-report" in lines[start + 1] and "$(BIN)" not in lines[start + 1]
