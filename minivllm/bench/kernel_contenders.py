"""What is timed by `bench kernels`, and on what data: the batches, and the contenders on each shape.

Ours run on paged K and V, the peers on the same numbers in one piece::

    llama-3.1-8b B64 n4096     minivllm                              paged, random blocks of 16
                               minivllm, one block per sequence      the same kernel, nothing scattered
                               torch flash attention, contiguous     a peer

How each is checked and timed is in `kernel_timing.py`. vLLM:
`benchmarks/kernels/benchmark_paged_attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minivllm.bench.kernel_report import (
    DEEPER,
    FLASH,
    NO_SPLIT,
    ONE_BLOCK,
    OURS,
    SDPA,
    AttentionShape,
    Failure,
    Measurement,
)
from minivllm.bench.kernel_timing import EVERYTHING, Call, Subject, Timer, Wanted, measure_all

BLOCK_SIZE = 16  # tokens per KV block, as in the engine and in vLLM
FLEX = "flex attention, contiguous"
FOR_MARKS = (OURS, NO_SPLIT, FLASH, DEEPER)
PASSES: tuple[Wanted, ...] = (
    lambda name: name in FOR_MARKS,
    lambda name: name not in (*FOR_MARKS, FLEX),
    lambda name: name == FLEX,  # torch.compile takes some ten seconds a shape
)
"""All contenders, each in one pass. The marks need the first pass only."""


@dataclass(frozen=True)
class Batch:
    """The same keys and values twice: contiguous for the peers, paged in random blocks for our kernels.

    Example with R = 2, n = 32 and S = 16, block_tables [[2, 0], [3, 1]]::

        key[0]    tokens 0..15 -> key_cache[2]     tokens 16..31 -> key_cache[0]
        key[1]    tokens 0..15 -> key_cache[3]     tokens 16..31 -> key_cache[1]
    """

    query: torch.Tensor  # (R, t, Hq, D)
    key: torch.Tensor  # (R, n, Hkv, D)
    value: torch.Tensor
    key_cache: torch.Tensor  # (B, S, Hkv, D)
    value_cache: torch.Tensor
    block_tables: torch.Tensor  # (R, n / S) int32
    seq_lens: torch.Tensor  # (R,) int32

    @property
    def paged(self) -> tuple[torch.Tensor, ...]:
        """Caches, block tables and lengths, in the order in which our kernels take them."""
        return self.key_cache, self.value_cache, self.block_tables, self.seq_lens

    @property
    def in_one_block(self) -> tuple[torch.Tensor, ...]:
        """The contiguous K and V as caches: sequence r is block r, with room for all of it. The look-up is
        the same, so the difference to random blocks of 16 is what scattering costs.
        """
        block_tables = torch.arange(len(self.key), dtype=torch.int32, device=self.key.device)[:, None]
        return self.key, self.value, block_tables, self.seq_lens

    @property
    def by_head(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value as torch wants them: (R, heads, tokens, D)."""
        return self.query.transpose(1, 2), self.key.transpose(1, 2), self.value.transpose(1, 2)


def make_batch(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Batch:
    """Random numbers, N(0, 1), the same in every run; in all shapes the tokens fill whole blocks."""
    torch.manual_seed(0)
    heads, num_seqs, seq_len = shape.heads, shape.num_seqs, shape.seq_len
    tables = torch.randperm(num_seqs * seq_len // BLOCK_SIZE, device=device)  # no two blocks are neighbours
    packed, paged = [], []
    for _ in range(2):
        size = (num_seqs, seq_len, heads.num_kv_heads, heads.head_dim)
        packed.append(torch.randn(size, dtype=dtype, device=device))
        # (R, n, ...) cut into (R * n / S, S, ...): row i goes to the physical block tables[i].
        blocks = packed[-1].view(-1, BLOCK_SIZE, heads.num_kv_heads, heads.head_dim)
        paged.append(torch.empty_like(blocks))
        paged[-1][tables] = blocks
    size = (num_seqs, shape.query_len, heads.num_heads, heads.head_dim)
    query = torch.randn(size, dtype=dtype, device=device)
    lens = torch.full((num_seqs,), seq_len, dtype=torch.int32, device=device)
    return Batch(query, *packed, *paged, tables.view(num_seqs, -1).int(), lens)


def attention_peers(batch: Batch, causal: bool, wanted: Wanted) -> dict[str, Call]:
    """Attention of others on contiguous K and V, as far as it is installed; -> (R, t, Hq, D)."""
    q, k, v = batch.by_head
    sdpa = partial(scaled_dot_product_attention, q, k, v, is_causal=causal, enable_gqa=True)

    def flash() -> torch.Tensor:
        """torch's copy of FlashAttention-2, whatever torch would choose by itself."""
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa().transpose(1, 2)

    peers: dict[str, Call] = {SDPA: lambda: sdpa().transpose(1, 2), FLASH: flash}
    if wanted(FLEX):  # preparing it takes a moment already
        peers |= flex_peer(batch, causal)
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return peers
    flash = partial(flash_attn_func, batch.query, batch.key, batch.value, causal=causal)
    return peers | {"flash-attn, contiguous": flash}


def flex_peer(batch: Batch, causal: bool) -> dict[str, Call]:
    """torch's flex attention, compiled for exactly this shape."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = batch.by_head
    mask, length = None, q.shape[2]
    if causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=q.device)
    # torch keeps 8 compilations of a function, and from the ninth shape on would run the uncompiled one.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    call: Call = lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)  # noqa: E731
    return {FLEX: call}


def measure_decode(
    shape: AttentionShape, dtype: torch.dtype, timer: Timer, wanted: Wanted = EVERYTHING
) -> Iterator[Measurement | Failure]:
    """Our kernel with other splits, in one block, with each of its switches; the naive lesson; the peers."""
    from minivllm.kernels.heuristics import VARIANTS, Switches, chip_of, choose_num_splits
    from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive

    batch = make_batch(shape, dtype, timer.device)
    query, scale = batch.query[:, 0], shape.heads.head_dim**-0.5  # (R, Hq, D)
    programs = shape.num_seqs * shape.heads.num_kv_heads
    chosen = choose_num_splits(chip_of(query.device), programs, shape.seq_len)
    splits = {OURS: chosen, NO_SPLIT: 1, "minivllm, 16 splits": 16}
    ours: dict[str, Call] = {
        # `n=number` binds now; a plain `number` would be 16 in all three when they are called.
        name: lambda n=number: paged_attention(query, *batch.paged, scale, num_splits=n)
        for name, number in splits.items()
    }
    ours[ONE_BLOCK] = lambda: paged_attention(query, *batch.in_one_block, scale, num_splits=chosen)
    attention = partial(paged_attention, query, *batch.paged, scale)
    for name, switches in VARIANTS.items():
        splits[f"minivllm, {name}"] = chosen
        ours[f"minivllm, {name}"] = partial(attention, num_splits=chosen, switches=switches)
    if shape.num_seqs == 1:  # what a CUDA graph would do to it that is made for 131,072 tokens
        for least in (0, 256):
            name, switches = f"minivllm, 32 splits of at least {least} tokens", Switches(least)
            ours[name] = partial(attention, num_splits=32, switches=switches)
    ours["minivllm, naive lesson"] = lambda: paged_attention_naive(query, *batch.paged, scale)
    # One by one in float32: the whole batch would not fit beside itself.
    one_by_one = ([x[None].float() for x in sequence] for sequence in zip(*batch.by_head, strict=True))
    answers = [scaled_dot_product_attention(*qkv, enable_gqa=True) for qkv in one_by_one]
    expected, peers = torch.stack(answers).view(query.shape), attention_peers(batch, False, wanted)
    subject = Subject(shape.kind, shape.name, shape.work(query.element_size()), expected, splits)
    yield from measure_all(ours, peers, subject, timer, wanted)


def measure_prefill(
    shape: AttentionShape, dtype: torch.dtype, timer: Timer, wanted: Wanted = EVERYTHING
) -> Iterator[Measurement | Failure]:
    """Our kernel and, for prompts without context, the peers: `is_causal` of torch aligns the first keys.

    Where the tile is so large that a multiprocessor has room for one program, it is timed with 5 stages too:
    no other program computes while this one waits for a load.
    """
    from minivllm.kernels.heuristics import VARIANTS, chip_of, prefill_tiles
    from minivllm.kernels.prefill_attention import prefill_attention, prefill_attention_reference

    batch = make_batch(shape, dtype, timer.device)
    query, scale = batch.query.flatten(0, 1), shape.heads.head_dim**-0.5  # (T, Hq, D)
    # query_start_loc, (R + 1,): all queries have one length, so 0, 512, 1024, ...
    starts = torch.arange(shape.num_seqs + 1, dtype=torch.int32, device=query.device) * shape.query_len
    ours: dict[str, Call] = {
        OURS: lambda: prefill_attention(query, *batch.paged, starts, scale),
        ONE_BLOCK: lambda: prefill_attention(query, *batch.in_one_block, starts, scale),
    }
    attention = partial(prefill_attention, query, *batch.paged, starts, scale)
    head_dim, element_size = shape.heads.head_dim, query.element_size()
    tiles = prefill_tiles(chip_of(query.device), head_dim, element_size, shape.query_len)
    if tiles.block_m == 128:  # Hopper's, for long queries
        ours[DEEPER] = partial(attention, tiles=replace(tiles, num_stages=5))
    for name, switches in VARIANTS.items():
        if switches.peel or switches.by_block:  # there are no splits here
            ours[f"minivllm, {name}"] = partial(attention, switches=switches)
    if shape.context == 0:
        peers = attention_peers(batch, True, wanted)
        # torch's own: the twin would write out 32 x 8,192 x 8,192 scores.
        answer = scaled_dot_product_attention(
            *(x.float() for x in batch.by_head), is_causal=True, enable_gqa=True
        )
        expected = answer.transpose(1, 2).reshape(query.shape)
    else:
        peers, expected = {}, prefill_attention_reference(query, *batch.paged, starts, scale).float()
    subject = Subject(shape.kind, shape.name, shape.work(query.element_size()), expected)
    yield from measure_all(ours, peers, subject, timer, wanted)


def measure_rows(num_tokens: int, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement | Failure]:
    """The small kernels on `num_tokens` rows beside their torch twins, in the sizes of Llama-3.1-8B."""
    from minivllm.kernels.rms_norm import rms_norm, rms_norm_reference
    from minivllm.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

    # The residual is not x itself: a row that has just been read would come from the cache.
    x, residual = torch.randn(2, num_tokens, 4096, dtype=dtype, device=timer.device)
    weight = torch.randn(4096, dtype=dtype, device=timer.device)
    gate_up = torch.randn(num_tokens, 2 * 14336, dtype=dtype, device=timer.device)
    norm_calls = [lambda f=f: f(x, weight, 1e-5, residual)[0] for f in (rms_norm, rms_norm_reference)]
    silu_calls = [lambda f=f: f(gate_up) for f in (silu_and_mul, silu_and_mul_reference)]
    # Bytes: two tensors read and two written; two halves read, one of their size written.
    for kernel, work, (ours, twin) in (
        ("rms_norm with residual, {} x 4096", 4 * x.nbytes, norm_calls),
        ("silu_and_mul, {} x 28672", gate_up.nbytes * 3 // 2, silu_calls),
    ):
        subject = Subject("rows", kernel.format(num_tokens), work, twin().float())
        yield from measure_all({OURS: ours}, {"torch": twin}, subject, timer)
