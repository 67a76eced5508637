"""`bench kernels` as far as it needs no GPU: the arithmetic, the report, and that all contenders agree."""

import argparse
import json
from dataclasses import asdict

import pytest
import torch

from minivllm.bench import kernel_contenders, kernel_report, kernel_timing, kernels, load_command
from minivllm.bench.kernel_contenders import (
    ONE_BLOCK,
    SDPA,
    make_batch,
    measure_decode,
    measure_prefill,
    measure_rows,
)
from minivllm.bench.kernel_report import (
    DECODE_SHAPES,
    FLASH,
    LLAMA_8B,
    PREFILL_SHAPES,
    AttentionShape,
    Failure,
    Heads,
    Measurement,
    decode,
    measurement_table,
)
from minivllm.bench.kernel_timing import Subject, is_right, measure_all, measure_copy, measure_floor
from minivllm.kernels import heuristics, paged_attention

TINY = Heads("tiny", 4, 2, 16)


class NoTimer:
    """Calls once and claims it took a millisecond."""

    # Where there is a GPU the kernels are compiled for it, and refuse other tensors.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, call):
        call()
        return [1000.0]


def parse(*argv):
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    return parser.parse_args(argv)


def test_bytes_are_those_of_the_reference_shape():
    """Catches a percentage computed from the wrong bytes: 64 x 4096 tokens of Llama-3.1-8B are 1 GiB of KV."""
    shape = decode(LLAMA_8B, 64, 4096)
    assert shape.work(2) == (1 << 30) + 2 * 64 * 32 * 128 * 2
    assert shape.work(4) == 2 * shape.work(2)


def test_flops_count_visible_scores_only():
    """Catches the full square counted for causal attention, which would double the rate."""
    tiny = Heads("tiny", 1, 1, 1)
    assert AttentionShape(tiny, 1, 3, 0).work(2) == 4 * (1 + 2 + 3)
    assert AttentionShape(tiny, 2, 3, 5).work(2) == 2 * 4 * (6 + 7 + 8)


def test_the_shapes_the_marks_speak_of_are_measured():
    """Catches a mark that nothing is compared with, and shapes that share a name."""
    names = [shape.name for shape in DECODE_SHAPES + PREFILL_SHAPES]
    assert len(set(names)) == len(names)
    assert set(names) >= kernel_report.MARKED_SHAPES
    for wanted in ("B64 n1024", "B64 n4096", "B64 n8192", "B16 n4096", "B1 n1024", "B1 n16384"):
        assert f"llama-3.1-8b {wanted}" in names
    assert any(name.startswith("smollm2") for name in names)


def test_percent_of_copy_and_table():
    """Catches a unit error: 1 GB in 1000 us is 1 TB/s, half of a copy at 2 TB/s."""
    half = Measurement("decode", "llama-3.1-8b B64 n4096", "minivllm", [900.0, 1000.0, 5000.0], 10**9, 1)
    assert half.percent_of(2e12) == pytest.approx(50.0)
    fast = Measurement("prefill", "some prompt", "minivllm", [1000.0], 10**12)
    table = measurement_table([half, fast], 2e12)
    heads, ours, prompt = (line.split() for line in table.splitlines())
    assert ours[-3:] == ["1000.0", "50.0%", "90%"]
    assert prompt[-2:] == ["1000.0", "1000.0"] and heads[-2:] == ["TFLOP/s", "mark"]


def test_without_a_gpu_it_says_so_and_fails(capsys, monkeypatch):
    """Catches a table of interpreter times that a reader could take for a measurement."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.run(parse()) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out


@pytest.fixture
def made_up_gpu(monkeypatch):
    """`bench kernels` believes in a GPU, on which a copy takes as long as it is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "a GPU made up")
    monkeypatch.setattr(kernels, "Timer", lambda repeats: NoTimer())
    monkeypatch.setattr(kernel_timing, "measure_copy", lambda timer: 2e12)


def test_the_whole_command_writes_reports_and_draws(made_up_gpu, monkeypatch, capsys, tmp_path):
    """Catches a benchmark that breaks after its last measurement, on a machine that is lent for minutes."""
    monkeypatch.setattr(kernels, "DECODE_SHAPES", (decode(TINY, 2, 48), decode(TINY, 1, 16)))
    monkeypatch.setattr(kernels, "PREFILL_SHAPES", (AttentionShape(TINY, 1, 16, 16),))
    monkeypatch.setattr(kernel_contenders, "flex_peer", lambda batch, causal: {})
    path, picture = tmp_path / "new" / "result.json", tmp_path / "result.png"
    assert kernels.run(parse("--only", "tiny", "--output-json", str(path), "--plot", str(picture))) == 0
    live = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert {"date", "commit", "gpu", "driver", "versions"} <= set(result["provenance"])
    assert result["results"][0]["microseconds"] == [1000.0]
    assert {r["shape"] for r in result["results"]} == {"tiny B2 n48", "tiny B1 n16", "tiny B1 q16 context 16"}
    assert picture.stat().st_size > 1000
    kernel_report.print_report(result)
    assert capsys.readouterr().out in live  # the page is written from the file, and says the same
    assert "what paging costs" in live and "+0% against the same kernel, +0% against torch" in live
    assert "a kernel with nothing to do takes 1000.0 us" in live
    with pytest.raises(ValueError, match="part of no shape's name"):
        kernels.run(parse("--only", "llama-17b"))


def test_tuning_keeps_what_it_has_measured(made_up_gpu, monkeypatch, tmp_path):
    """Catches minutes of a lent GPU lost because the list is written when it is complete."""
    seconds = iter(range(30, 0, -1))

    def interrupted(timer, call):
        call()
        try:
            return [float(next(seconds))]
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(kernel_timing, "measure_floor", lambda timer: [5.0])
    monkeypatch.setattr(NoTimer, "__call__", interrupted)
    monkeypatch.setattr(kernels, "DECODE_SHAPES", (decode(TINY, 1, 16),))
    path = tmp_path / "result.json"
    with pytest.raises(KeyboardInterrupt):
        kernels.run(parse("--tune", "tiny B1 n16", "--output-json", str(path)))
    results = json.loads(path.read_text())["results"]
    times = [result["microseconds"][0] for result in results]
    assert times == [float(second) for second in range(1, 31)]  # fastest first
    assert (
        results[-1]["contender"] == "N64 warps 4 stages 3 splits 1"
    )  # what the heuristics choose is tried first
    with pytest.raises(ValueError, match="--tune takes one of the shapes tiny B1 n16"):
        kernels.run(parse("--tune", "tiny"))


def test_marks_are_read_from_results_or_not_measured():
    """Catches a mark that looks reached without a measurement, or is compared with the wrong contender."""
    rows = kernel_report.mark_rows(None)
    assert len(rows) == 3 + 3 + 1 and all(reached == "not measured" for *_, reached in rows)
    shape = "llama-3.1-8b B1 n16384"
    times = {"minivllm": 40.0, "minivllm, no split": 200.0, ONE_BLOCK: 32.0, SDPA: 50.0}
    measurements = [Measurement("decode", shape, name, [time], 60_000_000) for name, time in times.items()]
    result = {"copy_bytes_per_second": 3e12, "results": [asdict(m) for m in measurements]}
    rows = kernel_report.mark_rows(result)
    reached = {(name, asked): reached for name, asked, reached in rows if reached != "not measured"}
    assert reached == {(f"{shape}, of a copy", "60%"): "50.0%", (f"{shape}, split-KV", "4x"): "5.00x"}
    assert kernel_report.missed_decode_shapes(result) == [shape]
    result["copy_bytes_per_second"] = 2e12
    assert kernel_report.missed_decode_shapes(result) == []
    # Half the time of flash attention is 200% of its speed; ten times as much, 10%.
    prompt = "llama-3.1-8b B1 q8192 context 0"
    times = {"minivllm": 400.0, FLASH: 40.0}
    measurements = [Measurement("prefill", prompt, name, [time], 10**9) for name, time in times.items()]
    result["results"] = [asdict(m) for m in measurements]
    assert (f"{prompt}, of flash attention", "60%", "10.0%") in kernel_report.mark_rows(result)
    result["results"] = [asdict(Measurement("decode", shape, name, [time], 60_000_000)) for name, time in [
        ("minivllm", 40.0), (ONE_BLOCK, 32.0), (SDPA, 50.0)]]  # fmt: skip
    measurements = kernel_report.measurements_of(result)
    costs = kernel_report.paging_costs(measurements)
    assert costs == {shape: {"the same kernel": 1.25, "torch": 0.8}}


def test_a_measurement_survives_the_file():
    """Catches a field that is lost between the GPU and the page."""
    with_splits = Measurement("decode", "a", "b", [1.0, 2.0], 10, 4)
    prefill = Measurement("prefill", "a", "b", [1.0, 2.0], 10)
    for m in (with_splits, prefill):
        assert Measurement(**json.loads(json.dumps(asdict(m)))) == m


def test_the_command_is_the_module():
    """Catches a command that leads nowhere."""
    assert load_command("kernels") is kernels


def test_all_contenders_compute_the_same_attention(monkeypatch):
    """Catches a peer that is given other keys, and so other work, than our kernel."""
    monkeypatch.setattr(kernel_contenders, "flex_peer", lambda batch, causal: {})  # compiles for seconds
    found = list(measure_decode(decode(TINY, 2, 48), torch.float16, NoTimer()))
    switches = ["minivllm, masked tail", "minivllm, one number per block", "minivllm, all three"]
    assert [m.contender for m in found][:9] == [
        "minivllm", "minivllm, no split", "minivllm, 16 splits", "minivllm, one block per sequence",
        "minivllm, at least 256 tokens per split", *switches, "minivllm, naive lesson",
    ]  # fmt: skip
    assert "torch sdpa, contiguous" in [m.contender for m in found]
    alone = [m.contender for m in measure_decode(decode(TINY, 1, 16), torch.float16, NoTimer())]
    assert {f"minivllm, 32 splits of at least {least} tokens" for least in (0, 256)} <= set(alone)
    fresh = list(measure_prefill(AttentionShape(TINY, 2, 32, 0), torch.float16, NoTimer()))
    ours = ["minivllm", "minivllm, one block per sequence", *switches]
    assert [m.contender for m in fresh][:6] == [*ours, "torch sdpa, contiguous"]
    chunk = list(measure_prefill(AttentionShape(TINY, 2, 16, 32), torch.float16, NoTimer()))
    assert [m.contender for m in chunk] == ours
    rows = list(measure_rows(2, torch.float16, NoTimer()))
    assert [m.contender for m in rows] == ["minivllm", "torch"] * 2
    assert measure_copy(NoTimer(), num_bytes=1000) == 2 * 1000 / 1e-3
    assert measure_floor(NoTimer()) == [1000.0]


def test_an_h100s_largest_tile_is_timed_with_more_stages_and_at_once(monkeypatch):
    """Would catch 5 stages behind all else, where time is over, or asked for on a chip with another tile."""
    shapes, deeper = (AttentionShape(TINY, 1, 256, 0), AttentionShape(TINY, 1, 240, 0)), []
    monkeypatch.setattr(kernel_contenders, "flex_peer", lambda batch, causal: {})
    for chip in (heuristics.Chip(90, 132), heuristics.Chip(89, 128)):
        monkeypatch.setattr(heuristics, "chip_of", lambda device, chip=chip: chip)
        for shape in shapes:
            found = measure_prefill(shape, torch.float16, NoTimer(), kernel_contenders.PASSES[0])
            deeper.append([m.contender for m in found if m.contender not in ("minivllm", FLASH)])
    assert deeper == [["minivllm, 5 stages"], [], [], []]


def test_what_the_marks_need_is_measured_first(monkeypatch):
    """Would catch a machine that is taken away before any mark was measured, and a contender measured twice."""
    measured = []

    def note(shape, dtype, timer, wanted):
        names = ["minivllm", "minivllm, no split", FLASH, SDPA, "flex attention, contiguous"]
        measured.extend((shape.name, name) for name in names if wanted(name))
        return iter(())

    for name in ("measure_decode", "measure_prefill"):
        monkeypatch.setattr(kernel_contenders, name, note)
    monkeypatch.setattr(kernel_contenders, "measure_rows", lambda *arguments: iter(()))
    list(kernels.measure_shapes("", torch.float16, NoTimer()))
    marked = kernel_report.MARKED_SHAPES
    assert {shape for shape, _ in measured[: 3 * len(marked)]} == marked
    assert {name for _, name in measured[: 3 * len(marked)]} == {"minivllm", "minivllm, no split", FLASH}
    assert len(set(measured)) == len(measured) == 5 * len(DECODE_SHAPES + PREFILL_SHAPES)
    assert all("flex" in name for _, name in measured[-len(DECODE_SHAPES + PREFILL_SHAPES) :])


def test_a_wrong_kernel_is_not_timed(capsys):
    """Catches a benchmark that rewards a kernel for skipping work: zeros are never right."""
    right = torch.randn(10, 10)
    assert is_right(right.half(), right) and not is_right(torch.zeros(10, 10), right)
    assert not is_right(right * torch.nan, right)
    subject = Subject("decode", "a shape", 10, right)

    def broken():
        raise OSError("no compiler")

    wrong = "RuntimeError: wrong gives a wrong answer; its time would mean nothing."
    contenders = {"wrong": lambda: right + 1, "broken": broken, "good": lambda: right}
    good = Measurement("decode", "a shape", "good", [1000.0], 10)
    assert list(measure_all({}, contenders, subject, NoTimer())) == [good]
    out = capsys.readouterr().out
    assert f"wrong: {wrong}" in out and "broken: OSError: no compiler" in out
    assert list(measure_all(contenders, {}, subject, NoTimer())) == [
        Failure("a shape", "wrong", wrong), Failure("a shape", "broken", "OSError: no compiler"), good,
    ]  # fmt: skip


def test_a_kernel_of_ours_that_fails_is_named_and_ends_nothing(made_up_gpu, monkeypatch, capsys, tmp_path):
    """Would catch all other results lost with the naive lesson, and a failure that ends with exit status 0."""

    def broken(*arguments):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(paged_attention, "paged_attention_naive", broken)
    monkeypatch.setattr(kernels, "DECODE_SHAPES", (decode(TINY, 2, 48), decode(TINY, 1, 16)))
    monkeypatch.setattr(kernels, "PREFILL_SHAPES", ())
    monkeypatch.setattr(kernel_contenders, "flex_peer", lambda batch, causal: {})
    path = tmp_path / "result.json"
    assert kernels.run(parse("--only", "tiny", "--output-json", str(path))) == 1
    result, live = json.loads(path.read_text()), capsys.readouterr().out
    named = [(f["shape"], f["contender"]) for f in result["failures"]]
    assert named == [(shape, "minivllm, naive lesson") for shape in ("tiny B2 n48", "tiny B1 n16")]
    assert {r["contender"] for r in result["results"]} >= {"minivllm", "minivllm, all three", SDPA}
    assert "2 of ours failed\n  tiny B2 n48: minivllm, naive lesson: RuntimeError: out of resource" in live


def test_a_mark_whose_kernel_failed_says_so(tmp_path):
    """Would catch a failed kernel that a reader takes for one not yet tried, and a figure without any bar."""
    shape = "llama-3.1-8b B64 n4096"
    failures = [asdict(Failure(shape, "minivllm", "OSError: no compiler"))]
    result = {"copy_bytes_per_second": 3e12, "results": [], "failures": failures}
    rows = [(name, reached) for name, _, reached in kernel_report.mark_rows(result) if reached == "failed"]
    assert rows == [(f"{shape}, of a copy", "failed"), (f"{shape}, of flash attention", "failed")]
    where = {"gpu": "made up", "date": "2026-11-28T00:00:00"}
    kernel_report.plot(result | {"provenance": where}, str(tmp_path / "empty.png"))


def test_the_paged_copy_holds_the_same_numbers():
    """Catches a block table that does not lead back to the contiguous keys."""
    batch = make_batch(decode(TINY, 3, 64), torch.float32, torch.device("cpu"))
    assert torch.equal(batch.key_cache[batch.block_tables.long()].flatten(1, 2), batch.key)
    assert torch.equal(batch.value_cache[batch.block_tables.long()].flatten(1, 2), batch.value)
    assert batch.block_tables.flatten().tolist() != list(range(12))
