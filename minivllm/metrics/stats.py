"""What the engine has done and how full it is: `engine.stats()`.

Two numbers say how full the KV cache is, and they are not the same. `block_usage` counts blocks that
a sequence holds. `token_usage` counts the slots in them that hold a token. The gap between the two is what
block tables waste: the unfilled rest of each sequence's last block::

    block usage 50%        [####][####][##..][....][....][....]      waste = 1 - 10 / 12 = 17%
    token usage 42%          10 tokens in 3 blocks of 4, of 6

A shared block and its tokens count once. Here two sequences of 6 and 5 tokens share their first block::

    seq 0   [####]  [##..]       3 blocks held, 4 entries in tables: 1 block saved by sharing
    seq 1     "     [#...]       7 tokens stored, not 11: waste = 1 - 7 / 12

Gauges (`num_running`, usage) are read when asked and cost nothing otherwise; counters are kept where
things are counted, mostly in the scheduler. So `stats()` may be called at any moment, and changes nothing.

vLLM V1: `vllm/v1/metrics/stats.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from minivllm.metrics.counters import SchedulerStats
from minivllm.output_processor import OutputProcessor
from minivllm.outputs import RequestMetrics
from minivllm.scheduler import Scheduler


@dataclass(kw_only=True)
class EngineStats(SchedulerStats):
    """A snapshot: the scheduler's counters since the engine started, and gauges. Shares are from 0 to 1."""

    num_running: int
    num_waiting: int
    num_swapped: int
    num_blocks: int
    num_used_blocks: int
    num_stored_tokens: int
    block_usage: float
    token_usage: float
    num_blocks_saved: int  # by sharing, right now
    requests: tuple[RequestMetrics, ...]  # finished ones, in the order they finished

    @property
    def num_without_blocks(self) -> int:
        """Requests that wait for blocks, swapped ones included. vLLM has none that are swapped, so under its
        names both are one number.
        """
        return self.num_waiting + self.num_swapped

    @property
    def waste(self) -> float:
        """Share of the slots in held blocks that hold no token: the paper's internal fragmentation."""
        # Both shares are of the same total, so their ratio is tokens / slots in held blocks: 42% / 50% above.
        if self.num_used_blocks == 0:
            return 0.0
        return 1.0 - self.token_usage / self.block_usage

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Prompt tokens found in the prefix cache, out of those looked up.

        A request counts once, when it is first admitted. If a preempted request that finds its own blocks
        again counted too, a starved engine would look good.
        """
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Draft tokens accepted, out of those computed; 0 without any."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a row with drafts yields on average, the model's own included; 1 without any."""
        return 1.0 + (self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0)

    def median(self, measure: Callable[[RequestMetrics], float | None]) -> float | None:
        """Median of a measure over the finished requests, e.g. `lambda m: m.time_to_first_token`.

        Requests for which the measure is None are left out (an aborted one may never have had a first
        token). None if that leaves nothing.
        """
        values = [value for value in map(measure, self.requests) if value is not None]
        return statistics.median(values) if values else None

    def log_line(self, prompt_throughput: float, generation_throughput: float) -> str:
        """vLLM's periodic log line. Throughputs in tokens per second.

        vLLM has no swapped requests any more; ours are among those that wait.
        """
        drafts = ""
        if self.num_drafts:
            drafts = (
                f", Mean acceptance length: {self.mean_acceptance_length:.2f}, "
                f"Draft acceptance rate: {self.draft_acceptance_rate:.1%}"
            )
        preemptions = f"Preemptions: {self.num_preemptions}, " if self.num_preemptions else ""
        return (
            f"Avg prompt throughput: {prompt_throughput:.1f} tokens/s, "
            f"Avg generation throughput: {generation_throughput:.1f} tokens/s, "
            f"Running: {self.num_running} reqs, Waiting: {self.num_without_blocks} reqs, "
            f"{preemptions}KV cache usage: {self.block_usage:.1%}, "
            f"Prefix cache hit rate: {self.prefix_cache_hit_rate:.1%}{drafts}"
        )


def collect_stats(scheduler: Scheduler, output_processor: OutputProcessor) -> EngineStats:
    """Read the gauges and counters of this moment; changes nothing.

    Call it between steps: in the middle of a step there are blocks for tokens that are not computed yet.
    """
    kv, stats = scheduler.kv, scheduler.stats
    num_stored_tokens = count_stored_tokens(scheduler)
    return EngineStats(
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_swapped=len(scheduler.swapped),
        num_blocks=kv.pool.num_blocks,
        num_used_blocks=kv.pool.num_used,
        num_stored_tokens=num_stored_tokens,
        block_usage=kv.usage,
        token_usage=num_stored_tokens / (kv.pool.num_blocks * kv.block_size),
        num_blocks_saved=kv.num_blocks_saved,
        **asdict(stats),  # a copy, lists included
        requests=tuple(output_processor.finished_metrics),
    )


def count_stored_tokens(scheduler: Scheduler) -> int:
    """Slots that hold a computed token, a shared block counted once (with its fullest holder).

    Example, block_size 4, tables [7, 2] with 6 computed tokens and [7, 5] with 5, as in the picture above:
    block 7 holds max(4, 4), block 2 holds 6 - 4 = 2, block 5 holds 5 - 4 = 1: 7 tokens.

    Blocks without a holder do not count, though the prefix cache may still find content in them: they are
    free to be overwritten.
    """
    size = scheduler.kv.block_size
    filled: dict[int, int] = {}
    for group in scheduler.running:
        for seq in group.unfinished:
            table = scheduler.kv.block_tables.get(seq.seq_id)
            for index, block_id in enumerate(table.block_ids if table else ()):
                # A block that was taken for drafts which were rejected may hold nothing yet.
                tokens = max(0, min(size, seq.num_computed_tokens - index * size))
                filled[block_id] = max(filled.get(block_id, 0), tokens)
    return sum(filled.values())
