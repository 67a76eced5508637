"""vLLM's load generator as a client: what it is given, and what is made of its report."""

import pytest

from minivllm.bench import load_generator
from minivllm.bench.workloads import BenchRequest

REQUESTS = [BenchRequest((1, 2, 3), 3, arrival_time=0.5), BenchRequest((4, 5), 2, arrival_time=2.0)]
REPORT = {
    "duration": 4.0,
    "errors": ["", ""],
    "output_lens": [3, 2],
    "start_times": [1000.5, 1002.25],
    "ttfts": [0.25, 0.5],
    "itls": [[0.125, 0.25], []],  # the second request's two tokens came in one chunk
}


def test_the_trace_has_the_lengths_and_arrivals_of_the_requests():
    """Would catch prompts that share their tokens, and a client that is given other traffic than ours."""
    first, second = load_generator.to_trace(REQUESTS)
    assert first == {"timestamp": 0.5, "input_length": 3, "output_length": 3, "hash_ids": [0]}
    assert second == {"timestamp": 2.0, "input_length": 2, "output_length": 2, "hash_ids": [1]}


def test_the_report_says_when_each_token_came():
    """Would catch times from another zero, gaps that are not added up, and a token lost in a merged chunk."""
    (first, second), seconds = load_generator.from_report(REQUESTS, REPORT)
    assert seconds == 4.0
    assert (first.arrival, first.tokens) == (0.5, (0.75, 0.875, 1.125))
    assert (second.arrival, second.tokens) == (2.25, (2.75, 2.75))  # sent a quarter of a second late
    assert [first.num_prompt_tokens, second.num_prompt_tokens] == [3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": ["", "Connection refused"]}, "Connection refused"),
        ({"output_lens": [3, 0]}, r"\[3, 0\] tokens"),
    ],
)
def test_a_request_that_failed_fails_the_benchmark(change, message):
    """Negative control: would catch a rate that is computed from answers which never came."""
    with pytest.raises(RuntimeError, match=message):
        load_generator.from_report(REQUESTS, REPORT | change)


def test_without_vllm_the_command_that_installs_it_is_named(tmp_path):
    """Would catch a traceback about a missing python where one command is missing."""
    with pytest.raises(ValueError, match="bench vllm --install-only"):
        load_generator.send_all("http://127.0.0.1:1", "bench", tmp_path, tmp_path / "none", REQUESTS)
