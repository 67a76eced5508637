"""Figures, all drawn from a `Trace` and from nothing else.

The engine does not import this package. Because a trace is all that a figure needs, a scheduler or a memory
manager that a reader has written is drawn by the same code as ours.

| function | what it shows |
|---|---|
| `block_grid` | the pool of blocks at some steps, request ids in the slots |
| `three_panel` | one request: logical blocks with words, block table, physical blocks |
| `slot_map` | every slot of the pool, and the position of the token in it |
| `gantt` | seats and steps, memory bars below, the peak and preemptions marked |
| `memory_area` | every slot by kind, step by step: used, reserved, wasted, free |
| `request_area` | bytes of K and V each request holds, step by step |
| `throughput_waterfall` | tokens per step and per second, idea by idea |
| `rate_bars`, `rate_square`, `rate_curves` | measured rates with all of their rounds |
| `roofline_figure` | what the machine can do at most, and the parts of a step below it |
| `trace_player` | a run as a moving picture: tables, pool, copies, hits |

`trace.py` records a run, `drawing.py` draws block tables as text, `demo.py` is `make demo`; these three need
no matplotlib, so the names above are imported on first use.

`show(fig, alt=...)` puts a figure into a notebook together with a sentence that describes it; without the
sentence it refuses. Needs matplotlib.

    >>> trace = Trace()
    >>> LLM(model, trace=trace).generate(prompts)
    >>> show(gantt({"continuous batching": trace}), alt="Three requests share 9 steps ...")
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it.
_HOME = {
    "MemoryUse": "usage",
    "Trace": "trace",
    "block_grid": "blocks",
    "blocks_in_use": "gantt_chart",
    "figure_html": "style",
    "gantt": "gantt_chart",
    "memory_area": "memory",
    "memory_use": "usage",
    "new_figure": "style",
    "num_output_tokens": "usage",
    "png_bytes": "style",
    "rate_bars": "rates",
    "rate_curves": "rates",
    "rate_square": "rates",
    "request_area": "memory",
    "request_style": "style",
    "roofline_figure": "roofline",
    "seating": "usage",
    "show": "style",
    "slot_map": "blocks",
    "three_panel": "table_panels",
    "throughput_waterfall": "throughput",
    "tokens_per_second": "throughput",
    "tokens_per_step": "throughput",
    "trace_player": "player",
    "wasted_share": "usage",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'minivllm.viz' has no attribute {name!r}. It has: {', '.join(__all__)}."
        )
    return getattr(importlib.import_module(f"minivllm.viz.{_HOME[name]}"), name)
