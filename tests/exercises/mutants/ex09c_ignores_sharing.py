# caught by: test_a_shared_block_is_free_when_its_last_holder_leaves
"""Frees a block as soon as one holder gives it back."""


def eviction_order(history, num_blocks):
    free, holders = list(range(num_blocks)), [0] * num_blocks
    for event, block_ids in history:
        if event == "take":
            for block_id in block_ids:
                holders[block_id] += 1
                if block_id in free:
                    free.remove(block_id)
        else:
            for block_id in reversed(block_ids):
                holders[block_id] -= 1
                if block_id not in free:
                    free.append(block_id)
    return free
