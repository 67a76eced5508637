# caught by: test_every_sequence_reads_what_it_has_written
"""Takes block 0 for "no block": what it holds is not copied."""


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
        table, index, source = self.tables[seq_id], position // self.block_size, None
        if index == len(table) or self.ref_counts[table[index]] > 1:
            if not self.free_blocks:
                raise ValueError("out of blocks")
            block_id = self.free_blocks.pop(0)
            self.ref_counts[block_id] = 1
            if index == len(table):
                table.append(block_id)
            else:
                source = table[index]
                self.ref_counts[source] -= 1
                table[index] = block_id
        slot = table[index] * self.block_size + position % self.block_size
        return slot, (source, table[index]) if source else None
