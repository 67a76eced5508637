# caught by: test_what_cannot_be_dealt_out_is_refused
"""Never refuses: the last rank gets what is left."""


def split_heads(num_heads, num_kv_heads, size):
    q, group = -(-num_heads // size), num_heads // num_kv_heads
    queries = [list(range(r * q, min((r + 1) * q, num_heads))) for r in range(size)]
    return [(heads, sorted({head // group for head in heads})) for heads in queries]
