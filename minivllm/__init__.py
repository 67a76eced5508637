"""minivllm: the system of the vLLM paper, small enough to read in an afternoon.

The public names are imported on first use: `import minivllm.block_pool` and the rest of the pure Python
wing then load in milliseconds, without torch::

    import minivllm.scheduler            this file and pure Python: no torch
    from minivllm import SamplingParams  `__getattr__` below imports sampling_params.py: no torch
    from minivllm import LLM             imports llm.py, and with it torch: seconds

The names are vLLM's: with `vllm` replaced by `minivllm` in its import, and another model's name, vLLM's first
example runs as it is.

One setting has to be made before torch is loaded. Where an operator runs on several threads, a thread which
is done waits for the rest, and then for the next operator: first in a loop, then asleep. Waking it takes as
long as a small product. But if another program, say a browser, is busy too, the loop takes the core from the
very thread which is waited for. With ten thousand turns of that loop (libgomp's default: 300,000) a step is
as fast as with any more on a quiet machine; on a busy one it takes twice as long as with a thousand, and with
a hundred thousand eight times. A decode step of 8 sequences, SmolLM2-135M, two cores, in ms::

    GOMP_SPINCOUNT                           1,000   10,000   30,000   100,000
    AMD EPYC (Zen 3), an earlier version
        quiet                                77      50       56       49
        beside a program which keeps         86      168      307      699
        a core busy
    AMD EPYC (Zen 5), all layers in one call (`backends/compiled_steps.py`)
        quiet                                17      17       17       17
        beside such a program                34      87       149      269

A value of GOMP_SPINCOUNT which is in the environment already stays as it is.

vLLM V1: `vllm/__init__.py`, which imports its names on first use as well.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Not executed: editors and type checkers learn from it what `__getattr__` will return.
if TYPE_CHECKING:
    from minivllm.config import EngineConfig
    from minivllm.engine import LLMEngine
    from minivllm.llm import LLM
    from minivllm.outputs import CompletionOutput, Logprob, RequestOutput
    from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOME = {
    "LLM": "llm",
    "LLMEngine": "engine",
    "EngineConfig": "config",
    "SamplingParams": "sampling_params",
    "BeamSearchParams": "sampling_params",
    "RequestOutputKind": "sampling_params",
    "RequestOutput": "outputs",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562).

    Python calls this for each name that the module itself lacks. Only the first call for a name has to load
    anything: after that `importlib` finds the module in `sys.modules`.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm' has no attribute {name!r}. It has: {', '.join(__all__)}.")
    # Imported here like everything else: importing one module of minivllm should load that module alone.
    import importlib

    return getattr(importlib.import_module(f"minivllm.{_HOME[name]}"), name)
