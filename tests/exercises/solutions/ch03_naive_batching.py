"""Chapter 3: naive batching, measured.

Before paging, memory was reserved in one piece per request, and a batch ran until its longest answer was done.
Count what both cost, and then see how much a better order of the requests saves.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex03a
or, in the notebook, with   %check ex03a.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """The KV memory at one moment. All numbers count slots (the place of one token's K and V).

    filled[i]    slots of request i that hold a token's K and V
    reserved[i]  slots set aside for request i; no other request can have them. reserved[i] >= filled[i]
    capacity     slots there are, at least the sum of `reserved`
    """

    filled: tuple[int, ...]
    reserved: tuple[int, ...]
    capacity: int


def fragmentation(snapshot: Snapshot) -> dict[str, float]:
    """ex03a. What share of the memory is put to use at this moment.

    Returns three shares of the whole capacity, each from 0 to 1, which add up to 1:
      "used"    slots that hold a token
      "wasted"  slots that are set aside and empty
      "free"    slots that are not set aside

    Example: two requests hold 6 and 2 tokens in reservations of 16 slots each, in a memory of 64 slots:
    fragmentation(Snapshot((6, 2), (16, 16), 64)) == {"used": 0.125, "wasted": 0.375, "free": 0.5}.
    """
    # BEGIN SOLUTION ex03a
    from minivllm.baselines import SlotUsage

    used, held = sum(snapshot.filled), sum(snapshot.reserved)
    usage = SlotUsage(used, reserved=0, internal=held - used, external=snapshot.capacity - held)
    kinds = {"used": usage.used, "wasted": usage.internal, "free": usage.external}
    return {kind: slots / usage.capacity for kind, slots in kinds.items()}
    # END SOLUTION


def static_batch_steps(output_lengths: list[int], batch_size: int) -> tuple[int, int]:
    """ex03b. Steps of static batching, and how many seats stand empty meanwhile.

    Requests are taken in order, `batch_size` at a time; the last batch may be smaller. Request i generates
    `output_lengths[i]` tokens, one per step. (Its prompt is computed in the step of its first token.) A batch ends
    with its longest request, and only then does the next one begin.

    Example: static_batch_steps([2, 5, 3], batch_size=2) == (8, 6). The first batch takes 5 steps, the second 3.
    That makes 8 steps of 2 seats, and 10 tokens: 16 - 10 = 6 times a seat was empty.

    Args:
        output_lengths: 1 or more tokens for each request. Not changed.
        batch_size: seats, 1 or more. All of them count in every step, in a smaller last batch too.

    Returns:
        (number of steps, number of times that a seat was empty in a step).
    """
    # BEGIN SOLUTION ex03b
    batches = [output_lengths[i : i + batch_size] for i in range(0, len(output_lengths), batch_size)]
    steps = sum(max(batch) for batch in batches)
    return steps, steps * batch_size - sum(output_lengths)
    # END SOLUTION


def order_by_length(output_lengths: list[int], batch_size: int) -> list[int]:
    """ex03c. In which order to hand in requests, so that static batching takes as few steps as possible.

    Requests of similar length in one batch wait little for each other. Return the numbers of the requests (0 for
    the first of `output_lengths`), each once, in the order in which they are to be handed in; do not sort the list
    itself.

    Target: the smallest number of steps that any order can reach, for every list of lengths. Mind the last
    batch, which may be smaller than the others: which requests should be in it?

    Example: output_lengths [2, 5, 3], batch_size 2. The order given takes 5 + 3 = 8 steps. [1, 2, 0] takes
    5 + 2 = 7, and so does [2, 1, 0]; no order takes fewer.
    """
    # BEGIN SOLUTION ex03c
    return sorted(range(len(output_lengths)), key=lambda request: -output_lengths[request])
    # END SOLUTION
