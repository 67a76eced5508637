"""minivllm: the system of the vLLM paper, small enough to read in an afternoon.

The public names are imported on first use: `import minivllm.block_pool` and the rest of the pure Python
wing then load in milliseconds, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivllm.config import EngineConfig
    from minivllm.engine import LLMEngine
    from minivllm.llm import LLM
    from minivllm.outputs import CompletionOutput, Logprob, RequestOutput
    from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "LLMEngine",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]

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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm' has no attribute {name!r}. It has: {', '.join(__all__)}.")
    import importlib

    return getattr(importlib.import_module(f"minivllm.{_HOME[name]}"), name)
