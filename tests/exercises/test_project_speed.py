"""What `project leaderboard` runs: the fixed benchmark, in the process in which a student's code is tested.

It gives no points. Its last printed line is the entry for the leaderboard.
"""

import json

import pytest


@pytest.fixture
def weights(ex, tmp_path):
    """The Llama of the benchmark; made outside of the time limit."""
    from minivllm.course.project.benchmark import SHAPE
    from minivllm.weights.random_model import random_llama

    return random_llama(tmp_path / "model", **SHAPE)


@pytest.mark.exercise(
    "speed", points=0, hint="Run project check first: the benchmark says little about wrong texts."
)
def test_the_benchmark_runs(ex, weights):
    """An engine that is fast because it does something else: the texts have to be those of minivllm."""
    from minivllm.course.project.benchmark import run_benchmark

    print(json.dumps(run_benchmark(ex.Engine, weights)))
