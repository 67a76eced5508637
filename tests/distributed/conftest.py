"""Real worker processes, started once a module; and ranks that are threads of this process, for mutants."""

import pytest

from minivllm.config import EngineConfig
from minivllm.distributed.multiproc import MultiprocExecutor, WorkerGroup
from minivllm.engine import LLMEngine
from minivllm.weights.random_model import random_llama

OPTIONS = {"num_blocks": 64, "block_size": 4, "max_model_len": 128, "skip_tokenizer_init": True}
# Divided by 2 and by 3, with two query heads per KV head, and every bias there is.
SHAPE = {
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 8,
    "hidden_size": 48,
    "intermediate_size": 96,
    "attention_bias": True,
    "mlp_bias": True,
}


@pytest.fixture(scope="session")
def divisible(tmp_path_factory):
    """A random Llama for 2 or 3 ranks, with biases."""
    return random_llama(tmp_path_factory.mktemp("models") / "divisible", byte_tokenizer=True, **SHAPE)


@pytest.fixture(scope="session")
def divisible_tied(tmp_path_factory):
    """The same with a tied head, without biases, in two files."""
    tied = SHAPE | {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}
    return random_llama(tmp_path_factory.mktemp("models") / "tied", num_shards=2, seed=1, **tied)


@pytest.fixture(scope="module")
def groups():
    """Number of ranks -> its processes, started when first asked for and used by all tests of a module."""

    class Groups(dict):
        def __missing__(self, size):
            self[size] = WorkerGroup(size)
            return self[size]

    started = Groups()
    yield started
    for group in started.values():
        group.stop()


@pytest.fixture
def make_parallel(groups, divisible):
    """Make engines on `size` processes; when the test is over, each has all its blocks back."""
    engines = []

    def make(size, model=divisible, **options):
        config = EngineConfig(model=str(model), tensor_parallel_size=size, **OPTIONS | options)
        engine = LLMEngine(
            config, executor_cls=lambda config, sampler, _: MultiprocExecutor(config, sampler, groups[size])
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        assert not engine.has_unfinished_requests()
        engine.scheduler.kv.check_invariants()
        assert engine.scheduler.kv.pool.num_used == engine.scheduler.kv.cpu_pool.num_used == 0


@pytest.fixture(scope="module")
def make_whole(divisible):
    """Make engines with one worker in this process, on the same model."""

    def make(model=divisible, **options):
        return LLMEngine(EngineConfig(model=str(model), **OPTIONS | options))

    return make
