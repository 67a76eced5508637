"""No queue: notes when each block was given back, and sorts at the end."""


def eviction_order(history, num_blocks):
    last_use = {block_id: -num_blocks + block_id for block_id in range(num_blocks)}
    holders = dict.fromkeys(range(num_blocks), 0)
    clock = 0
    for event, block_ids in history:
        for block_id in block_ids[::-1]:
            holders[block_id] += 1 if event == "take" else -1
            clock += 1
            last_use[block_id] = clock
    return sorted((b for b in holders if not holders[b]), key=last_use.__getitem__)
