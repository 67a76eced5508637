"""vLLM's periodic log line: how fast tokens come, how many requests wait, how full the KV cache is.

    Avg prompt throughput: 512.0 tokens/s, Avg generation throughput: 96.4 tokens/s, Running: 8 reqs,
    Waiting: 3 reqs, KV cache usage: 61.5%, Prefix cache hit rate: 20.0%

The two throughputs are differences of the counters of two snapshots (`stats.py`), divided by the seconds
between them. Off by default: `disable_log_stats=False` turns the line on.

vLLM V1: `vllm/v1/metrics/loggers.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from minivllm.metrics.stats import EngineStats

logger = logging.getLogger(__name__)

# Long enough to average over many steps, short enough to see a queue build up.
LOG_INTERVAL_SECONDS = 10.0


class PeriodicLog:
    """Logs one line every `interval` seconds, in vLLM's form.

    It has no thread and no timer: the first step to end after the interval writes the line, and an idle
    engine writes none.
    """

    def __init__(self, interval: float = LOG_INTERVAL_SECONDS) -> None:
        self.interval = interval
        # When the last line was written, and what it said.
        self._last: tuple[float, EngineStats] | None = None

    def note(self, stats: Callable[[], EngineStats], now: float) -> None:
        """A step has ended; `stats` is called only when a line is due, since it visits every block table.

        Args:
            stats: makes the snapshot for the line.
            now: seconds of the engine's clock.
        """
        if self._last is None:
            self._last = now, stats()
        since, before = self._last
        if now - since <= self.interval:
            return
        after = stats()
        prompt = (after.num_computed_prompt_tokens - before.num_computed_prompt_tokens) / (now - since)
        generated = (after.num_generated_tokens - before.num_generated_tokens) / (now - since)
        logger.info(after.log_line(prompt, generated))
        self._last = now, after
