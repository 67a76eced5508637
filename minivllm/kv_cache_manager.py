"""The KV cache manager: which blocks hold which sequence.

The scheduler asks this module one question per group and step: *can these sequences compute this many more
tokens?* The answer is either the block copies to make first, or None: the tokens do not fit. There is no
separate "can I?" call, so nothing can change between asking and acting::

    copies = manager.allocate_slots([(seq, num_new_tokens), ...])
    if copies is None: a group has to be preempted

Sharing, in one picture. `block_size = 4`, a prompt of 6 tokens, two completions (n = 2)::

    after the prompt     seq 0  [7, 2]           block 7: 4 tokens    block 2: 2 tokens

    fork                 seq 0  [7, 2]           ref counts: 7 -> 2, 2 -> 2     nothing is copied
                         seq 1  [7, 2]

    both write           seq 0  [7, 5]           2 is shared: seq 0 gets a copy, (2, 5) is the copy to make
    position 6           seq 1  [7, 2]           2 now has one holder: seq 1 writes in place

`width` completions of one prompt therefore cost the prompt's full blocks once, plus what differs.

Prefix cache: a full block never changes again, so it can be named by its content (`Sequence.block_hash`) and
found by the next prompt that begins the same way. A block is registered when its tokens are *accepted*, after
the step (`cache_blocks`). Until then it is in flight, and only requests planned in the same step find it:
within a step every layer writes all K and V before it reads any, so a second request with the same prompt can
share the block in the very step that fills it. A hit never covers the last token, because its logits are
still needed.

Paper: sections 4.2 to 4.5. vLLM V1: `vllm/v1/core/kv_cache_manager.py` (no copy-on-write there any more:
only full blocks are shared); v0.1: `vllm/core/block_manager.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from minivllm.block_pool import BlockPool, KVCacheBlock
from minivllm.block_table import BlockTable, cdiv
from minivllm.scheduler_output import BlockPair
from minivllm.sequence import Sequence, SequenceGroup

_Place = tuple[dict[int, BlockTable], BlockPool]  # block tables by sequence id, and the pool of their blocks


class KVCacheManager:
    """Block tables of all sequences that hold blocks, over one device pool and one CPU pool.

    Args:
        num_blocks: blocks on the device.
        block_size: tokens per block.
        enable_prefix_caching: whether full blocks can be found again by content.
        num_cpu_blocks: blocks of swap space.
        watermark: share of the blocks that a newcomer must leave free for those who run already. Without it
            a full memory admits a request into its last free blocks, only to preempt it some steps later.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        num_cpu_blocks: int = 0,
        watermark: float = 0.0,
    ) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_watermark_blocks = int(watermark * num_blocks)
        self.pool = BlockPool(num_blocks)
        self.cpu_pool = BlockPool(num_cpu_blocks)
        self.block_tables: dict[int, BlockTable] = {}  # seq_id -> blocks in `pool`
        self.swapped_tables: dict[int, BlockTable] = {}  # seq_id -> blocks in `cpu_pool`
        self.in_flight: dict[bytes, KVCacheBlock] = {}  # full after the step that is being planned

    # -- what fits at all ---------------------------------------------------------------------------

    def max_blocks(self, group: SequenceGroup) -> int:
        """Blocks the group holds at its longest: the prompt's full blocks once, the rest for each sequence.

        The last token is sampled but never computed, hence `max_num_tokens - 1`.
        """
        shared = group.num_prompt_tokens // self.block_size if group.width > 1 else 0
        longest = cdiv(max(group.max_num_tokens - 1, group.num_prompt_tokens), self.block_size)
        return shared + group.width * (longest - shared)

    # -- the question the scheduler asks ------------------------------------------------------------

    def get_computed_blocks(self, seq: Sequence, max_tokens: int) -> list[KVCacheBlock]:
        """The longest run of full blocks, cached or in flight, that begins `seq`: up to `max_tokens` tokens.

        Changes nothing: hand the result to `allocate_slots` to hold it.
        """
        hit: list[KVCacheBlock] = []
        if not self.enable_prefix_caching:
            return hit
        for index in range(max_tokens // self.block_size):
            block_hash = seq.block_hash(index, self.block_size)
            block = self.pool.lookup(block_hash) or self.in_flight.get(block_hash)
            if block is None:
                break
            hit.append(block)
        return hit

    def allocate_slots(
        self, chunks: list[tuple[Sequence, int]], computed_blocks: Iterable[KVCacheBlock] = ()
    ) -> list[BlockPair] | None:
        """Make room for the next tokens of a group: all of its chunks, or nothing.

        Args:
            chunks: (sequence, number of tokens to compute after its `num_computed_tokens`).
            computed_blocks: cached blocks that begin the first sequence, which holds none yet.

        Returns:
            The (source, destination) block copies to make before the step; None if the chunks do not fit,
            and then nothing has changed.

        ::

            | computed_blocks (or blocks held) | last block, perhaps shared | new blocks |
            | <------- num_computed_tokens -------> | <--- tokens to compute ---> |
        """
        computed_blocks = list(computed_blocks)
        tables = [self.block_tables.get(seq.seq_id) or BlockTable(self.block_size) for seq, _ in chunks]
        starts = [seq.num_computed_tokens for seq, _ in chunks]
        if computed_blocks:
            tables[0] = BlockTable(self.block_size, computed_blocks)
            starts[0] = len(computed_blocks) * self.block_size

        shared = self._shared_last_blocks(tables, starts)
        missing = [
            table.num_missing_blocks(start + num_tokens)
            for table, start, (_, num_tokens) in zip(tables, starts, chunks, strict=True)
        ]
        # A cached block without a holder is in the free queue: to hold such a block takes it from the queue.
        revived = sum(block.ref_count == 0 for block in computed_blocks)
        # Into an empty pool any group may come: no other group holds blocks and needs more.
        comes_in = self.pool.num_used > 0 and any(seq.seq_id not in self.block_tables for seq, _ in chunks)
        spare = self.num_watermark_blocks if comes_in else 0
        if sum(missing) + len(shared) + revived + spare > self.pool.num_free:
            return None

        self.pool.touch(computed_blocks)
        copies = [self._copy_on_write(tables[i], starts[i]) for i in shared]
        for table, start, count, (seq, num_tokens) in zip(tables, starts, missing, chunks, strict=True):
            table.blocks.extend(self.pool.allocate(count))
            self.block_tables[seq.seq_id] = table
            for block, block_hash in self._full_blocks(seq, start, start + num_tokens):
                self.in_flight.setdefault(block_hash, block)
        return copies

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for drafts too: `num_tokens` in all, of which `allocate_slots` has placed the known ones.

        No block is copied: the one where the known tokens begin is the sequence's own by now, whichever other
        request has found it in flight since. No block gets a name, as drafts may turn out wrong.

        Returns:
            False if it does not fit, and then nothing has changed.
        """
        table = self.block_tables[seq.seq_id]
        missing = table.num_missing_blocks(seq.num_computed_tokens + num_tokens)
        if missing > self.pool.num_free:
            return False
        table.blocks.extend(self.pool.allocate(missing))
        return True

    def cache_blocks(self, seq: Sequence, start: int) -> None:
        """Register the blocks which the accepted tokens of `seq`, from position `start` on, have filled.

        Call it after the step, when `num_computed_tokens` has grown.
        """
        for block, block_hash in self._full_blocks(seq, start, seq.num_computed_tokens):
            self.in_flight.pop(block_hash, None)
            self.pool.cache(block, block_hash)

    def _full_blocks(self, seq: Sequence, start: int, end: int) -> list[tuple[KVCacheBlock, bytes]]:
        """The blocks that computing positions [start, end) fills, and the names of their content."""
        if not self.enable_prefix_caching:
            return []
        blocks, size = self.block_tables[seq.seq_id].blocks, self.block_size
        return [(blocks[i], seq.block_hash(i, size)) for i in range(start // size, end // size)]

    def _shared_last_blocks(self, tables: list[BlockTable], starts: list[int]) -> list[int]:
        """Indices of the tables whose next write falls into a block that another holder still needs.

        If all holders of a block write in this step, the last of them may keep it.
        """
        holders: Counter[int] = Counter()
        shared = []
        for i, (table, start) in enumerate(zip(tables, starts, strict=True)):
            if start == len(table) * self.block_size:
                continue  # the next write opens a new block
            block = table.blocks[start // self.block_size]
            if block.ref_count - holders[block.block_id] > 1:
                holders[block.block_id] += 1
                shared.append(i)
        return shared

    def _copy_on_write(self, table: BlockTable, position: int) -> BlockPair:
        """Give `table` a block of its own for `position`; returns the copy that fills it."""
        index = position // self.block_size
        source = table.blocks[index]
        (destination,) = self.pool.allocate(1)
        table.blocks[index] = destination
        self.pool.free([source])
        return source.block_id, destination.block_id

    # -- sharing and giving back --------------------------------------------------------------------

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` share every block of `parent`, the partly filled last one included."""
        blocks = self.block_tables[parent.seq_id].blocks
        self.pool.touch(blocks)
        self.block_tables[child.seq_id] = BlockTable(self.block_size, list(blocks))

    def free(self, seq: Sequence) -> None:
        """Give back all blocks of `seq`, wherever they are. A sequence without blocks is no error."""
        for tables, pool in self._places():
            table = tables.pop(seq.seq_id, None)
            if table is not None:
                pool.free(reversed(table.blocks))

    def reset(self) -> None:
        """Back to the initial state: no sequence holds a block, nothing is cached."""
        self.pool = BlockPool(self.pool.num_blocks)
        self.cpu_pool = BlockPool(self.cpu_pool.num_blocks)
        self.block_tables.clear()
        self.swapped_tables.clear()
        self.in_flight.clear()

    # -- swapping -----------------------------------------------------------------------------------

    def swap_out(self, seqs: list[Sequence]) -> list[BlockPair] | None:
        """Move the blocks of a group to CPU memory; None (and no change) if the CPU pool is too small.

        A block shared by several of the sequences is moved once and stays shared.
        """
        on_device, in_cpu_memory = self._places()
        return self._move(seqs, on_device, in_cpu_memory, spare=0)

    def swap_in(self, seqs: list[Sequence]) -> list[BlockPair] | None:
        """Bring the blocks of a group back; None if they do not fit with one block to spare per sequence.

        Without the spare blocks the very next token of the group would often swap it out again.
        """
        on_device, in_cpu_memory = self._places()
        spare = 0 if self.pool.num_used == 0 else len(seqs)
        return self._move(seqs, in_cpu_memory, on_device, spare)

    def _places(self) -> tuple[_Place, _Place]:
        """Where blocks are: on the device, and in CPU memory."""
        return (self.block_tables, self.pool), (self.swapped_tables, self.cpu_pool)

    def _move(self, seqs: list[Sequence], old: _Place, new: _Place, spare: int) -> list[BlockPair] | None:
        """Move the tables of `seqs` from one place to the other; blocks shared before are shared after."""
        (tables, pool), (new_tables, new_pool) = old, new
        moving = [seq for seq in seqs if seq.seq_id in tables]
        distinct = {block.block_id for seq in moving for block in tables[seq.seq_id].blocks}
        if len(distinct) + spare > new_pool.num_free:
            return None
        target: dict[int, KVCacheBlock] = {}
        for seq in moving:
            new_blocks = []
            for block in tables[seq.seq_id].blocks:
                if block.block_id in target:
                    new_pool.touch([target[block.block_id]])
                else:
                    (target[block.block_id],) = new_pool.allocate(1)
                new_blocks.append(target[block.block_id])
            new_tables[seq.seq_id] = BlockTable(self.block_size, new_blocks)
            pool.free(reversed(tables.pop(seq.seq_id).blocks))
        return [(old, new.block_id) for old, new in target.items()]

    # -- looking at it ------------------------------------------------------------------------------

    @property
    def usage(self) -> float:
        """Share of the device blocks that are held, 0 to 1. Counts blocks, not tokens."""
        return self.pool.num_used / self.pool.num_blocks

    @property
    def num_blocks_saved(self) -> int:
        """Blocks that sharing saves right now: entries in the tables minus blocks held."""
        return sum(len(table) for table in self.block_tables.values()) - self.pool.num_used

    def check_invariants(self) -> None:
        """Raise AssertionError unless reference counts and tables agree and no table has a block twice."""
        for tables, pool in self._places():
            pool.check_invariants()
            held = Counter(block.block_id for table in tables.values() for block in table.blocks)
            for block in pool.blocks:
                assert block.ref_count == held[block.block_id], f"{block} is in {held[block.block_id]} tables"
            for seq_id, table in tables.items():
                assert len(set(table.block_ids)) == len(table), f"sequence {seq_id} holds a block twice"
