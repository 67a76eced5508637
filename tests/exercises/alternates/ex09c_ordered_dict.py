"""One pass with a dictionary: the order of its keys is the queue."""


def eviction_order(history, num_blocks):
    queue, counts = dict.fromkeys(range(num_blocks)), [0] * num_blocks
    for event, block_ids in history:
        for block_id in reversed(block_ids):
            if event == "take":
                queue.pop(block_id, None)
                counts[block_id] += 1
            elif counts[block_id] == 1:
                queue[block_id], counts[block_id] = None, 0
            else:
                counts[block_id] -= 1
    return list(queue)
