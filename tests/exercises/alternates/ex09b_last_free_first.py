"""Takes blocks from the other end, and counts holders anew where it needs to know them."""


class SharedBlocks:
    def __init__(self, tables, ref_counts, free_blocks, block_size):
        self.tables, self.ref_counts = tables, ref_counts
        self.free_blocks, self.block_size = free_blocks, block_size

    def _replace(self, table, index):
        if not self.free_blocks:
            raise ValueError("out of blocks")
        table[index : index + 1] = [self.free_blocks.pop()]
        for block_id in range(len(self.ref_counts)):
            self.ref_counts[block_id] = sum(block_id in each for each in self.tables.values())

    def fork(self, parent, child):
        self.tables[child] = self.tables[parent][:]
        for block_id in self.tables[child]:
            self.ref_counts[block_id] = self.ref_counts[block_id] + 1
        return self.tables[child]

    def append(self, seq_id, position):
        index, offset = divmod(position, self.block_size)
        table = self.tables[seq_id]
        before = table[index] if index < len(table) else None
        if before is None or sum(before in each for each in self.tables.values()) > 1:
            self._replace(table, index)
        copy = None if before in (None, table[index]) else (before, table[index])
        return table[index] * self.block_size + offset, copy
