# caught by: test_a_hit_makes_a_block_young_again
"""A block that is found again stays in the queue: it is overwritten while a sequence reads it."""


def eviction_order(history, num_blocks):
    free, holders = list(range(num_blocks)), [0] * num_blocks
    seen = set()
    for event, block_ids in history:
        if event == "take":
            for block_id in block_ids:
                holders[block_id] += 1
                if block_id in free and block_id not in seen:
                    free.remove(block_id)
                seen.add(block_id)
        else:
            for block_id in reversed(block_ids):
                holders[block_id] -= 1
                if holders[block_id] == 0:
                    free = [*(each for each in free if each != block_id), block_id]
    return free
