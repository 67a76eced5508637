"""What each GPU would give the kernels: registers, shared memory, programs side by side. Needs no GPU.

    $ python -m minivllm bench resources
    $ python -m minivllm bench resources 90 --output-json docs/data/kernel_resources.json

Triton brings NVIDIA's assembler along, so every kernel can be compiled for chips that are not there
(`kernel_compile.py`). The machine code says what one program needs, the data sheet (`chips.py`) what a
multiprocessor has. For decode attention, which has to keep the memory busy, three things follow::

    H100 SXM, Llama-3.1-8B, float16: 484 instructions per turn of the loop, for 64 keys, 32,768 bytes of K and
    V

    programs side by side      4         as many as its 65,536 registers allow
    bytes under way            131 KB    one tile for each of them, when all wait; 25 KB would be enough
                                         (Little's law)
    places for instructions    19%       4 warps on 4 schedulers start them in 484 cycles; the memory takes
                                         2,557 cycles for the bytes

None of this is a speed: it counts instructions, not how long they wait for each other, and it takes the
multiprocessors to be full, which they are not with a small batch. It does show what cannot work: the naive
kernel has to issue more instructions than the time allows, even if all else goes well. What paging adds is in
the table as well: the same kernels compiled as if K and V lay in one piece. And so is what each of the
kernels' switches changes (`Switches` in `kernels/heuristics.py`), which wait for a GPU to be timed.

Source of the method: S. Williams and others, "Roofline" (2009), with instructions in place of operations.
vLLM has nothing like it; there is always a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from minivllm.aot.chips import CHIPS, SCHEDULERS_PER_SM, ChipFacts
from minivllm.bench import options, report

DECODE, PREFILL, NAIVE = "_paged_attention_kernel", "_prefill_kernel", "_naive_kernel"
LLAMA = {"dtype": "float16", "heads": "llama8b"}  # what the tables are about
PLAIN = {**LLAMA, "contiguous": None, "variant": None}  # as the engine launches them
WITH_SWITCHES = (80, 90)  # the chips on which the kernels' switches are counted
BLOCK_SIZE = 16  # tokens per turn of the naive kernel, which takes one block at a time
Record = dict[str, Any]
"""One compilation, as `kernel_compile.py` prints it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minivllm bench resources`."""
    known = ", ".join(map(str, CHIPS))
    parser.add_argument("capability", nargs="*", type=int, help=f"compute capabilities, of {known}")
    options.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compile, print, write. A minute or two for all chips.

    Raises:
        ValueError: a capability that is not in `CHIPS`.
    """
    chips = args.capability or list(CHIPS)
    if unknown := [chip for chip in chips if chip not in CHIPS]:
        raise ValueError(f"no chip of capability {unknown[0]}; there are {', '.join(map(str, CHIPS))}.")
    print(f"compiling for {', '.join(CHIPS[chip].name for chip in chips)}", flush=True)
    result, names = report.new_result("resources"), [str(chip) for chip in chips]
    two = [str(chip) for chip in chips if chip in WITH_SWITCHES]
    jobs = [names, ["contiguous", *names], ["variants", *two], ["evict_first", *two]]
    result["compiled"] = compile_in_processes(jobs)
    return report.finish(args, result, print_report)


def compile_in_processes(jobs: list[list[str]]) -> list[Record]:
    """Run `kernel_compile.py` once for each list of arguments, side by side, without the interpreter.

    Raises:
        RuntimeError: one of them failed; with the end of its messages.
    """
    # One thread each: the compiler uses one, and torch would start as many as there are cores.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minivllm.aot.kernel_compile"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, *arguments], env=environment, **pipes) for arguments in jobs]
    # Wait for all compilers before one may raise: a compiler left alone would go on.
    answers = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"compiling the kernels failed:\n{errors[-3000:]}")
    return [json.loads(line) for out, _ in answers for line in out.splitlines()]


@dataclass(frozen=True)
class DecodeBound:
    """What one decode kernel can do at best on one chip.

    Attributes:
        programs: side by side on one multiprocessor.
        bytes_under_way: of K and V, on one multiprocessor, when each program waits for its next tile.
        issue_share: of the instructions that a multiprocessor can start while the memory runs at full speed.
    """

    programs: int
    bytes_under_way: int
    issue_share: float


def decode_bound(record: Record, chip: ChipFacts) -> DecodeBound:
    """Little's law and the issue slots for one compiled decode kernel, float16 or bfloat16.

    Args:
        record: of `_paged_attention_kernel` or `_naive_kernel`.
        chip: the one it was compiled for.

    Example, H100, 484 instructions per turn for 64 keys: 64 * 128 * 2 * 2 = 32,768 bytes. 4 warps start
    4 * 484 instructions on 4 schedulers in 484 cycles. The memory needs 32,768 / 12.8 = 2,557 cycles for the
    bytes, so 19% of the places are used. The naive kernel has a program for each head, and the G heads of a
    group read the same bytes: only a G-th of what it reads counts. And it asks for a block's values only when
    it has used the keys, so only half of a tile is under way.
    """
    naive = record["kernel"] == NAIVE
    tile_bytes = (BLOCK_SIZE if naive else record["BLOCK_N"]) * record["D"] * 2 * 2
    programs = chip.programs_per_sm(record["registers"], record["shared"], record["num_warps"])
    cycles = record["loop_instructions"] * record["num_warps"] / SCHEDULERS_PER_SM
    useful_bytes = tile_bytes / (record["G"] if naive else 1)
    under_way = programs * tile_bytes // (2 if naive else 1)
    return DecodeBound(programs, under_way, cycles * chip.bytes_per_cycle() / useful_bytes)


def find(records: list[Record], **wanted: object) -> list[Record]:
    """The records with these values; a key that a record lacks counts as None."""
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def print_report(result: report.Result) -> None:
    """Four tables: decode on each chip, what does not fit into registers, what paging and switches change."""
    records = result["compiled"]
    chips = [CHIPS[capability] for capability in sorted({r["capability"] for r in records})]
    print(f"triton {result['provenance']['versions'].get('triton')}\n")
    print("Decode attention, Llama-3.1-8B, float16: what a multiprocessor holds, and what it has to do")
    print(decode_table(records, chips))
    spilled = [r for r in records if r["stack"]]
    print(f"\n{len(records)} kernels compiled, {len(spilled)} with registers in memory")
    for r in spilled:
        which = " ".join([CHIPS[r["capability"]].name, r["kernel"], r["dtype"], r["heads"]])
        print(f"  {which}{', ' + r['variant'] if r.get('variant') else ''}: {r['stack']} bytes")
    print("\nWhat paging adds per turn of the loop, in instructions")
    print(paging_table(records, chips))
    print(
        "\nWhat each switch of the kernels changes: instructions per turn of the loop, registers of a thread"
    )
    print(switch_table(records, chips))


def decode_table(records: list[Record], chips: list[ChipFacts]) -> str:
    """`decode_bound` of the kernel and of the naive lesson on each chip."""
    rows = [("", "", "registers", "shared", "programs", "under way", "(enough)", "instructions", "issue")]
    for chip in chips:
        for kernel, name in ((DECODE, "paged"), (NAIVE, "naive lesson")):
            for r in find(records, capability=chip.capability, kernel=kernel, **PLAIN):
                bound, enough = decode_bound(r, chip), chip.bytes_under_way_needed()
                cells = (r["registers"], f"{r['shared'] / 1024:.0f} KiB", bound.programs)
                under_way = (f"{bound.bytes_under_way / 1000:.0f} KB", f"({enough / 1000:.0f} KB)")
                issue = (r["loop_instructions"], f"{bound.issue_share:.0%}")
                rows.append((chip.name, name, *map(str, (*cells, *under_way, *issue))))
    return report.table(rows)


def paging_table(records: list[Record], chips: list[ChipFacts]) -> str:
    """Instructions per turn with and without the block table."""
    rows = [("", "", "contiguous", "paged", "")]
    for chip in chips:
        for kernel, name in ((DECODE, "decode"), (PREFILL, "prefill")):
            wanted = {"capability": chip.capability, "kernel": kernel}
            paged_records = find(records, **wanted, **PLAIN)
            for contiguous, paged in zip(
                find(records, **wanted, contiguous=True), paged_records, strict=False
            ):
                before, after = contiguous["loop_instructions"], paged["loop_instructions"]
                rows.append((chip.name, name, str(before), str(after), f"+{after / before - 1:.0%}"))
    return report.table(rows)


def switch_table(records: list[Record], chips: list[ChipFacts]) -> str:
    """Each variant beside the kernel as it is: "484 -> 410 (-15%), 125 -> 127" instructions and registers."""
    names = list(dict.fromkeys(r["variant"] for r in records if r.get("variant")))
    rows = [("", "switch", "decode", "registers", "prefill", "registers")]
    for chip, name in itertools.product(chips, names):
        cells: list[str] = []
        for kernel in (DECODE, PREFILL):
            wanted = {"capability": chip.capability, "kernel": kernel}
            plain, variant = find(records, **wanted, **PLAIN), find(records, **wanted, variant=name)
            cells += change(plain[-1], variant[-1]) if plain and variant else ["", ""]
        if any(cells):
            rows.append((chip.name, name, *cells))
    return report.table(rows)


def change(before: Record, after: Record) -> list[str]:
    """Instructions and registers of a kernel and its variant."""
    instructions = before["loop_instructions"], after["loop_instructions"]
    share = instructions[1] / instructions[0] - 1
    return [
        f"{instructions[0]} -> {instructions[1]} ({share:+.0%})",
        f"{before['registers']} -> {after['registers']}",
    ]
