# caught by: test_no_free_block_changes_nothing
"""Lets the shared block go before it looks whether another one is free."""


class SharedBlocks:
    def __init__(self, tables, ref_counts, free_blocks, block_size):
        self.tables, self.ref_counts = tables, ref_counts
        self.free_blocks, self.block_size = free_blocks, block_size

    def fork(self, parent, child):
        for block_id in self.tables[parent]:
            self.ref_counts[block_id] += 1
        self.tables[child] = list(self.tables[parent])
        return self.tables[child]

    def append(self, seq_id, position):
        table, index, copy = self.tables[seq_id], position // self.block_size, None
        if index == len(table) or self.ref_counts[table[index]] > 1:
            if index < len(table):
                self.ref_counts[table[index]] -= 1
            if not self.free_blocks:
                raise ValueError("out of blocks")
            block_id = self.free_blocks.pop(0)
            self.ref_counts[block_id] = 1
            if index == len(table):
                table.append(block_id)
            else:
                copy = (table[index], block_id)
                table[index] = block_id
        return table[index] * self.block_size + position % self.block_size, copy
