# caught by: test_scores_far_from_zero_count_as_any_other
"""What does not exist scores -10,000: more than scores near -20,000."""

# ruff: noqa: E741

from minivllm.kernels.common import tl, triton


@triton.jit
def decode_kernel(
    out_ptr, query_ptr, key_cache_ptr, value_cache_ptr, block_tables_ptr, seq_lens_ptr, scale, max_blocks,
    stride_block, stride_slot, stride_head, S: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    head = tl.program_id(1)
    row = (seq * tl.num_programs(1) + head) * D
    seq_len = tl.load(seq_lens_ptr + seq)
    d = tl.arange(0, D)
    q = tl.load(query_ptr + row + d)
    m = float("-inf")
    l = 0.0
    acc = tl.zeros([D], dtype=tl.float32)
    for start in range(0, seq_len, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        exists = n < seq_len
        block = tl.load(block_tables_ptr + seq * max_blocks + n // S, mask=exists, other=0).to(tl.int64)
        address = block * stride_block + (n % S) * stride_slot + head // G * stride_head
        address = address[:, None] + d[None, :]
        k = tl.load(key_cache_ptr + address, mask=exists[:, None], other=0.0)
        v = tl.load(value_cache_ptr + address, mask=exists[:, None], other=0.0)
        scores = tl.where(exists, tl.sum(q[None, :] * k, axis=1) * scale, -10_000.0)
        m_new = tl.maximum(m, tl.max(scores, axis=0))
        alpha = tl.exp(m - m_new)
        p = tl.exp(scores - m_new)
        l = l * alpha + tl.sum(p, axis=0)
        acc = acc * alpha + tl.sum(p[:, None] * v, axis=0)
        m = m_new
    tl.store(out_ptr + row + d, acc / tl.where(l > 0, l, 1.0))
