"""Figures, all drawn from a `Trace` and from nothing else.

The engine never imports this package. Because a trace is all a figure needs, a scheduler or a memory manager
that a reader has written is drawn by the same code as ours.

| function | what it shows |
|---|---|
| `block_grid` | the pool of blocks at some steps, request ids in the slots |
| `three_panel` | one request: logical blocks with words, block table, physical blocks |
| `slot_map` | position in the sequence against physical slot |
| `gantt` | seats and steps, memory bars below, the peak and preemptions marked |
| `memory_area` | every slot by kind, step by step: used, reserved, wasted, free |
| `request_area` | bytes of K and V each request holds, step by step |
| `throughput_waterfall` | tokens a step and a second, idea by idea |
| `trace_player` | a run to step through, in the page |

`show(fig, alt=...)` puts a figure into a notebook together with a sentence that describes it; without the
sentence it refuses. Needs matplotlib.

    >>> trace = Trace()
    >>> LLM(model, trace=trace).generate(prompts)
    >>> show(gantt({"continuous batching": trace}), alt="Three requests share 9 steps ...")
"""

from minivllm.viz.blocks import block_grid, slot_map, three_panel
from minivllm.viz.gantt import blocks_in_use, gantt
from minivllm.viz.memory import memory_area, request_area
from minivllm.viz.player import trace_player
from minivllm.viz.style import figure_html, new_figure, png_bytes, request_style, show
from minivllm.viz.throughput import throughput_waterfall, tokens_per_second, tokens_per_step
from minivllm.viz.usage import MemoryUse, memory_use, num_output_tokens, seating, wasted_share

__all__ = [
    "MemoryUse",
    "block_grid",
    "blocks_in_use",
    "figure_html",
    "gantt",
    "memory_area",
    "memory_use",
    "new_figure",
    "num_output_tokens",
    "png_bytes",
    "request_area",
    "request_style",
    "seating",
    "show",
    "slot_map",
    "three_panel",
    "throughput_waterfall",
    "tokens_per_second",
    "tokens_per_step",
    "trace_player",
    "wasted_share",
]
