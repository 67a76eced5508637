"""The other side of `peers.py`: a script that runs vLLM or OpenVINO GenAI, in that engine's environment.

That environment has no minivllm, so this file imports nothing of ours. It is started with the engine's name
and its options as JSON, and then reads a line for each workload::

    stdin    [[[prompt token ids], output_len], ...]
    stdout   @minivllm-bench {"seconds": 31.2, "token_ids": [[...], ...]}      among the engine's own lines

The clock is around the engine's `generate`, so nothing of this exchange is timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

MARK = "@minivllm-bench "
Requests = list[tuple[list[int], int]]  # (prompt token ids, output tokens)
Generate = Callable[[Requests], tuple[float, list[list[int]]]]  # -> seconds, output token ids


def vllm(options: dict[str, Any]) -> Generate:
    """Start vLLM; `options` are keyword arguments of `vllm.LLM`."""
    from vllm import LLM, SamplingParams

    llm = LLM(**options)

    def generate(requests: Requests) -> tuple[float, list[list[int]]]:
        prompts = [{"prompt_token_ids": token_ids} for token_ids, _ in requests]
        params = [
            SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
            for _, output_len in requests
        ]
        # As for every backend: a run must not find the prompts of the one before.
        llm.reset_prefix_cache()
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start, [list(output.outputs[0].token_ids) for output in outputs]

    return generate


def openvino(options: dict[str, Any]) -> Generate:
    """Start OpenVINO GenAI; `options` are the exported model, scheduler settings and device properties."""
    import numpy as np
    from openvino import Tensor
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    scheduler = SchedulerConfig()
    for name, value in options["scheduler"].items():
        setattr(scheduler, name, value)
    pipeline = ContinuousBatchingPipeline(options["model"], scheduler, "CPU", options["properties"])

    def config(output_len: int) -> GenerationConfig:
        settings = GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = output_len
        settings.ignore_eos, settings.do_sample = True, False
        return settings

    def generate(requests: Requests) -> tuple[float, list[list[int]]]:
        prompts = [Tensor(np.array([token_ids], dtype=np.int64)) for token_ids, _ in requests]
        configs = [config(output_len) for _, output_len in requests]
        start = time.perf_counter()
        results = pipeline.generate(prompts, configs)
        return time.perf_counter() - start, [list(result.m_generation_ids[0]) for result in results]

    return generate


def say(answer: dict[str, Any]) -> None:
    """Print a line that cannot be taken for another; the engine may have left its own line unfinished."""
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def main() -> None:
    """Start the engine, then answer a workload per line until the input ends."""
    generate = {"vllm": vllm, "openvino": openvino}[sys.argv[1]](json.loads(sys.argv[2]))
    say({"ready": True})
    for line in sys.stdin:
        seconds, token_ids = generate(json.loads(line))
        say({"seconds": seconds, "token_ids": token_ids})


if __name__ == "__main__":
    main()
