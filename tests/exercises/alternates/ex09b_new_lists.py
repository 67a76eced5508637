"""Makes a new table at each change, and returns lists where others return tuples."""


class SharedBlocks:
    def __init__(self, tables, ref_counts, free_blocks, block_size):
        self.tables, self.ref_counts = tables, ref_counts
        self.free_blocks, self.block_size = free_blocks, block_size

    def fork(self, parent, child):
        self.tables[child] = [*self.tables[parent]]
        self.ref_counts = [
            count + (block_id in self.tables[child]) for block_id, count in enumerate(self.ref_counts)
        ]
        return self.tables[child]

    def append(self, seq_id, position):
        table, index = self.tables[seq_id], position // self.block_size
        held = table[index:]  # empty, or the block that is written to
        if held and self.ref_counts[held[0]] == 1:
            return [held[0] * self.block_size + position % self.block_size, None]
        if not self.free_blocks:
            raise ValueError("out of blocks")
        new, *self.free_blocks = self.free_blocks
        self.tables[seq_id] = [*table[:index], new]
        self.ref_counts[new] += 1
        for block_id in held:
            self.ref_counts[block_id] -= 1
        return [new * self.block_size + position % self.block_size, [held[0], new] if held else None]
