"""What each GPU would give the kernels: registers, shared memory, programs side by side. Needs no GPU.

    $ python -m minivllm bench resources
    $ python -m minivllm bench resources 90 --output-json docs/data/kernel_resources.json

Triton brings NVIDIA's assembler along, so every kernel can be compiled for chips that are not there
(`kernel_compile.py`). The machine code says what one program needs, the data sheet (`chips.py`) what a
multiprocessor has. For decode attention, which has to keep the memory busy, three things follow::

    H100 SXM, Llama-3.1-8B, float16: 499 instructions a turn of the loop, for 64 keys, 32,768 bytes of K and V

    programs side by side      4         as many as its 65,536 registers allow
    bytes under way            131 KB    one tile for each of them, when all wait; 25 KB would be enough
                                         (Little's law)
    places for instructions    20%       4 warps on 4 schedulers start them in 499 cycles; the memory takes
                                         2,557 cycles for the bytes

None of this is a speed. It counts instructions, not how long they wait for each other, and it takes the
multiprocessors to be full, which a small batch does not make them. A program with one tile buffered waits and
computes by turns, so on average less is under way than the table says. What it does show is what cannot work:
the naive kernel has to issue more instructions than the time allows, whatever else happens. What paging adds
is in the table as well: the same kernels compiled as if K and V lay in one piece.

Source of the method: S. Williams and others, "Roofline" (2009), with instructions in place of operations.
vLLM has nothing like it; there is always a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from minivllm.bench import report
from minivllm.bench.chips import CHIPS, SCHEDULERS_PER_SM, ChipFacts

DECODE, PREFILL, NAIVE = "_paged_attention_kernel", "_prefill_kernel", "_naive_kernel"
LLAMA = {"dtype": "float16", "heads": "llama8b"}  # what the tables are about
BLOCK_SIZE = 16  # tokens a turn of the naive kernel, which takes one block at a time
Record = dict[str, Any]
"""One compilation, as `kernel_compile.py` prints it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minivllm bench resources`."""
    parser.add_argument(
        "capability", nargs="*", type=int, help=f"compute capabilities, of {', '.join(map(str, CHIPS))}"
    )
    parser.add_argument("--output-json", help="write every compilation and its provenance to this file")


def run(args: argparse.Namespace) -> int:
    """Compile, print, write. A minute or two for all chips.

    Raises:
        ValueError: a capability that is not in `CHIPS`.
    """
    chips = args.capability or list(CHIPS)
    if unknown := [chip for chip in chips if chip not in CHIPS]:
        raise ValueError(f"no chip of capability {unknown[0]}; there are {', '.join(map(str, CHIPS))}.")
    print(f"compiling for {', '.join(CHIPS[chip].name for chip in chips)}", flush=True)
    names = [str(chip) for chip in chips]
    records = compile_in_processes([names, ["contiguous", *names]])
    result = {"benchmark": "resources", "provenance": report.provenance(), "compiled": records}
    print_report(result)
    if args.output_json:
        report.write_json(args.output_json, result)
    return 0


def compile_in_processes(jobs: list[list[str]]) -> list[Record]:
    """Run `kernel_compile.py` once for each list of arguments, side by side, without the interpreter.

    Raises:
        RuntimeError: one of them failed; with the end of what it said.
    """
    # One thread each: the compiler uses one, and torch would start as many as there are cores.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "minivllm.bench.kernel_compile", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in jobs
    ]
    # All are waited for before one may raise: a compiler that nobody waits for would go on.
    answers = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"compiling the kernels failed:\n{errors[-3000:]}")
    return [json.loads(line) for out, _ in answers for line in out.splitlines()]


@dataclass(frozen=True)
class DecodeBound:
    """What one decode kernel can do at best on one chip."""

    programs: int
    # Of K and V, on one multiprocessor, at the moments when each program waits for its next tile.
    bytes_under_way: int
    # Of the instructions that a multiprocessor can start, while the memory delivers at full speed.
    issue_share: float


def decode_bound(record: Record, chip: ChipFacts) -> DecodeBound:
    """Little's law and the issue slots for one compiled decode kernel, float16 or bfloat16.

    Args:
        record: of `_paged_attention_kernel` or `_naive_kernel`.
        chip: the one it was compiled for.

    Example, H100, 499 instructions a turn for 64 keys: 64 * 128 * 2 * 2 = 32,768 bytes a turn. 4 warps start
    4 * 499 instructions on 4 schedulers in 499 cycles. The memory needs 32,768 / 12.8 = 2,557 cycles for the
    bytes, so 20% of the places are used. The naive kernel has a program for each head, and the G heads of a
    group read the same bytes: only a G-th of what it reads counts. And it asks for a block's values only when
    it has used the keys, so only half of a tile is under way.
    """
    naive = record["kernel"] == NAIVE
    keys = BLOCK_SIZE if naive else record["BLOCK_N"]
    tile_bytes = keys * record["D"] * 2 * 2
    programs = chip.programs_per_sm(record["registers"], record["shared"], record["num_warps"])
    cycles = record["loop_instructions"] * record["num_warps"] / SCHEDULERS_PER_SM
    useful_bytes = tile_bytes / (record["G"] if naive else 1)
    under_way = programs * tile_bytes // (2 if naive else 1)
    return DecodeBound(programs, under_way, cycles * chip.bytes_per_cycle() / useful_bytes)


def find(records: list[Record], **wanted: object) -> list[Record]:
    """The records with these values; a key that a record lacks counts as None."""
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def print_report(result: dict[str, Any]) -> None:
    """Three tables: decode on each chip, what does not fit into registers, what paging adds."""
    records = result["compiled"]
    chips = [CHIPS[capability] for capability in sorted({r["capability"] for r in records})]
    print(f"triton {result['provenance']['versions'].get('triton')}\n")
    print("Decode attention, Llama-3.1-8B, float16: what a multiprocessor holds, and what it has to do")
    print(f"{'registers':>35}{'shared':>8}{'programs':>10}  under way (enough)  instructions  issue")
    for chip in chips:
        for kernel, name in ((DECODE, "paged"), (NAIVE, "naive lesson")):
            for r in find(records, capability=chip.capability, kernel=kernel, **LLAMA, contiguous=None):
                bound = decode_bound(r, chip)
                print(
                    f"  {chip.name:<11}{name:<13}{r['registers']:>9}{r['shared'] / 1024:>6.0f}KB"
                    f"{bound.programs:>10}{bound.bytes_under_way / 1000:>9.0f}KB"
                    f" ({chip.bytes_under_way_needed() / 1000:.0f}KB)".ljust(22)
                    + f"{r['loop_instructions']:>12}{bound.issue_share:>7.0%}"
                )
    spilled = [r for r in records if r["stack"]]
    print(f"\n{len(records)} kernels compiled, {len(spilled)} with registers in memory")
    for r in spilled:
        print(f"  {CHIPS[r['capability']].name} {r['kernel']} {r['dtype']} {r['heads']}: {r['stack']} bytes")
    print_paging(records, chips)


def print_paging(records: list[Record], chips: list[ChipFacts]) -> None:
    """Instructions of a turn with and without the block table."""
    print("\nWhat paging adds to a turn of the loop: instructions, contiguous -> paged")
    for chip in chips:
        for kernel, name in ((DECODE, "decode"), (PREFILL, "prefill")):
            wanted = {"capability": chip.capability, "kernel": kernel, **LLAMA}
            paged = find(records, **wanted, contiguous=None)
            contiguous = find(records, **wanted, contiguous=True)
            if not paged or not contiguous:
                continue
            before, after = contiguous[0]["loop_instructions"], paged[0]["loop_instructions"]
            print(f"  {chip.name:<11}{name:<9}{before:>5} -> {after:>5}   +{after / before - 1:.0%}")
