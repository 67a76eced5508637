# caught by: test_the_tail_goes_before_the_head
"""Overwrites what may be asked for again before it touches blocks that hold nothing."""


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
                if holders[block_id] == 0:
                    free.append(block_id)
    used = {block_id for _, block_ids in history for block_id in block_ids}
    return [b for b in free if b in used] + [b for b in free if b not in used]
