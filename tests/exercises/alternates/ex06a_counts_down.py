"""A while loop over an index, with a limit computed for each request."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    counts = []
    while len(counts) < min(len(waiting), seats):
        tokens = min(waiting[len(counts)], token_budget - sum(counts))
        held = sum((count + block_size - 1) // block_size for count in counts)
        if tokens <= 0 or tokens > (free_blocks - held) * block_size:
            return counts
        counts.append(tokens)
    return counts
