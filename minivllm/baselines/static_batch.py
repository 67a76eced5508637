"""Static batching: the batch is closed until its last sequence is done.

The way of serving before Orca, and still what `model.generate` does. Short answers wait for the longest one,
and so do the requests behind them::

    continuous   A aaaa D dddd         static   A aaaa . . .  D dddd
                 B bb E eeeee                   B bb . . . .  E eeeee
                 C cccccccc                     C cccccccc
                 -------------> steps           -------------> steps       . seat empty, nobody admitted

Only admission differs from `Scheduler`; the memory manager, chunked prefill and the engine are the same, so
the two show what continuous batching alone is worth.

    >>> LLM(model, scheduler_cls=StaticBatchScheduler)

Paper: section 2.3 (batching techniques). vLLM V1 has no counterpart.
"""

from __future__ import annotations

from typing import Any

from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import StepDraft


class StaticBatchScheduler(Scheduler):
    """A `Scheduler` that admits requests only into an empty batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batch_size = 0  # sequence groups admitted into the present batch
        self._filling = True

    def schedule_waiting(self, step: StepDraft) -> None:
        """Admit while the batch is being filled.

        Filling may take several steps, because a step has a budget of tokens: it goes on as long as the
        budget alone ended it, and is over when the queue, the seats or the memory did, or when the first
        sequence left. Otherwise a batch would be limited to the prompts of one step.
        """
        if not self.running:
            self._batch_size, self._filling = 0, True
        if not self._filling or len(self.running) < self._batch_size:
            self._filling = False
            return
        super().schedule_waiting(step)
        self._batch_size = len(self.running)
        self._filling = step.budget == 0
