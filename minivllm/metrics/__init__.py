"""What is measured: the memory before the first request, and what the engine has done since.

| file | question |
|---|---|
| `memory.py` | how many KV blocks fit, and what takes the rest of the memory? |
| `counters.py` | what has the scheduler done so far? |
| `stats.py` | how full is the KV cache, what has been computed, how long did requests take? |
| `log.py` | the same as one line every ten seconds |

The engine asks these modules and hands their answers on (`LLMEngine.memory`, `LLMEngine.stats`). No step
depends on them.

vLLM V1: `vllm/v1/metrics/`.
"""
