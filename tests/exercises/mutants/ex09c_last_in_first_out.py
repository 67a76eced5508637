# caught by: test_what_was_used_longest_ago_goes_first
"""A stack: what was freed a moment ago is overwritten first."""


def eviction_order(history, num_blocks):
    free, holders = list(range(num_blocks)), [0] * num_blocks
    for event, block_ids in history:
        if event == "take":
            for block_id in block_ids:
                holders[block_id] += 1
                if block_id in free:
                    free.remove(block_id)
        else:
            for block_id in block_ids:
                holders[block_id] -= 1
                if holders[block_id] == 0:
                    free.insert(0, block_id)
    return free
