"""The other side of `vllm_cpu.py`: a script that runs vLLM, in vLLM's own environment.

That environment has no minivllm, so this file imports nothing of ours; the two talk through files::

    we write  request.json  {"requests": [[prompt token ids, output_len], ...], "result": "result.json"}
    we send   "request.json" on its standard input
    it writes result.json   {"seconds": 31.2, "token_ids": [[...], ...]}
    it prints "@minivllm-bench done" on its standard output, among whatever vLLM prints there

The clock is around `LLM.generate` here, so nothing of this exchange is timed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

MARK = "@minivllm-bench"


def say(word: str) -> None:
    """Print a line that cannot be taken for anything else; vLLM may have left its line unfinished."""
    print(f"\n{MARK} {word}", flush=True)


def answer(llm: Any, job: dict[str, Any]) -> None:
    """Run one workload and write its result."""
    # Not at the top: `vllm_cpu.py` imports this file for `MARK`, where there is no vllm.
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": token_ids} for token_ids, _ in job["requests"]]
    params = [
        SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        for _, output_len in job["requests"]
    ]
    # As for every backend: a run must not find the prompts of the one before.
    llm.reset_prefix_cache()
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    Path(job["result"]).write_text(json.dumps({"seconds": seconds, "token_ids": token_ids}))


def main() -> None:
    """The options of `vllm.LLM` are the one argument, as JSON; then a job a line until the input ends."""
    from vllm import LLM

    llm = LLM(**json.loads(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        answer(llm, json.loads(Path(line.strip()).read_text()))
        say("done")


if __name__ == "__main__":
    main()
