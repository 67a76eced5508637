"""/metrics: vLLM's names, and numbers that agree with what clients are told."""

import collections

import httpx
import pytest

from minivllm.server.prometheus import _Snapshot
from tests.server.test_api import GREEDY


def read_metrics(server):
    """The value of each name, added up over its labels: of a histogram read the `_count` and the `_sum`."""
    lines = httpx.get(server.url + "/metrics", timeout=30).text.splitlines()
    values = collections.Counter()
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name.partition("{")[0]] += float(value)
    return values


def test_metrics_have_vllms_names_and_count(server):
    """Would catch a dashboard that stays empty, and counters that do not move."""
    before = read_metrics(server)
    server.client().completions.create(prompt="count me", **GREEDY)
    after = read_metrics(server)
    for name, more in (
        ("vllm:prompt_tokens_total", 8),
        ("vllm:generation_tokens_total", 8),
        ("vllm:time_to_first_token_seconds_count", 1),
        ("vllm:inter_token_latency_seconds_count", 7),
        ("vllm:e2e_request_latency_seconds_count", 1),
        ("vllm:request_queue_time_seconds_count", 1),
        ("vllm:request_prefill_time_seconds_count", 1),
        ("vllm:request_decode_time_seconds_count", 1),
        ("vllm:request_time_per_output_token_seconds_count", 1),
        ("vllm:request_prompt_tokens_sum", 8),
        ("vllm:request_generation_tokens_sum", 8),
        ("vllm:request_success_total", 1),
    ):
        assert name in before, f"{name} is not shown from the start"
        assert after[name] - before[name] == more, name
    parts = ("request_queue", "request_prefill", "request_decode")
    parts = sum(after[f"vllm:{part}_time_seconds_sum"] for part in parts)
    assert parts == pytest.approx(after["vllm:e2e_request_latency_seconds_sum"])
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0
    assert {
        "vllm:num_requests_waiting",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
    } <= after.keys()


def test_prompt_tokens_are_counted_once_and_whole(server):
    """Would catch a counter that leaves out what the prefix cache gave: vLLM counts the prompts of its users."""
    server.ask(lambda engine: engine.reset_prefix_cache())
    before = read_metrics(server)
    body = GREEDY | {"prompt": "one prompt that is asked for twice", "n": 2, "temperature": 1}
    usages = [server.client().completions.create(**body).usage for _ in range(2)]
    after = read_metrics(server)
    rise = {name: after[name] - before[name] for name in after if "prompt_tokens_total" in name}
    assert rise["vllm:prompt_tokens_total"] == sum(usage.prompt_tokens for usage in usages)
    cached = usages[1].prompt_tokens_details.cached_tokens
    assert (
        rise["minivllm:computed_prompt_tokens_total"]
        == rise["vllm:prompt_tokens_total"] - cached
        > 0
        < cached
    )


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_metrics_hold_in_a_starved_pool(start, mode):
    """Would catch a preempted prompt that is counted twice, and swapped requests that no gauge shows."""
    options = ["--num-blocks", "20", "--max-model-len", "80", "--no-enable-prefix-caching"]
    with start(*options, "--preemption-mode", mode, "--swap-space-bytes", "1000000") as server:
        lost = []

        class Watch:
            def record(self, plan, updated, scheduler, now):
                """After each step: is a request that is neither running nor done in the gauge?"""
                families = {each.name: each for each in _Snapshot(engine.stats(), "tiny").collect()}
                shown = sum(
                    families[f"vllm:num_requests_{kind}"].samples[0].value for kind in ("running", "waiting")
                )
                lost.append(len(scheduler.groups) - shown)

        engine = server.engine.engine
        engine.trace.observers += (Watch(),)
        prompts = [f"starved {number}" for number in range(6)]
        answer = server.client().completions.create(prompt=prompts, **GREEDY | {"max_tokens": 40})
        metrics = read_metrics(server)
        assert metrics["vllm:num_preemptions_total"] > 0
        assert metrics["vllm:prompt_tokens_total"] == answer.usage.prompt_tokens
        assert lost and not any(lost)
