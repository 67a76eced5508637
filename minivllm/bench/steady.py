"""Rounds during which the machine stayed the same: rounds in which its memory changed speed do not count.

The cores of a rented machine are its own, but the way to memory is shared with neighbours, and it may be as
fast as the host has just decided. Two cores of an AMD EPYC (Zen 5) read 48 or 78 gigabytes per second, in
spells of a minute or more, and a step of 8 sequences, most of which is reading weights, takes 16.3 or 13.2
milliseconds. An engine that waits less for memory hardly feels it. So two engines compared across such a
change show what the host did, and their rounds spread. So the bandwidth is measured around every turn::

    GB/s       49 ours 48 theirs 50 | 48 ours 49 theirs 77 | 78 ours 79 theirs 50 | 48 ours 47 theirs 49
    round      1                    | 2                    | 3                    | 4
    counts     yes                  | no: it changed       | no: not the same     | yes

Rounds are added until as many are alike as were asked for, and these count. The rates have no part in it, so
they cannot choose the rounds which suit them. After `PATIENCE_SECONDS` of additional rounds all that ran
count: long rounds may each have a change in them, and then the spread shows what the host did. vLLM V1 has no
counterpart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from minivllm.bench.steps import median_seconds

ALIKE = 1.25
"""Bandwidths are alike if the largest is at most so many times the smallest."""
PATIENCE_SECONDS = 600
"""How long rounds are added, after as many have run as were asked for."""
NUM_BYTES = 256 << 20
"""Memory to read: more than the caches hold."""
T = TypeVar("T")


class Dropout(Exception):
    """Raised by a turn that cannot go on: the others do, without it."""


@dataclass(frozen=True)
class SteadyRounds(Generic[T]):
    """Of all rounds that ran, which count, and their results.

    Attributes:
        results: by name, one result for each round that counts.
        bandwidths: GB/s in each round that ran: before each of its turns, and after the last one.
        kept: numbers of the rounds that count, ascending.
    """

    results: dict[str, list[T]]
    bandwidths: list[list[float]]
    kept: list[int]

    def as_json(self) -> dict[str, Any]:
        """What was measured of the memory, without the results."""
        return {"gigabytes_per_second": self.bandwidths, "kept": self.kept}


def bandwidth_meter(device: torch.device) -> Callable[[], float]:
    """A function that measures how fast the memory of `device` is read now, GB/s, in a fifth of a second. A
    CPU reads with all of PyTorch's threads.
    """
    numbers = torch.ones(NUM_BYTES // 4, device=device)
    return lambda: NUM_BYTES / median_seconds(numbers.sum) / 1e9


def alike(rounds: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the most rounds whose bandwidths are alike, ascending; of equally many, the earlier ones.

    A round during which the bandwidth changed is alike to none, so it can only count alone.
    Example: [[50, 48], [78, 50], [49, 51]] gives [0, 2].
    """
    groups = []
    for number, lowest in enumerate(map(min, rounds)):
        group = [i for i, each in enumerate(rounds) if lowest <= min(each) and max(each) <= ALIKE * lowest]
        groups.append(group or [number])
    return max(groups, key=lambda group: (len(group), [-i for i in group]), default=[])


def in_steady_turns(
    turns: Mapping[str, Callable[[], T]],
    rounds: int,
    bandwidth: Callable[[], float],
    after_round: Callable[[SteadyRounds[T]], None] = lambda so_far: None,
    clock: Callable[[], float] = time.monotonic,
) -> SteadyRounds[T]:
    """Call each function once per round, until `rounds` rounds are alike or patience is at its end.

    A function that raises `Dropout` is not called again, and no round has results of it. `after_round` gets
    what would be returned if the round that has just run were the last.
    """
    going, results, measured = dict(turns), [], []
    end = math.inf
    while going and len(alike(measured)) < rounds and clock() < end:
        during, of_round = [bandwidth()], {}
        for name, turn in list(going.items()):
            try:
                of_round[name] = turn()
            except Dropout:
                del going[name]
            during.append(bandwidth())
        results.append(of_round)
        measured.append(during)
        if len(measured) == rounds:
            end = clock() + PATIENCE_SECONDS
        after_round(_counted(going, results, measured, rounds))
    return _counted(going, results, measured, rounds)


def _counted(
    names: Iterable[str], results: list[dict[str, T]], measured: list[list[float]], rounds: int
) -> SteadyRounds[T]:
    """The rounds that count so far, with the results of those of `names`: all, if too few are alike."""
    kept = alike(measured)
    if len(kept) < rounds:
        kept = list(range(len(measured)))
    return SteadyRounds({name: [results[i][name] for i in kept] for name in names}, list(measured), kept)


def describe(steady: Mapping[str, Any]) -> str:
    """`SteadyRounds.as_json` in a sentence, for a report."""
    rounds, kept = steady["gigabytes_per_second"], steady["kept"]
    values = [value for i in kept for value in rounds[i]]
    speeds = f"{min(values):.0f} to {max(values):.0f} GB/s"
    text = f"memory was read at {speeds} in the {len(kept)} rounds that count"
    if others := [value for i, each in enumerate(rounds) if i not in kept for value in each]:
        number = len(rounds) - len(kept)
        text += f"; {number} more were set aside, with {min(others):.0f} to {max(others):.0f} GB/s"
    return text
