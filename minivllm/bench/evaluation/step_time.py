"""How long a step takes: a roofline model, from a plan to seconds.

A step reads all weights once, multiplies them by T rows, reads the K and V of every token that is looked back
on, and makes a few thousand calls. Each of these has a time that follows from a data sheet::

    weights     bytes of all weights / bandwidth                  the same for 1 row and for 100
    products    2 x weights x rows / arithmetic rate              128 rows or so take as long as the weights
    attention   bytes of K and V / bandwidth, and its arithmetic  grows with every token in the batch; a block
                that several sequences share is read once (a layer's share of it stays in the chip's cache)
    all-reduce  two per layer, if the weights lie on several chips
    host        a fixed time, and one for each sequence           Python, sampling, launching kernels
    swapping    copies between GPU and CPU memory, one per block, layer and of K and V

    OPT-13B on an A100, 32 sequences of 465 tokens, host left out (ms):
    |======== weights 20.1 (products 4.5, hidden behind) ========|=== attention 12.1 ===|   32.2

A GPU fetches the next weights while it multiplies by the last: the longer of weights and products counts. On
a CPU the core that multiplies is the one that waits for memory: there the two add up.

The same numbers can be *fitted* to a machine at hand, which is how the model is tested (`validate.py`). The
idea is Williams, Waterman and Patterson's roofline (2009). Paper: no counterpart. vLLM V1: none either.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.scheduler_output import SchedulerOutput


@dataclass(frozen=True)
class Shape:
    """What a step costs depends on these numbers of a model. Parameters without the token embedding."""

    name: str
    num_layers: int
    hidden_size: int  # of all query heads
    kv_size: int  # of all KV heads: hidden_size, unless heads are grouped
    layer_parameters: float  # in all layers
    head_parameters: float  # vocabulary x hidden size: multiplied only for rows that are sampled from
    element_bytes: int = 2

    @property
    def weight_bytes(self) -> float:
        """Bytes that a step reads."""
        return (self.layer_parameters + self.head_parameters) * self.element_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V of one token in all layers. OPT-13B: 2 x 40 x 5120 x 2 = 800 KiB."""
        return 2 * self.num_layers * self.kv_size * self.element_bytes


@dataclass(frozen=True)
class Chip:
    """Rates that are reached, in bytes and operations per second, which is less than the data sheet says.

    Attributes:
        overlaps: whether reading weights and multiplying happen at the same time.
        copy_seconds: of one transfer between CPU and GPU memory, however small.
        host_bandwidth: of these transfers, bytes per second.
    """

    name: str
    weight_bandwidth: float
    kv_bandwidth: float
    flops: float
    attention_flops: float
    overlaps: bool
    copy_seconds: float = 0.0
    host_bandwidth: float = float("inf")


@dataclass(frozen=True)
class Work:
    """What a plan asks for, as numbers that do not depend on the machine."""

    rows: int  # tokens computed
    samples: int  # rows whose logits are needed
    kv_tokens: float  # tokens whose K and V are read
    pairs: float  # (query, key) pairs
    swapped_blocks: int = 0


def work_of(plan: SchedulerOutput, extra_per_block: float = 0.0, shared_tokens: int = 0) -> Work:
    """Count what a plan asks for.

    A decode row at position 99 reads 100 tokens and has 100 pairs; a prompt of 100 tokens also reads 100
    and has 1 + 2 + ... + 100 = 5,050 pairs.

    Args:
        plan: any plan.
        extra_per_block: what looking up a block costs a paged kernel, in tokens that it could have read.
        shared_tokens: slots which the tables name more than once, counted each time but the first.
    """
    rows = [(row.start, row.num_tokens, len(row.block_ids)) for row in plan.scheduled]
    return Work(
        rows=sum(count for _, count, _ in rows),
        samples=sum(row.num_samples > 0 for row in plan.scheduled),
        kv_tokens=sum(start + count + extra_per_block * blocks for start, count, blocks in rows)
        - shared_tokens,
        pairs=sum(count * start + count * (count + 1) / 2 for start, count, _ in rows),
        swapped_blocks=len(plan.blocks_to_swap_in) + len(plan.blocks_to_swap_out),
    )


@dataclass(frozen=True)
class StepModel:
    """A model on `num_chips` chips.

    Attributes:
        fixed_seconds, sequence_seconds: of the host, per step and per row that is sampled from.
        all_reduce_seconds, link_bandwidth: of one all-reduce, however small, and bytes per second beyond.
        extra_per_block: see `work_of`; 0 for contiguous memory.
    """

    shape: Shape
    chip: Chip
    num_chips: int = 1
    fixed_seconds: float = 0.0
    sequence_seconds: float = 0.0
    all_reduce_seconds: float = 0.0
    link_bandwidth: float = float("inf")
    extra_per_block: float = 0.0

    def parts(self, work: Work, block_size: int = 16) -> dict[str, float]:
        """Seconds by kind. What a GPU hides behind reading weights is not in "products"."""
        shape, chip, chips = self.shape, self.chip, self.num_chips
        weights = shape.weight_bytes / chip.weight_bandwidth / chips
        multiplied = shape.layer_parameters * work.rows + shape.head_parameters * work.samples
        products = 2 * multiplied / chip.flops / chips
        attention = shape.kv_bytes * work.kv_tokens / chip.kv_bandwidth / chips
        # 2 operations for query x key, 2 for weight x value, for each of `hidden_size` numbers.
        attention += 4 * shape.num_layers * shape.hidden_size * work.pairs / chip.attention_flops / chips
        swapping = work.swapped_blocks * self.swap_seconds(block_size)
        return {
            "weights": weights,
            "products": max(products - weights, 0.0) if chip.overlaps else products,
            "attention": attention,
            "all-reduce": self._all_reduce(work.rows),
            "host": self.fixed_seconds + self.sequence_seconds * work.samples,
            "swapping": swapping,
        }

    def seconds(self, plan: SchedulerOutput, block_size: int = 16, num_shared_blocks: int = 0) -> float:
        """Of one step; a plan without rows still takes the time of its copies."""
        work = work_of(plan, self.extra_per_block, num_shared_blocks * block_size)
        if work.rows == 0:
            return work.swapped_blocks * self.swap_seconds(block_size)
        return sum(self.parts(work, block_size).values())

    def swap_seconds(self, block_size: int) -> float:
        """To move one block: for each layer a copy of its keys and one of its values."""
        num_copies = 2 * self.shape.num_layers
        num_bytes = self.shape.kv_bytes * block_size
        return num_copies * self.chip.copy_seconds + num_bytes / self.chip.host_bandwidth

    def _all_reduce(self, rows: int) -> float:
        """Two per layer, after attention and after the MLP; a ring sends each number almost twice."""
        if self.num_chips == 1:
            return 0.0
        sent = 2 * (self.num_chips - 1) / self.num_chips
        num_bytes = sent * rows * self.shape.hidden_size * self.shape.element_bytes
        return 2 * self.shape.num_layers * (self.all_reduce_seconds + num_bytes / self.link_bandwidth)
