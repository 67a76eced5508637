"""Random paged batches full of poison, and attention over them in float64, right or wrong on purpose.

`Case` builds a batch as unkind as the contract allows: blocks in random order, every slot that no sequence
uses is NaN in K and in V, block tables are padded with -1 and 2^31 - 1.

`attention64` computes what the kernels should from the *already rounded* inputs, so that only the kernel's
own error is measured. Its `bug` argument makes one of the mistakes paged attention kernels are known for: an
assertion that accepts such an answer would accept a broken kernel. `test_kernel_oracle.py` compares it,
without a bug, against torch's scaled_dot_product_attention, which we did not write.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

import torch

# Largest absolute error accepted for inputs ~ N(0, 1). The output is an average of values up to 4: rounding
# such a value costs up to 2^-10 in float16 and 2^-7 in bfloat16, which the interpreter truncates (2^-6).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


class Bug(Enum):
    """A mistake `attention64` can make on purpose."""

    ZEROS = "the kernel wrote nothing into a zeroed output"
    NO_SCALE = "scores are not multiplied by the scale"
    MASK_OFF_BY_ONE = "a query does not see its own position"
    WRONG_KV_HEAD = "query head h reads KV head h % Hkv instead of h // G"
    STALE_LAST_BLOCK = "the last block number is not read, the one before is used again"
    NO_RESCALE = "acc is not multiplied by alpha when a tile brings a new maximum"


@dataclass
class Case:
    """One batch. Decode takes the last query of each sequence, prefill all of them."""

    lens: list[int]
    query_lens: list[int] | None = None  # None: one each, 0 for an empty sequence
    heads: tuple[int, int] = (4, 2)  # (Hq, Hkv)
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    tables: list[list[int]] | None = None  # physical blocks of each sequence; None: random, all different
    num_blocks: int = 0  # 0: three more than the sequences need
    query: torch.Tensor = field(init=False)
    key_cache: torch.Tensor = field(init=False)
    value_cache: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        S = self.block_size
        needed = [math.ceil(n / S) for n in self.lens]
        self.num_blocks = self.num_blocks or sum(needed) + 3
        if self.tables is None:
            order = iter(torch.randperm(self.num_blocks).tolist())
            self.tables = [[next(order) for _ in range(count)] for count in needed]
        if self.query_lens is None:
            self.query_lens = [min(n, 1) for n in self.lens]
        shape = (self.num_blocks, S, self.heads[1], self.head_dim)  # (B, S, Hkv, D)
        used = torch.zeros(shape[:2], dtype=torch.bool)
        for n, table in zip(self.lens, self.tables, strict=True):
            for position in range(n):
                used[table[position // S], position % S] = True
        caches = []
        for _ in range(2):
            data = torch.randn(shape).masked_fill(~used[:, :, None, None], math.nan)
            caches.append(data.to(self.device, self.dtype))
        self.key_cache, self.value_cache = caches
        query = torch.randn(sum(self.query_lens), self.heads[0], self.head_dim)
        self.query = query.to(self.device, self.dtype)  # (T, Hq, D)

    @property
    def scale(self) -> float:
        """The usual 1 / sqrt(D)."""
        return self.head_dim**-0.5

    @property
    def seq_lens(self) -> torch.Tensor:
        """(R,) int32."""
        return torch.tensor(self.lens, dtype=torch.int32, device=self.device)

    @property
    def query_start_loc(self) -> torch.Tensor:
        """(R + 1,) int32."""
        starts = [sum(self.query_lens[:r]) for r in range(len(self.lens) + 1)]
        return torch.tensor(starts, dtype=torch.int32, device=self.device)

    @property
    def block_tables(self) -> torch.Tensor:
        """(R, max_blocks) int32, padded with what must never be followed."""
        width = max([len(table) for table in self.tables], default=0) + 2
        padded = torch.empty(len(self.tables), width, dtype=torch.int32)
        padded[:, 0::2], padded[:, 1::2] = -1, 2**31 - 1
        for row, table in zip(padded, self.tables, strict=True):
            row[: len(table)] = torch.tensor(table, dtype=torch.int32)
        return padded.to(self.device)

    @property
    def decode_query(self) -> torch.Tensor:
        """(R, Hq, D): one query per sequence, ones where the sequence is empty."""
        rows, start = [], 0
        for count in self.query_lens:
            start += count
            rows.append(self.query[start - 1] if count else self.query.new_ones(self.query.shape[1:]))
        return torch.stack(rows)

    def decode_args(self) -> tuple:
        """The positional arguments of `paged_attention`."""
        tensors = (self.decode_query, self.key_cache, self.value_cache, self.block_tables, self.seq_lens)
        return (*tensors, self.scale)

    def prefill_args(self) -> tuple:
        """The positional arguments of `prefill_attention`."""
        tensors = (self.query, self.key_cache, self.value_cache, self.block_tables, self.seq_lens)
        return (*tensors, self.query_start_loc, self.scale)

    def contiguous_kv(self, r: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of sequence r as (n, Hkv, D), float64 on the CPU."""
        position = torch.arange(self.lens[r])
        blocks = torch.tensor(self.tables[r], dtype=torch.long)[position // self.block_size]
        slots = (blocks, position % self.block_size)
        return self.key_cache.cpu()[slots].double(), self.value_cache.cpu()[slots].double()

    def expected_decode(self, **options) -> torch.Tensor:
        """(R, Hq, D) float64; a zero row for an empty sequence."""
        out = torch.zeros(len(self.lens), self.heads[0], self.head_dim, dtype=torch.float64)
        for r, count in enumerate(self.query_lens):
            if count:
                out[r] = self.attention64(r, self.decode_query[r : r + 1], **options)[0]
        return out

    def expected_prefill(self, **options) -> torch.Tensor:
        """(T, Hq, D) float64."""
        starts = self.query_start_loc.tolist()
        parts = [
            self.attention64(r, self.query[starts[r] : starts[r + 1]], **options)
            for r in range(len(self.lens))
        ]
        return torch.cat(parts)

    def attention64(
        self,
        r: int,
        query: torch.Tensor,
        bug: Bug | None = None,
    ) -> torch.Tensor:
        """Attention of the last len(query) tokens of sequence r in float64; (t, Hq, D)."""
        if bug is Bug.ZEROS or len(query) == 0:
            return torch.zeros(query.shape, dtype=torch.float64)
        k, v = self.contiguous_kv(r)
        n, S = self.lens[r], self.block_size
        if bug is Bug.STALE_LAST_BLOCK and n > S:
            last = (n - 1) // S * S
            k, v = k.clone(), v.clone()
            k[last:], v[last:] = k[last - S : n - S].clone(), v[last - S : n - S].clone()
        num_heads, num_kv_heads = self.heads
        kv_head = torch.arange(num_heads) // (num_heads // num_kv_heads)
        if bug is Bug.WRONG_KV_HEAD:
            kv_head = torch.arange(num_heads) % num_kv_heads
        scores = torch.einsum("thd,nhd->htn", query.double().cpu(), k[:, kv_head])
        if bug is not Bug.NO_SCALE:
            scores = scores * self.scale
        position = torch.arange(n - len(query), n)[:, None]
        j = torch.arange(n)
        seen = j < position if bug is Bug.MASK_OFF_BY_ONE else j <= position
        scores = scores.masked_fill(~seen, -math.inf)
        if bug is Bug.NO_RESCALE:
            return softmax_without_rescale(scores, v[:, kv_head])
        return torch.einsum("htn,nhd->thd", scores.softmax(-1).nan_to_num(0.0), v[:, kv_head])


def softmax_without_rescale(scores: torch.Tensor, v: torch.Tensor, tile: int = 16) -> torch.Tensor:
    """The online softmax of (Hq, t, n) scores that repairs l but forgets to repair acc."""
    m = torch.full(scores.shape[:2], -math.inf, dtype=torch.float64)
    l = torch.zeros_like(m)  # noqa: E741
    acc = torch.zeros(*scores.shape[:2], v.shape[-1], dtype=torch.float64)
    for start in range(0, scores.shape[2], tile):
        part = scores[:, :, start : start + tile]
        m_new = torch.maximum(m, part.amax(-1))
        p = torch.exp(part - m_new[..., None])
        l = l * torch.exp(m - m_new) + p.sum(-1)  # noqa: E741
        acc = acc + torch.einsum("htn,nhd->htd", p, v[start : start + tile])
        m = m_new
    return (acc / l[..., None]).transpose(0, 1)


def assert_matches(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """The one assertion on values: shape, dtype, and largest absolute error (NaN fails too)."""
    assert actual.dtype == dtype, f"dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual.double().cpu() - expected).abs()
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= TOLERANCE[dtype], (
        f"largest error {worst:.3g}, tolerance {TOLERANCE[dtype]:.3g} for {dtype}"
    )
