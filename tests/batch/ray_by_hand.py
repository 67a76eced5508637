"""Two replicas on Ray, one of them killed in the middle. Run by hand, because Ray is 300 MB that `make test` spares:

    pip install -e '.[ray,server]' && python -m tests.batch.ray_by_hand

1. `run-batch`: every line is answered exactly once, with the text that one process gives.
2. `serve`: a conversation goes to one replica, whose prefix cache is hit; another session may go elsewhere.
"""

import asyncio
import io
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from minivllm.batch.ray_replicas import replicas_on_ray, start_ray
from minivllm.batch.replica import Replica
from minivllm.batch.run_batch import read_lines, run_batch
from minivllm.cli import make_parser
from minivllm.weights.random_model import random_llama

OPTIONS = {"num_blocks": 64, "block_size": 4, "max_model_len": 200}
NUM_LINES, KILL_AFTER = 40, 8


def lines_of_a_batch(model):
    """Greedy requests of 40 tokens, and one that is wrong."""
    for number in range(NUM_LINES):
        body = {
            "model": model,
            "prompt": f"line {number}",
            "max_tokens": 40,
            "temperature": 0,
            "ignore_eos": True,
        }
        body |= {"top_p": 7.0} if number == 5 else {}
        yield json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body})


def texts(output):
    """custom_id -> text or error; an id that comes twice is an AssertionError."""
    found = {}
    for line in output.getvalue().splitlines():
        result = json.loads(line)
        assert result["custom_id"] not in found
        failed = result["error"] and result["error"]["message"]
        found[result["custom_id"]] = failed or result["response"]["body"]["choices"][0]["text"]
    return found


def check_batch(model):
    """Part 1."""
    whole = io.StringIO()
    asyncio.run(
        run_batch(read_lines(lines_of_a_batch(model), set()), Replica(model, OPTIONS).answer, whole, 8)
    )
    before = []

    def kill_one(progress):
        if progress.num_answered == KILL_AFTER:
            before.extend(replica_pids())
            os.kill(before[0], signal.SIGKILL)

    async def on_ray():
        answer = replicas_on_ray(model, OPTIONS, num_replicas=2, seats=4)
        await run_batch(read_lines(lines_of_a_batch(model), set()), answer, output, 8, kill_one)

    output = io.StringIO()
    asyncio.run(on_ray())
    assert texts(output) == texts(whole)
    assert len(texts(output)) == NUM_LINES and "top_p" in texts(output)["5"]
    after = replica_pids()
    assert len(before) == len(after) == 2 and before[1] in after and before[0] not in after
    print(
        f"run-batch: {NUM_LINES} lines answered once each; replicas {before}, {before[0]} killed, then {after}"
    )


def replica_pids():
    """Processes of the replicas: Ray names them after the class."""
    processes = psutil.Process().children(recursive=True)
    return sorted(process.pid for process in processes if "ray::Replica" in " ".join(process.cmdline()))


def check_serve(model):
    """Part 2."""
    from ray import serve

    from minivllm.batch.ray_serve import SESSION_HEADER, deployment

    flags = ["--num-blocks", "64", "--block-size", "4", "--max-model-len", "200", "--num-replicas", "2"]
    args = make_parser().parse_args(["serve", model, *flags])
    args.model = model
    serve.start(http_options={"host": "127.0.0.1", "port": 18_765})
    serve.run(deployment(args), name="minivllm")

    def cached(session, prompt):
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0}
        url, headers = "http://127.0.0.1:18765/v1/completions", {SESSION_HEADER: session}
        usage = httpx.post(url, json=body, headers=headers, timeout=60).raise_for_status().json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    hits = {}
    for session in map(str, range(8)):
        prompt = f"conversation {session}: a prompt that is long enough for several blocks"
        assert cached(session, prompt) < 40  # what it shares with other sessions at most
        hits[session] = [cached(session, prompt) for _ in range(4)]
        assert min(hits[session]) > 40, hits
    # Negative control: the same prompt under other sessions reaches the other replica, which does not know it.
    fresh = [cached(f"other {number}", "conversation 0: a prompt that is long enough for several blocks")
             for number in range(8)]  # fmt: skip
    assert min(fresh) < 40, fresh
    print(f"serve: cached prompt tokens by session {hits}; under new sessions {fresh}")
    serve.shutdown()


if __name__ == "__main__":
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        name = str(random_llama(Path(folder) / "model", byte_tokenizer=True))
        start_ray(None)
        check_batch(name)
        check_serve(name)
    print(f"{time.monotonic() - start:.0f} s")
