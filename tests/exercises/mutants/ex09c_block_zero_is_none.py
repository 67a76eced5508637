# caught by: test_the_tail_goes_before_the_head
"""Skips block 0 as if it were padding."""


def eviction_order(history, num_blocks):
    free, holders = list(range(num_blocks)), [0] * num_blocks
    for event, block_ids in history:
        for block in block_ids if event == "take" else block_ids[::-1]:
            if not block:
                continue
            holders[block] += 1 if event == "take" else -1
            if event == "take" and block in free:
                free.remove(block)
            elif holders[block] == 0:
                free.append(block)
    return free
