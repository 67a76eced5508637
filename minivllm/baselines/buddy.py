"""A binary buddy allocator: contiguous memory, the way the paper gives it to its baseline.

Memory is handed out in chunks whose sizes are powers of two. A request for 5 units gets a chunk of 8. If
there is no free chunk of 8, a larger one is halved until there is; the halves are *buddies*::

    capacity 16                    [                16               ]
    allocate(5)                    [ 5 of 8 taken  ][       8        ]
    allocate(2)                    [ 5 of 8 taken  ][2 t.][ 2 ][  4  ]     2 t. = 2 taken
    free both                      [                16               ]     buddies merge again

Why the paper chose it: a system without paging needs an allocator for reservations of different lengths, and
this is a common one. Why it loses: the 3 units behind the 5 are taken and empty, and a request for 8 is
refused when the free units lie scattered in smaller chunks. Both are external fragmentation.

The buddy of the chunk at `start` with `size` units begins at `start ^ size`: flipping one bit finds it, so
merging is cheap. A capacity that is not a power of two begins as several chunks, the largest first
(15,728 = 8192 + 4096 + 2048 + 1024 + 256 + 64 + 32 + 16).

Paper: section 6.1 ("we implement our own version of Orca and assume it uses the buddy allocation
algorithm"). vLLM V1 has no counterpart: paging replaced it.
"""

from __future__ import annotations


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number` (a positive int): 5 -> 8, 8 -> 8, 1 -> 1."""
    return 1 << (number - 1).bit_length()


class BuddyAllocator:
    """Hands out aligned, contiguous chunks of `capacity` units. It knows only sizes, not contents."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 unit, got {capacity}.")
        self.capacity = capacity
        largest = next_power_of_two(capacity + 1) // 2
        self.free_chunks: dict[int, set[int]] = {1 << bit: set() for bit in range(largest.bit_length())}
        self.taken_chunks: dict[int, int] = {}  # start -> size; `free_chunks` is size -> starts
        start = 0
        for size in reversed(self.free_chunks):
            if start + size <= capacity:
                self.free_chunks[size].add(start)
                start += size

    @property
    def num_free(self) -> int:
        """Units in free chunks, which need not be in one piece."""
        return sum(size * len(starts) for size, starts in self.free_chunks.items())

    def allocate(self, count: int) -> int | None:
        """Take a chunk that holds `count` units: the smallest that does, at the lowest address.

        Returns:
            The chunk's first unit; None if no free chunk is large enough, and then nothing has changed.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1 unit, got {count}.")
        wanted = next_power_of_two(count)
        size = wanted
        while not self.free_chunks.get(size):
            size *= 2
            if size > self.capacity:
                return None
        start = min(self.free_chunks[size])
        self.free_chunks[size].remove(start)
        while size > wanted:  # keep the left half, leave the right one
            size //= 2
            self.free_chunks[size].add(start + size)
        self.taken_chunks[start] = size
        return start

    def free(self, start: int) -> None:
        """Give back the chunk that begins at `start`, and merge it with its buddy while the buddy is free.

        Raises:
            ValueError: no taken chunk begins there.
        """
        size = self.taken_chunks.pop(start, None)
        if size is None:
            raise ValueError(f"Double free! No taken chunk begins at unit {start}.")
        while start ^ size in self.free_chunks.get(size, ()):
            self.free_chunks[size].remove(start ^ size)
            start = min(start, start ^ size)
            size *= 2
        self.free_chunks[size].add(start)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the chunks tile the memory and no two free buddies are apart."""
        chunks = list(self.taken_chunks.items())
        chunks += [(start, size) for size, starts in self.free_chunks.items() for start in starts]
        end = 0
        for start, size in sorted(chunks):
            assert start == end, f"units [{end}, {start}) are lost or belong to two chunks"
            assert start % size == 0, f"the chunk at {start} is not aligned to its size {size}"
            end = start + size
        assert end == self.capacity, f"the chunks end at {end}, the memory at {self.capacity}"
        for size, starts in self.free_chunks.items():
            for start in starts:
                assert start ^ size not in starts, f"free buddies {start} and {start ^ size} are not merged"
