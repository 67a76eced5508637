# caught by: test_a_hit_makes_a_block_young_again
"""First in, first out: a block that is found again keeps the place of its first use."""


def eviction_order(history, num_blocks):
    free, holders, since = list(range(num_blocks)), [0] * num_blocks, {}
    for block_id in range(num_blocks):
        since[block_id] = -num_blocks + block_id
    clock = 0
    for event, block_ids in history:
        if event == "take":
            for block_id in block_ids:
                holders[block_id] += 1
                if block_id in free:
                    free.remove(block_id)
        else:
            for block_id in reversed(block_ids):
                holders[block_id] -= 1
                if holders[block_id] == 0:
                    free.append(block_id)
                    clock += 1
                    if since[block_id] < 0:
                        since[block_id] = clock
    return sorted(free, key=since.get)
