"""Who is timed by `bench kernels`, on what, and how: the timer, the batches, the contenders.

Every contender on a shape is first compared with torch's attention in float32; a fast wrong kernel is not
measured. A peer that this installation cannot run (flex attention wants a compiler, flash-attn a wheel) is
named and left out; our own kernels may not fail.

How one time is taken, `--repeats` times over::

    flush (512 MB read push K and V out of the L2 cache) | start event | graph replay | end event

Events are recorded on the GPU's own queue, so neither Python nor the wait for the flush is in between. The
host waits once, after all repeats. The flush reads: had it written, the cache would be full of its numbers,
and the kernel would push them out to memory while it is timed: up to 50 MB on an H100, beside the 67 MB
of one sequence of 16,384 tokens.

Timing works on a GPU only, but everything else here runs on the CPU too, with a timer that measures nothing;
so `tests/bench/test_kernels.py` can check that every contender computes the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from minivllm.bench.kernel_shapes import DecodeShape, Measurement, PrefillShape
from minivllm.bench.report import Spread

# Tokens in a KV block, as in the engine and in vLLM.
BLOCK_SIZE = 16
FLUSH_BYTES = 512 << 20  # more than any GPU's L2 cache
ONE_BLOCK = "minivllm, one block a sequence"
SDPA = "torch sdpa, contiguous"
Call = Callable[[], torch.Tensor]


class Timer:
    """Times calls on the GPU with a cold L2 cache.

    Args:
        repeats: timed replays of each call, at least 1.
    """

    device = torch.device("cuda")

    def __init__(self, repeats: int) -> None:
        if repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {repeats}.")
        self.repeats = repeats
        self.flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device=self.device)

    def __call__(self, call: Call) -> Spread:
        """Microseconds of `call`, captured once in a CUDA graph and replayed.

        Args:
            call: launches work on the current stream, with the same arguments each time; its result is
                dropped.

        Returns:
            Microseconds of every replay. CUDA events count milliseconds, hence the factor.

        Why a graph: launching our kernel from Python takes longer than some of the shapes compute, and an
        engine that decodes replays a graph as well. What would be timed otherwise is Python.
        """
        # Compiling and loading a kernel are no operations that a graph can hold, so they have to happen
        # before. PyTorch asks for the warm-up to be on a side stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and warms up; a capture must not
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        # Once untimed: the first replay uploads the graph.
        graph.replay()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in events:
            self.flush.sum()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return Spread(tuple(start.elapsed_time(end) * 1e3 for start, end in events))


def measure_copy(timer: Timer, num_bytes: int = 1 << 31) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes together.

    2 GiB by default, far beyond any L2 cache: what is left in one when the clock stops is 1% of it. This is
    what "100%" means in the results: no data sheet says what a kernel can really get.

    Copied in two ways, since in a graph a copy may be done by another engine than the multiprocessors: the
    driver's copy, and a kernel that reads and writes as much. The faster one counts.
    """
    source = torch.randn(num_bytes // 4, device=timer.device)
    destination = torch.empty_like(source)
    copies: tuple[Call, ...] = (
        lambda: destination.copy_(source),
        lambda: torch.neg(source, out=destination),
    )
    return 2 * source.nbytes / (min(timer(copy).median for copy in copies) * 1e-6)


def measure_floor(timer: Timer) -> Spread:
    """Microseconds of a kernel with nothing to do: what graph and events alone add to every time."""
    number = torch.zeros(1, device=timer.device)
    return timer(lambda: number.add_(1))


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
    def by_head(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value as torch wants them: (R, heads, tokens, D)."""
        return self.query.transpose(1, 2), self.key.transpose(1, 2), self.value.transpose(1, 2)


def make_batch(shape: DecodeShape | PrefillShape, dtype: torch.dtype, device: torch.device) -> Batch:
    """Random numbers, N(0, 1); in all shapes the tokens fill whole blocks.

    Args:
        shape: how many sequences, how long, which heads.
        dtype: of queries, keys and values.
        device: where the tensors live.
    """
    # The same numbers for every shape and every run, so that a failure can be repeated.
    torch.manual_seed(0)
    heads, num_seqs = shape.heads, shape.num_seqs
    is_decode = isinstance(shape, DecodeShape)
    query_len = 1 if is_decode else shape.query_len
    seq_len = shape.seq_len if is_decode else shape.context + shape.query_len
    tables = torch.randperm(num_seqs * seq_len // BLOCK_SIZE, device=device)  # no two blocks are neighbours
    packed, paged = [], []
    for _ in range(2):
        size = (num_seqs, seq_len, heads.num_kv_heads, heads.head_dim)
        packed.append(torch.randn(size, dtype=dtype, device=device))
        # (R, n, ...) cut into (R * n / S, S, ...): row i is the i-th block of all sequences in order, and
        # goes to the physical block tables[i].
        blocks = packed[-1].view(-1, BLOCK_SIZE, heads.num_kv_heads, heads.head_dim)
        paged.append(torch.empty_like(blocks))
        paged[-1][tables] = blocks
    query = torch.randn(num_seqs, query_len, heads.num_heads, heads.head_dim, dtype=dtype, device=device)
    lens = torch.full((num_seqs,), seq_len, dtype=torch.int32, device=device)
    return Batch(query, *packed, *paged, tables.view(num_seqs, -1).int(), lens)


def is_right(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the relative error (2-norm) is below 1%; absolutely, zeros are close for long sequences.

    16-bit rounding is a few tenths of a percent at most. Leave out one block of 64, and with near-equal
    weights the output is off by about sqrt(1/64) = 12%.
    """
    return bool((actual.float() - expected).norm() < 0.01 * expected.norm())


def measure_all(
    ours: dict[str, Call], peers: dict[str, Call], expected: torch.Tensor, timer: Timer
) -> Iterator[tuple[str, Spread]]:
    """Check and time each contender; a peer that fails is named and left out.

    Raises:
        RuntimeError: one of our own kernels gives another answer than `expected`.

    Args:
        ours: calls by name; must work.
        peers: calls by name; may fail.
        expected: the right answer, float32, in the shape that our calls return.
        timer: a `Timer`, or what the tests put in its place.
    """
    for name, call in ours.items():
        if not is_right(call(), expected):
            raise RuntimeError(f"{name} gives a wrong answer; its time would mean nothing.")
        yield name, timer(call)
    for name, call in peers.items():
        try:
            if not is_right(call().reshape(expected.shape), expected):
                print(f"{name}: wrong answer, not measured")
                continue
            time = timer(call)
        except Exception as error:  # whatever a peer raises is no reason to lose the other results
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        yield name, time


def one_block_caches(
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The contiguous K and V as a paged cache: sequence r is block r, and a block has room for all of it.

    The kernel does the same, look-up included, but neighbours in the sequence are neighbours in memory. So
    the difference to random blocks of 16 is what scattering costs. What the look-up adds, `bench resources`
    counts.

    Returns:
        key_cache and value_cache (R, n, Hkv, D), block_tables (R, 1), seq_lens (R,).
    """
    block_tables = torch.arange(len(batch.key), dtype=torch.int32, device=batch.key.device)[:, None]
    return batch.key, batch.value, block_tables, batch.seq_lens


def attention_peers(batch: Batch, causal: bool) -> dict[str, Call]:
    """Attention of others on contiguous K and V, as far as it is installed; -> (R, t, Hq, D).

    Args:
        batch: K and V in both forms; the peers use the contiguous one.
        causal: whether a query sees only keys up to its own position (prefill), or all (decode).
    """
    return sdpa_peer(batch, causal) | flex_peer(batch, causal) | flash_peer(batch, causal)


def sdpa_peer(batch: Batch, causal: bool) -> dict[str, Call]:
    """torch's scaled_dot_product_attention; it chooses its own kernel."""
    q, k, v = batch.by_head

    def call() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)

    return {SDPA: call}


def flex_peer(batch: Batch, causal: bool) -> dict[str, Call]:
    """torch's flex attention, compiled for exactly this shape."""
    # Imported when needed: it brings in torch's compiler.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = batch.by_head
    # Decode needs no mask: the one query is the last token and sees all keys.
    mask, length = None, q.shape[2]
    if causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=q.device)
    # torch keeps 8 compilations of a function. From the ninth shape on it would run the uncompiled one, much
    # slower and without an error.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    def call() -> torch.Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return {"flex attention, contiguous": call}


def flash_peer(batch: Batch, causal: bool) -> dict[str, Call]:
    """The flash-attn package, if it is installed."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return {}

    def call() -> torch.Tensor:
        return flash_attn_func(batch.query, batch.key, batch.value, causal=causal)

    return {"flash-attn, contiguous": call}


def measure_decode(shape: DecodeShape, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """All contenders on one decode shape.

    Args:
        shape: one of `DECODE_SHAPES`, as a rule.
        dtype: float16 or bfloat16 on a GPU.
        timer: also says on which device.

    Yields:
        Our kernel as the heuristics split it, with 1 and with 16 splits, on contiguous K and V, the naive
        lesson, then the peers.
    """
    from minivllm.kernels.heuristics import chip_of, choose_num_splits
    from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive

    batch = make_batch(shape, dtype, timer.device)
    query = batch.query[:, 0]  # (R, Hq, D)
    caches = (batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens)
    scale = shape.heads.head_dim**-0.5
    programs = shape.num_seqs * shape.heads.num_kv_heads
    splits = {
        "minivllm": choose_num_splits(chip_of(query.device), programs, shape.seq_len),
        "minivllm, no split": 1,
        "minivllm, 16 splits": 16,
    }
    ours: dict[str, Call] = {
        # `n=number` binds now; a plain `number` would be 16 in all three when they are called.
        name: lambda n=number: paged_attention(query, *caches, scale, num_splits=n)
        for name, number in splits.items()
    }
    in_one_block = one_block_caches(batch)
    ours[ONE_BLOCK] = lambda: paged_attention(query, *in_one_block, scale, num_splits=splits["minivllm"])
    ours["minivllm, naive lesson"] = lambda: paged_attention_naive(query, *caches, scale)
    one_by_one = zip(*batch.by_head, strict=True)  # in float32: the whole batch would not fit beside itself
    expected = torch.stack(
        [
            scaled_dot_product_attention(q[None].float(), k[None].float(), v[None].float(), enable_gqa=True)
            for q, k, v in one_by_one
        ]
    ).view(query.shape)
    needed = shape.bytes_needed(query.element_size())
    for name, time in measure_all(ours, attention_peers(batch, causal=False), expected, timer):
        yield Measurement("decode", shape.name, name, time, needed, splits.get(name))


def measure_prefill(shape: PrefillShape, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """Our kernel and, for fresh prompts, the peers.

    Prompts with context have no peers: torch's `is_causal` lines the mask up with the first key, and here the
    queries are the last tokens.
    """
    from minivllm.kernels.prefill_attention import prefill_attention, prefill_attention_reference

    batch = make_batch(shape, dtype, timer.device)
    query = batch.query.flatten(0, 1)  # (T, Hq, D)
    # query_start_loc, (R + 1,): all queries have one length, so 0, 512, 1024, ...
    starts = torch.arange(shape.num_seqs + 1, dtype=torch.int32, device=query.device) * shape.query_len
    args = (query, batch.key_cache, batch.value_cache, batch.block_tables, batch.seq_lens, starts)
    scale = shape.heads.head_dim**-0.5
    in_one_block = (query, *one_block_caches(batch), starts)
    ours = {
        "minivllm": lambda: prefill_attention(*args, scale),
        ONE_BLOCK: lambda: prefill_attention(*in_one_block, scale),
    }
    peers = attention_peers(batch, causal=True) if shape.context == 0 else {}
    expected = prefill_attention_reference(*args, scale).float()
    for name, time in measure_all(ours, peers, expected, timer):
        yield Measurement("prefill", shape.name, name, time, shape.flops())


def measure_rows(num_tokens: int, dtype: torch.dtype, timer: Timer) -> Iterator[Measurement]:
    """The small kernels beside their torch twins, in the sizes of Llama-3.1-8B.

    Args:
        num_tokens: rows, T.
        dtype: of everything.
        timer: also says on which device.
    """
    from minivllm.kernels.rms_norm import rms_norm, rms_norm_reference
    from minivllm.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

    x = torch.randn(num_tokens, 4096, dtype=dtype, device=timer.device)
    weight = torch.randn(4096, dtype=dtype, device=timer.device)
    # Not x itself: a row that has just been read would come from the cache, and not cross memory again.
    residual = torch.randn_like(x)
    gate_up = torch.randn(num_tokens, 2 * 14336, dtype=dtype, device=timer.device)
    cases: dict[str, tuple[int, Call, Call]] = {
        f"rms_norm with residual, {num_tokens} x 4096": (
            4 * x.nbytes,
            lambda: rms_norm(x, weight, 1e-5, residual)[0],
            lambda: rms_norm_reference(x, weight, 1e-5, residual)[0],
        ),
        f"silu_and_mul, {num_tokens} x 28672": (
            # Two halves read, one of their size written.
            gate_up.nbytes * 3 // 2,
            lambda: silu_and_mul(gate_up),
            lambda: silu_and_mul_reference(gate_up),
        ),
    }
    for name, (needed, ours, twin) in cases.items():
        for contender, time in measure_all({"minivllm": ours}, {"torch": twin}, twin().float(), timer):
            yield Measurement("rows", name, contender, time, needed)
