"""Merge the partial softmaxes of split-KV: the second half of Flash-Decoding.

Split-KV cuts a sequence into parts and runs the online softmax of `paged_attention_naive.py` on each part in
its own program. Part i ends with its own maximum m_i, sum l_i and unnormalised acc_i, each right relative to
m_i. The factor alpha that joins two blocks puts the parts on one scale too, all of them at once::

    M = max_i m_i          w_i = exp(m_i - M)

    O = sum_i w_i * acc_i  /  sum_i w_i * l_i

    part 0   m=0  l=1  acc=1  --- w = e^-2 ---+
    part 1   m=2  l=1  acc=2  --- w = 1    ---+--> O = (0.135 * 1 + 2 + 0.368 * 3)
    part 2   m=1  l=1  acc=3  --- w = e^-1 ---+        / (0.135 + 1 + 0.368) = 2.155

(These are the numbers of the naive kernel's example, and the same answer: softmax does not depend on order.)

A part that got no tokens has m = -inf and l = 0, and its acc was not written: acc is masked off there, not
multiplied by 0, because unwritten memory may hold NaN and 0 * NaN is NaN.

The scores are in units of log 2 (see `paged_attention.py`), hence exp2.

vLLM V1: `reduce_segments` in `vllm/v1/attention/ops/triton_unified_attention.py`.
"""
# ruff: noqa: E741  (l is the derivation's letter)

import torch

from .common import tl, triton


def combine_reference(part_acc: torch.Tensor, part_m: torch.Tensor, part_l: torch.Tensor) -> torch.Tensor:
    """The same in plain torch. Shapes as in `combine`; -> (R, Hq, D) float32."""
    m_max = part_m.amax(-1, keepdim=True)  # (R, Hq, 1)
    weight = torch.exp2(part_m - m_max).where(part_l > 0, torch.tensor(0.0))  # (R, Hq, splits)
    acc = part_acc.where((part_l > 0)[..., None], torch.tensor(0.0))
    total = (weight * part_l).sum(-1, keepdim=True)  # (R, Hq, 1)
    return (weight[..., None] * acc).sum(-2) / total.where(total > 0, torch.tensor(1.0))


@triton.jit
def _combine_kernel(
    out_ptr,  # (R, Hq, D)
    part_acc_ptr,  # (R, Hq, NUM_SPLITS, D) float32
    part_m_ptr,  # (R, Hq, NUM_SPLITS) float32
    part_l_ptr,  # (R, Hq, NUM_SPLITS) float32
    out_stride_seq,
    out_stride_head,
    D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    LANES_D: tl.constexpr,
    LANES_SPLIT: tl.constexpr,
):
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = seq * tl.num_programs(1) + head  # (R, Hq) flattened: the partials are contiguous

    split = tl.arange(0, LANES_SPLIT)
    d = tl.arange(0, LANES_D)
    m = tl.load(part_m_ptr + row * NUM_SPLITS + split, mask=split < NUM_SPLITS, other=float("-inf"))
    l = tl.load(part_l_ptr + row * NUM_SPLITS + split, mask=split < NUM_SPLITS, other=0.0)
    written = l > 0

    m_max = tl.max(m, axis=0)
    weight = tl.exp2(tl.where(written, m - tl.where(m_max > float("-inf"), m_max, 0.0), float("-inf")))
    acc_row = part_acc_ptr + (row * NUM_SPLITS + split)[:, None] * D + d[None, :]
    acc = tl.load(acc_row, mask=written[:, None] & (d < D)[None, :], other=0.0)  # (splits, D)

    total = tl.sum(weight * l, axis=0)
    o = tl.sum(weight[:, None] * acc, axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + seq * out_stride_seq + head * out_stride_head + d, o, mask=d < D)


def combine(
    part_acc: torch.Tensor, part_m: torch.Tensor, part_l: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Merge the parts of every sequence and head into `out`, and return it.

    Args:
        part_acc: (R, Hq, splits, D) float32, unnormalised; never read where `part_l` is 0.
        part_m: (R, Hq, splits) float32, largest score of the part in units of log 2; -inf if it is empty.
        part_l: (R, Hq, splits) float32, sum of exponentials; 0 if the part is empty.
        out: (R, Hq, D), written in its own dtype.
    """
    num_seqs, num_heads, num_splits, head_dim = part_acc.shape
    assert part_m.shape == part_l.shape == part_acc.shape[:3], (part_m.shape, part_l.shape, part_acc.shape)
    assert part_acc.is_contiguous() and part_m.is_contiguous() and part_l.is_contiguous()
    _combine_kernel[(num_seqs, num_heads)](
        out,
        part_acc,
        part_m,
        part_l,
        *out.stride()[:2],
        D=head_dim,
        NUM_SPLITS=num_splits,
        LANES_D=triton.next_power_of_2(head_dim),
        LANES_SPLIT=triton.next_power_of_2(num_splits),
        num_warps=4,
    )
    return out
