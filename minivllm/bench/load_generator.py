"""vLLM's load generator as the client of `bench http`: the same traffic, on a stopwatch that is not ours.

    $ python -m minivllm bench http --client vllm --backend minivllm vllm --request-rate 1 4 inf

`vllm bench serve` replays *timed traces*: per request a time, the number of prompt tokens, the number of
output tokens, and numbers from which it makes the prompt's tokens. So our requests become such a trace, with
the arrival times and lengths of `bench http` and with other words::

    {"timestamp": 0.31, "input_length": 17, "output_length": 9, "hash_ids": [0]}     request 0
    {"timestamp": 0.92, "input_length": 88, "output_length": 40, "hash_ids": [1]}    request 1

and its report becomes our `Served` again: when each request was sent, and when each of its tokens came. A
chunk is one token to this client, whatever the chunk holds; if a server merged tokens, the missing times are
taken to be those of the last chunk.

It runs in vLLM's environment (`make bench-vllm`) and is started anew for each round, so it never computes
beside a server that is measured, except for what a client costs. vLLM V1: `vllm/benchmarks/serve.py`,
`TimedTrace` in `vllm/benchmarks/datasets`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

from minivllm.bench.peers import clean_environment
from minivllm.bench.serve import Served
from minivllm.bench.servers import vllm_python
from minivllm.bench.workloads import BenchRequest

# The module and not the command `vllm`, as in `servers.vllm_command`.
PROGRAM = """
import argparse
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
WHOLE_PROMPT = 10**6  # tokens that one hash stands for: more than any prompt has


def send_all(
    url: str, name: str, tokenizer: Path, env: Path, requests: list[BenchRequest]
) -> tuple[list[Served], float]:
    """Send the requests as they arrive; -> when each got its tokens, and the seconds in all.

    Args:
        name: of the model, in requests.
        tokenizer: folder of the model; the client makes prompts from its vocabulary.
        env: vLLM's environment.

    Raises:
        ValueError: there is no vLLM in `env`. RuntimeError: the client failed, or a request did.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace, report = Path(folder, "trace.jsonl"), Path(folder, "report.json")
        trace.write_text("\n".join(json.dumps(entry) for entry in to_trace(requests)))
        command = [vllm_python(env), "-c", PROGRAM, "--backend", "openai"]
        command += ["--base-url", url, "--served-model-name", name, "--model", str(tokenizer.absolute())]
        command += ["--dataset-name", "timed_trace", "--dataset-path", str(trace)]
        command += ["--timed-trace-chunk-hash-size", str(WHOLE_PROMPT), "--num-prompts", str(len(requests))]
        command += ["--temperature", "0", "--disable-tqdm", "--save-result", "--save-detailed"]
        command += ["--result-dir", folder, "--result-filename", report.name]
        # The client draws words by Python's hash of a text, which is another one in each process otherwise.
        variables = clean_environment() | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"vLLM's load generator failed:\n{done.stderr[-3000:]}")
        return from_report(requests, json.loads(report.read_text()))


def to_trace(requests: list[BenchRequest]) -> list[dict[str, Any]]:
    """One entry per request, in the order of arrival."""
    return [
        {
            "timestamp": request.arrival_time,
            "input_length": len(request.prompt_token_ids),
            "output_length": request.output_len,
            "hash_ids": [number],
        }
        for number, request in enumerate(requests)
    ]


def from_report(requests: list[BenchRequest], report: dict[str, Any]) -> tuple[list[Served], float]:
    """What vLLM's client measured, as ours would say it. RuntimeError: a request failed or came out short."""
    if any(report["errors"]):
        raise RuntimeError(f"a request failed: {next(filter(None, report['errors']))}")
    asked = [request.output_len for request in requests]
    if report["output_lens"] != asked:
        raise RuntimeError(f"the servers made {report['output_lens']} tokens, asked for were {asked}.")
    zero = report["start_times"][0] - requests[0].arrival_time
    served = []
    for request, sent, ttft, gaps in zip(
        requests, report["start_times"], report["ttfts"], report["itls"], strict=True
    ):
        times = list(accumulate(gaps, initial=sent - zero + ttft))
        times += times[-1:] * (request.output_len - len(times))
        served.append(Served(sent - zero, len(request.prompt_token_ids), tuple(times)))
    return served, report["duration"]
