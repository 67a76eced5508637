"""The tables of the page about GPUs: what is known without one, and the marks that a GPU has to reach.

Known are counts: the kernels are compiled for chips that are not there, and their instructions, registers and
bytes are counted (`minivllm/aot/resources.py`). The marks are rates, and every one is open until a file of
`make gpu-report` is there::

    mark                                        asked    reached
    llama-3.1-8b B64 n4096, of a copy             90%    not measured
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from measured.files import rates_of, read
from measured.tables import markdown
from minivllm.aot import resources
from minivllm.aot.chips import CHIPS
from minivllm.bench import gpu_tests, kernel_report
from minivllm.bench.report import Result, paired_ratio, why_no_ratio

H100 = 90
HF = "hf-continuous"
NOT_MEASURED = kernel_report.NOT_MEASURED
Selection = Mapping[str, object]
"""What tells one compilation of a kernel from another, see `resources.find`."""
# file in data/, what the mark is called, the backend that ours is compared with, how many times as fast
ENGINE_MARKS = [
    ("gpu_llama-3.2-1b.json", "llama-3.2-1b, of generate_batch", HF, 5.0),
    ("gpu_llama-3.1-8b.json", "llama-3.1-8b, of generate_batch", HF, 5.0),
    ("gpu_graphs.json", "llama-3.2-1b, 8 sequences, of eager", "minivllm-eager", 1.5),
]


# -- what is counted --------------------------------------------------------------------------------


def counted(data: Path) -> str:
    """What the machine code says of an H100, a line per question; nothing without the file."""
    result = read(data, "kernel_resources.json")
    if result is None:
        return ""
    records, chip = result["compiled"], CHIPS[H100]
    chips = {record["capability"] for record in records}
    spilled = sum(1 for record in records if record["stack"])
    naive, decode = (
        resources.find(records, capability=H100, kernel=kernel, **resources.PLAIN)[0]
        for kernel in (resources.NAIVE, resources.DECODE)
    )
    bound, lesson = resources.decode_bound(decode, chip), resources.decode_bound(naive, chip)
    enough, as_launched = chip.bytes_under_way_needed(), resources.PLAIN
    rows = [
        ["Do the kernels compile?", f"{len(records)} variants for {len(chips)} chips, {names(chips)}"],
        ["Do their values fit into registers?", f"in all but {spilled}"],
        [
            "Can decode keep the memory busy?",
            f"yes, as far as counting goes: {bound.programs} programs per multiprocessor have "
            f"{bound.bytes_under_way / 1000:.0f} KB under way, and {enough / 1000:.0f} KB are enough; their "
            f"instructions need {bound.issue_share:.0%} of the places",
        ],
        [
            "Could the naive kernel of notebook 10?",
            f"no: its instructions need {lesson.issue_share:.0%} of the places",
        ],
        ["What does the block table add?", difference(records, {"contiguous": True}, as_launched)],
        [
            "What would masking only the last tile save?",
            difference(records, as_launched, {"variant": "masked tail"}),
        ],
        [
            "And one block number per block?",
            difference(records, as_launched, {"variant": "one number per block"}),
        ],
    ]
    return markdown(("H100, Llama-3.1-8B's heads, float16", "counted"), rows)


def names(capabilities: set[int]) -> str:
    """ "T4 to RTX 5090": the oldest and the newest chip."""
    known = [CHIPS[each].name for each in sorted(capabilities)]
    return f"{known[0]} to {known[-1]}"


def difference(records: list[resources.Record], before: Selection, after: Selection) -> str:
    """ "decode -14%, prefill -23%": instructions per turn of a kernel's loop, compiled in two ways."""
    texts = []
    for kernel, name in ((resources.DECODE, "decode"), (resources.PREFILL, "prefill")):
        old, new = (
            resources.find(records, capability=H100, kernel=kernel, **which)[0]["loop_instructions"]
            for which in (before, after)
        )
        texts.append(f"{name} {new / old - 1:+.0%}")
    return f"{', '.join(texts)} of the instructions"


def host(data: Path) -> dict[str, str | float] | None:
    """Milliseconds of the host per decode step, and where that was measured; None without the file."""
    result = read(data, "cpu_fixed_64.json")
    if result is None:
        return None
    parts = result["profile"]["ms_a_decode_step"]
    return {
        "scheduling": parts["scheduling and bookkeeping"],
        "inputs": parts["input tensors"],
        "rows": result["workload"]["num_prompts"],
        "cpu": result["provenance"]["cpu"],
    }


# -- what a GPU has to show -------------------------------------------------------------------------


def mark_rows(data: Path) -> list[tuple[str, str, str]]:
    """The marks of the tests, the kernels and the engine, with what was reached or that nothing was."""
    reached = NOT_MEASURED
    if tests := read(data, "gpu_tests.json"):
        passed, failed = (sum(counts) for counts in zip(*map(gpu_tests.counts, tests["runs"]), strict=True))
        reached = f"{passed} of {passed + failed}"
    rows = [("kernel tests on the device, passed", "all", reached)]
    rows += kernel_report.mark_rows(read(data, "gpu_kernels.json"))
    for name, mark, peer, asked in ENGINE_MARKS:
        reached = NOT_MEASURED
        if result := read(data, name):
            reached = engine_mark(result, peer)
        rows.append((mark, f"{asked:g}x", reached))
    return rows


def engine_mark(result: Result, peer: str) -> str:
    """How many times as fast as `peer` minivllm is, or why that is not said; whether rounds are missing."""
    rates = rates_of(result)
    if peer not in rates:
        return f"{peer} failed"
    pair = {each: rates[each] for each in ("minivllm", peer)}
    reached = why_no_ratio(result["provenance"], pair) or f"{paired_ratio(*pair.values()):.2f}x"
    return f"{reached} (partial)" if "partial" in result else reached


def is_open(data: Path) -> bool:
    """Whether nothing has been measured on a GPU."""
    return all(reached == NOT_MEASURED for *_, reached in mark_rows(data))


def marks(data: Path) -> str:
    """All marks; the column of what was reached is left out while all of it would say "not measured"."""
    rows, heads = mark_rows(data), ("mark", "asked", "reached")
    width = 2 if is_open(data) else 3
    return markdown(heads[:width], [row[:width] for row in rows])
