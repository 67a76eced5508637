"""Chips on which a kernel may run, and what each has for one program of a kernel. Pure arithmetic.

A GPU is a number of multiprocessors. Several programs of a kernel run on one of them side by side, as many as
its registers, its shared memory and its places for warps allow. While one program waits for memory the others
work, so their number matters::

    H100: 65,536 registers, 228 KiB of shared memory, 64 warps on each of 132 multiprocessors
    a program of 4 warps (128 threads), 123 registers per thread, 38.2 KiB of shared memory
        registers        32 threads * 128 (123 rounded up to 8) * 4 warps = 16,384    4 programs
        shared memory    38.2 KiB + 1 KiB the system takes                            5 programs
        warps            64 / 4                                                       16 programs
        -> 4, bound by the registers

The numbers are data sheets' and those of the CUDA programming guide (table "technical specifications per
compute capability"), not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS_PER_SM = 65_536  # on all these chips
THREADS_PER_WARP = 32
SCHEDULERS_PER_SM = 4  # each starts one instruction of one warp per cycle
KIB = 1024


@dataclass(frozen=True)
class ChipFacts:
    """One GPU on the market. Sizes in KiB are for one multiprocessor."""

    name: str
    capability: int  # 10 * major + minor
    num_sms: int
    shared_kib: int
    max_warps: int
    gb_per_second: float  # memory, 10^9 bytes
    ghz: float  # boost clock

    @property
    def reserved_kib(self) -> int:
        """Shared memory that the system takes for each program, from capability 8.0 on."""
        return 1 if self.capability >= 80 else 0

    @property
    def shared_kib_per_program(self) -> int:
        """The most that one program may have."""
        return self.shared_kib - self.reserved_kib

    def programs_per_sm(self, registers: int, shared_bytes: int, num_warps: int) -> int:
        """How many programs run side by side on a multiprocessor; 0 if not even one fits.

        Args:
            registers: of each thread. They are handed out in steps of 8.
            shared_bytes: of each program.
            num_warps: of each program; from 4 on the limit on the number of programs is never the tightest.
        """
        registers_of_program = -(-registers // 8) * 8 * THREADS_PER_WARP * num_warps
        shared_of_program = max(1, shared_bytes + self.reserved_kib * KIB)
        by_memory = min(REGISTERS_PER_SM // registers_of_program, self.shared_kib * KIB // shared_of_program)
        return min(by_memory, self.max_warps // num_warps)

    def bytes_under_way_needed(self, latency_seconds: float = 1e-6) -> float:
        """Bytes each multiprocessor must have asked for, at any time, to keep the memory busy (Little's law).

        What is on the way is rate times travel time. A microsecond is longer than a load takes on an idle
        chip, so this errs on the safe side. Example, H100: 3,350 GB/s * 1 us / 132 = 25.4 KB.
        """
        return self.gb_per_second * 1e9 * latency_seconds / self.num_sms

    def bytes_per_cycle(self) -> float:
        """What the memory can deliver to one multiprocessor in one of its clock cycles. H100: 12.8."""
        return self.gb_per_second / self.num_sms / self.ghz


CHIPS = {
    75: ChipFacts("T4", 75, 40, shared_kib=64, max_warps=32, gb_per_second=320, ghz=1.59),
    80: ChipFacts("A100 80GB", 80, 108, shared_kib=164, max_warps=64, gb_per_second=2039, ghz=1.41),
    86: ChipFacts("RTX 3090", 86, 82, shared_kib=100, max_warps=48, gb_per_second=936, ghz=1.70),
    89: ChipFacts("RTX 4090", 89, 128, shared_kib=100, max_warps=48, gb_per_second=1008, ghz=2.52),
    90: ChipFacts("H100 SXM", 90, 132, shared_kib=228, max_warps=64, gb_per_second=3350, ghz=1.98),
    120: ChipFacts("RTX 5090", 120, 170, shared_kib=100, max_warps=48, gb_per_second=1792, ghz=2.41),
}
"""By compute capability: those the kernels are compiled for."""
