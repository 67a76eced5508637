"""The memory manager before paging: every request gets one unbroken run of slots, reserved at admission.

This is the paper's baseline. A system that keeps a sequence's K and V contiguous has to decide how long the
run is before the first token, and cannot move or share it afterwards. Three ways (`ReservationPolicy`)::

    prompt of 6 tokens, true output 9, max_model_len 32; * stored now, r will be stored, - never, x rounding

    MAX      ******r rrrrrrr- -------- --------           32: the longest that could ever come
    POW2     ******r rrrrrrr- ------xx xxxxxxxx           6 + 16: the next power of two above the output
    ORACLE   ******r rrrrrrr x                            6 + 9 - 1: exactly what will be stored
             used    reserved | internal      | external (rounding of the buddy allocator, and free slots)

The last token is sampled but never computed, so 6 + 9 tokens fill 14 slots.

`ContiguousKVCacheManager` has the interface of `KVCacheManager`, so the same scheduler, engine and kernels
run on it: a block table is then a run of consecutive blocks. Nothing grows after admission, so no request is
preempted; the price is that fewer requests are admitted.

    >>> LLM(model, kv_cache_manager_cls=orca(ReservationPolicy.MAX, 2048), enable_prefix_caching=False)

Paper: section 3 (the three kinds of waste), 6.1 (the policies). vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial

from minivllm.baselines.buddy import BuddyAllocator, next_power_of_two
from minivllm.baselines.slot_usage import SlotUsage
from minivllm.block_pool import KVCacheBlock
from minivllm.block_table import BlockTable, cdiv
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.scheduler_output import BlockPair
from minivllm.sequence import Sequence, SequenceGroup


class ReservationPolicy(Enum):
    """How many slots a request gets. The paper's names: Orca (Max), Orca (Pow2), Orca (Oracle)."""

    MAX = "max"  # max_model_len: needs to know nothing, wastes the most
    POW2 = "pow2"  # the true output length rounded up: over-reserves it at most twofold
    ORACLE = "oracle"  # the true output length: unknown in practice, the best that contiguous memory can do


@dataclass(frozen=True)
class Reservation:
    """The run of one sequence. `num_needed` <= `num_slots` <= slots of the run (a power of two of blocks)."""

    seq: Sequence
    start: int  # first block
    num_needed: int  # slots it will fill at its longest
    num_slots: int  # slots the policy asked for


class ContiguousKVCacheManager(KVCacheManager):
    """Block tables that are runs of consecutive blocks, from a buddy allocator.

    The true output length follows from `Sequence.max_num_tokens`: exact if the request ignores
    end-of-sequence tokens, as the requests of the benchmarks do, else an upper bound.

    Args:
        num_blocks, block_size: as in `KVCacheManager`. A chunk of the allocator is never below one block.
        enable_prefix_caching, num_cpu_blocks, watermark: have to be False, 0 and 0. A run cannot be shared,
            and a request, once admitted, neither grows nor is preempted.
        policy: how much to reserve.
        max_model_len: what `ReservationPolicy.MAX` reserves; no request may be longer.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = False,
        num_cpu_blocks: int = 0,
        watermark: float = 0.0,
        *,
        policy: ReservationPolicy,
        max_model_len: int,
    ) -> None:
        if enable_prefix_caching:
            raise ValueError(
                "contiguous memory cannot share blocks between requests: pass enable_prefix_caching=False."
            )
        if watermark > 0:
            raise ValueError("contiguous memory never preempts, so nothing is kept free: pass watermark=0.")
        if num_cpu_blocks > 0:
            raise ValueError(
                "contiguous memory never preempts, so it has no use for swap space: pass swap_space_bytes=0."
            )
        super().__init__(num_blocks, block_size, enable_prefix_caching=False)
        self.policy = policy
        self.max_model_len = max_model_len
        self.buddy = BuddyAllocator(num_blocks)
        self.reservations: dict[int, Reservation] = {}  # seq_id -> its run

    # -- the interface of KVCacheManager ------------------------------------------------------------

    def max_blocks(self, group: SequenceGroup) -> int:
        """Blocks of the run that `group` will get; the scheduler asks before it queues a request.

        Raises:
            ValueError: the request wants to fork, or is longer than `max_model_len`.
        """
        if group.width > 1:
            raise ValueError(
                f"request {group.request_id!r} asks for {group.width} sequences from one prompt, and "
                f"contiguous memory cannot share a prompt. Use n=1, or KVCacheManager."
            )
        if group.max_num_tokens > self.max_model_len:
            raise ValueError(
                f"request {group.request_id!r} may grow to {group.max_num_tokens} tokens, but runs are "
                f"made for max_model_len={self.max_model_len}. Lower max_tokens, or raise max_model_len."
            )
        _, num_slots = self._num_slots(group.seqs[0])
        return next_power_of_two(cdiv(num_slots, self.block_size))

    def allocate_slots(
        self, chunks: list[tuple[Sequence, int]], computed_blocks: Iterable[KVCacheBlock] = ()
    ) -> list[BlockPair] | None:
        """Reserve the run of a sequence that has none; afterwards there is always room.

        Returns:
            No copies (nothing is shared); None if no free chunk is large enough, and nothing has changed.
        """
        assert not list(computed_blocks), "there is no prefix cache here"
        for seq, num_tokens in chunks:
            if seq.seq_id not in self.reservations and not self._reserve(seq):
                return None
            end = seq.num_computed_tokens + num_tokens
            assert end <= self.reservations[seq.seq_id].num_needed, f"{seq} outgrows its reservation"
        return []

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Refused: two sequences cannot share a run that both will write to."""
        raise ValueError("contiguous memory cannot fork a sequence. Use n=1, or KVCacheManager.")

    def free(self, seq: Sequence) -> None:
        """Give back the run of `seq`. A sequence without one is no error."""
        reservation = self.reservations.pop(seq.seq_id, None)
        if reservation is not None:
            self.buddy.free(reservation.start)
        super().free(seq)

    def reset(self) -> None:
        """Back to the initial state."""
        super().reset()
        self.buddy = BuddyAllocator(self.pool.num_blocks)
        self.reservations.clear()

    # -- reserving ----------------------------------------------------------------------------------

    def _num_slots(self, seq: Sequence) -> tuple[int, int]:
        """(slots the sequence fills at its longest, slots to reserve). Pow2: an output of 25 gets 32."""
        num_output_tokens = seq.max_num_tokens - seq.num_prompt_tokens
        # All tokens but the last, which is sampled and never computed.
        num_needed = seq.num_prompt_tokens + max(num_output_tokens - 1, 0)
        if self.policy is ReservationPolicy.MAX:
            return num_needed, self.max_model_len
        if self.policy is ReservationPolicy.POW2:
            num_slots = seq.num_prompt_tokens + next_power_of_two(max(num_output_tokens, 1))
            return num_needed, min(num_slots, self.max_model_len)  # no request can be longer than that
        return num_needed, num_needed

    def _reserve(self, seq: Sequence) -> bool:
        """Take a run for `seq`; False, and no change, if no free chunk is large enough."""
        num_needed, num_slots = self._num_slots(seq)
        start = self.buddy.allocate(cdiv(num_slots, self.block_size))
        if start is None:
            return False
        # The whole chunk is held, its unused end included: no other sequence can have it.
        run = self.pool.blocks[start : start + self.buddy.taken_chunks[start]]
        self.pool.touch(run)
        self.block_tables[seq.seq_id] = BlockTable(self.block_size, run)
        self.reservations[seq.seq_id] = Reservation(seq, start, num_needed, num_slots)
        return True

    # -- looking at it ------------------------------------------------------------------------------

    @property
    def reserved_slots(self) -> dict[int, int]:
        """seq_id -> slots the policy reserved for it (the rounding of the allocator comes on top)."""
        return {seq_id: reservation.num_slots for seq_id, reservation in self.reservations.items()}

    def slot_usage(self) -> SlotUsage:
        """Where every slot of the pool stands, between two steps."""
        used = reserved = internal = rounding = 0
        for reservation in self.reservations.values():
            computed = reservation.seq.num_computed_tokens
            used += computed
            reserved += reservation.num_needed - computed
            internal += reservation.num_slots - reservation.num_needed
            rounding += self.buddy.taken_chunks[reservation.start] * self.block_size - reservation.num_slots
        return SlotUsage(used, reserved, internal, rounding + self.buddy.num_free * self.block_size)

    def check_invariants(self) -> None:
        """As in `KVCacheManager`; also: pool and allocator agree, and every table is one run."""
        super().check_invariants()
        self.buddy.check_invariants()
        assert self.buddy.num_free == self.pool.num_free, "pool and buddy allocator disagree on what is free"
        assert self.reservations.keys() == self.block_tables.keys(), "a run without a table, or the reverse"
        for seq_id, reservation in self.reservations.items():
            ids = self.block_tables[seq_id].block_ids
            assert ids == tuple(range(reservation.start, reservation.start + len(ids))), f"{ids} is no run"
            assert reservation.num_slots <= len(ids) * self.block_size, f"{reservation} exceeds its run"


def orca(policy: ReservationPolicy, max_model_len: int) -> Callable[..., ContiguousKVCacheManager]:
    """The manager with a policy filled in, to pass as `LLM(kv_cache_manager_cls=...)`."""
    return partial(ContiguousKVCacheManager, policy=policy, max_model_len=max_model_len)
