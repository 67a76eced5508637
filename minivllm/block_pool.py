"""The block pool: which physical blocks are free, which are held, and which can be found again.

The KV cache is cut into `num_blocks` equal blocks before the first request arrives. From then on memory
management is bookkeeping on small integers: which blocks are free, how many sequences hold each block, and
which blocks still contain something worth finding again::

    block     0    1    2    3    4    5    6    7
    ref_count 0    0    1    0    0    0    2    1        6 is shared by two sequences
    hash      -    a    b    -    -    -    c    -        1 is free, but its content is still known
    free queue: 3 -> 4 -> 5 -> 0 -> 1                     taken from the left, returned on the right

A free block keeps its hash until it is taken, so a later prompt with the same beginning can have it
back without computing anything (`touch` lifts it out of the middle of the queue). The queue is in order of
last use: what was freed longest ago is overwritten first.

Every block is in exactly one of two states, and `check_invariants` verifies it:
`ref_count == 0` and in the queue, or `ref_count > 0` and not in the queue.

Paper: sections 4.2 (the block manager), 4.4 (reference counts). vLLM V1: `vllm/v1/core/block_pool.py` and
`kv_cache_utils.py`, where the queue is a hand-written linked list; an `OrderedDict` is one too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class KVCacheBlock:
    """One physical block. Only `BlockPool` changes these fields.

    `block_hash` names the content: the tokens in this block and all before it. None: not full, or unknown.
    """

    block_id: int
    ref_count: int = 0
    block_hash: bytes | None = None


class BlockPool:
    """A fixed set of blocks: a free queue in LRU order, reference counts, and hash -> block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_blocks)]
        # Keys in order of last use, oldest first. Removal from the middle is O(1).
        self._free: OrderedDict[int, KVCacheBlock] = OrderedDict(enumerate(self.blocks))
        self._cached: dict[bytes, KVCacheBlock] = {}

    @property
    def num_free(self) -> int:
        """Blocks without a holder, those with findable content included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks held by at least one sequence, each counted once however often it is shared."""
        return self.num_blocks - len(self._free)

    @property
    def free_block_ids(self) -> tuple[int, ...]:
        """The free queue, next to be taken first (for figures and tests)."""
        return tuple(self._free)

    def allocate(self, count: int) -> list[KVCacheBlock]:
        """Take the `count` least recently used free blocks, with reference count 1 and no hash.

        Raises:
            ValueError: fewer than `count` blocks are free; nothing has changed then.
        """
        if count > len(self._free):
            raise ValueError(
                f"Out of memory! No free blocks are available. ({count} asked for, {len(self._free)} of "
                f"{self.num_blocks} free)"
            )
        taken = []
        for _ in range(count):
            _, block = self._free.popitem(last=False)
            self._forget(block)
            block.ref_count = 1
            taken.append(block)
        return taken

    def touch(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add one holder to each block; a free one leaves the queue and keeps its content."""
        for block in blocks:
            if block.ref_count == 0:
                del self._free[block.block_id]
            block.ref_count += 1

    def free(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Take one holder from each block; at zero it joins the end of the queue, in the order given.

        Give the blocks of a sequence last block first: then the tail, which the fewest other prompts can
        share, is also the first to be overwritten.

        Raises:
            ValueError: a block has no holder. Blocks before it in the list have been freed.
        """
        for block in blocks:
            if block.ref_count == 0:
                raise ValueError(f"Double free! {block} is already freed.")
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block.block_id] = block

    def cache(self, block: KVCacheBlock, block_hash: bytes) -> None:
        """Make a full block findable under `block_hash`.

        Two sequences may compute the same content at the same time. The block that is registered first stays
        the one that is found; the other remains an ordinary block of its owner.
        """
        if block.block_hash is None and block_hash not in self._cached:
            block.block_hash = block_hash
            self._cached[block_hash] = block

    def lookup(self, block_hash: bytes) -> KVCacheBlock | None:
        """The block with this content, held or free; None if there is none."""
        return self._cached.get(block_hash)

    def reset_cache(self) -> None:
        """Forget all content. The holders of the blocks stay the same."""
        for block in list(self._cached.values()):
            self._forget(block)

    def _forget(self, block: KVCacheBlock) -> None:
        """Drop the block's hash: its content is about to be overwritten."""
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None

    def check_invariants(self) -> None:
        """Raise AssertionError if a block is lost, neither held nor free, or findable under a wrong name."""
        for block in self.blocks:
            assert block.ref_count >= 0, f"negative reference count: {block}"
            assert (block.ref_count == 0) == (block.block_id in self._free), f"free but not queued: {block}"
            if block.block_hash is not None:
                assert self._cached.get(block.block_hash) is block, f"stale hash: {block}"
        assert all(block.block_hash == key for key, block in self._cached.items()), "stale hash entry"
        assert self.num_used + self.num_free == self.num_blocks
