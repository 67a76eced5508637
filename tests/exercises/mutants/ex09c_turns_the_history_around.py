# caught by: test_the_tail_goes_before_the_head
"""`reverse` in place: the history that it was given now tells of another order."""


def eviction_order(history, num_blocks):
    free, holders = list(range(num_blocks)), [0] * num_blocks
    for event, block_ids in history:
        if event == "take":
            for block_id in block_ids:
                holders[block_id] += 1
                if block_id in free:
                    free.remove(block_id)
        else:
            block_ids.reverse()
            for block_id in block_ids:
                holders[block_id] -= 1
                if holders[block_id] == 0:
                    free.append(block_id)
    return free
