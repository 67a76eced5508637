"""Static batching: the batch is closed until its last sequence is done.

The way of serving before Orca, and still what `model.generate` does. Short answers wait for the longest one,
and so do the requests behind them::

    continuous   A aaaa D dddd         static   A aaaa . . .  D dddd
                 B bb E eeeee                   B bb . . . .  E eeeee
                 C cccccccc                     C cccccccc
                 -------------> steps           -------------> steps       . seat empty, none admitted

Only admission differs from `Scheduler`; the memory manager, chunked prefill and the engine are the same, so a
comparison shows what continuous batching alone is worth.

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

        Filling may take several steps, because a step has a budget of tokens, and otherwise a batch would be
        limited to the prompts of one step. Filling goes on in the next step if only the budget has ended it;
        it is over when the queue is empty, seats or memory run out, or the first sequence has left.
        """
        if not self.running:
            self._batch_size, self._filling = 0, True
        if not self._filling or len(self.running) < self._batch_size:
            self._filling = False
            return
        super().schedule_waiting(step)
        self._batch_size = len(self.running)
        self._filling = step.budget == 0
