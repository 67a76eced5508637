"""What paging is measured against: the same engine with one part swapped.

|                                                              | contiguous reservation | paged        |
|--------------------------------------------------------------|------------------------|--------------|
| static batching: admit only when the batch is empty          | naive batching         | paging alone |
| continuous batching                                          | Orca                   | minivllm     |

`StaticBatchScheduler` goes in as `scheduler_cls`, `orca(policy, max_model_len)` as `kv_cache_manager_cls`.
All four corners give the same text, which is tested. `no_cache` is the oracle of that text; it needs torch
and is therefore not imported here, because the memory simulation runs without torch.

Paper: section 6.1 (the baselines), design of the comparison: Figures 2, 12 and 13.
"""

from minivllm.baselines.buddy import BuddyAllocator
from minivllm.baselines.contiguous import ContiguousKVCacheManager, ReservationPolicy, orca
from minivllm.baselines.slot_usage import SlotUsage, paged_slot_usage
from minivllm.baselines.static_batch import StaticBatchScheduler

__all__ = [
    "BuddyAllocator",
    "ContiguousKVCacheManager",
    "ReservationPolicy",
    "SlotUsage",
    "StaticBatchScheduler",
    "orca",
    "paged_slot_usage",
]
