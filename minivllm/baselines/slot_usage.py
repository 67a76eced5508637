"""Where every KV slot stands: the four kinds of the paper's Figure 2.

    used       holds the K and V of a token
    reserved   empty, and its owner will fill it later
    internal   held by a sequence which will not fill it: reserved for nothing, or the end of a last block
    external   not usable, or not used by any sequence: rounding of the allocator, and free memory

One paged sequence, block_size 4, 5 tokens computed, 6 at its longest, in a pool of 3 blocks::

    [ u u u u ][ u r i i ][ e e e e ]        SlotUsage(used=5, reserved=1, internal=2, external=4)

The four always add up to the capacity. Free memory counts as external because in a saturated system it is
memory that the first request in the queue could not use.

Paper: section 3.1 and Figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minivllm.scheduler import Scheduler


@dataclass(frozen=True)
class SlotUsage:
    """Slots by kind at one moment (see above)."""

    used: int
    reserved: int
    internal: int
    external: int

    @property
    def capacity(self) -> int:
        """All slots there are."""
        return self.used + self.reserved + self.internal + self.external

    def with_written(self, num_tokens: int) -> SlotUsage:
        """The same once `num_tokens` reserved slots have been written to: the middle of a step."""
        return replace(self, used=self.used + num_tokens, reserved=self.reserved - num_tokens)


def paged_slot_usage(scheduler: Scheduler) -> SlotUsage:
    """The kinds for a paged pool in which no block is shared, between two steps.

    Only a sequence's last block can have empty slots, so this counts sequences and not blocks.
    """
    kv = scheduler.kv
    assert kv.num_blocks_saved == 0, "shared blocks would be counted twice"
    used = needed = held = 0
    for group in scheduler.running:
        for seq in group.unfinished:
            num_slots = len(kv.block_tables[seq.seq_id]) * kv.block_size
            longest = max(group.max_num_tokens - 1, group.num_prompt_tokens)
            used += seq.num_computed_tokens
            needed += min(longest, num_slots)
            held += num_slots
    return SlotUsage(used, needed - used, held - needed, kv.pool.num_free * kv.block_size)
