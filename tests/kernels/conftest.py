"""What the kernel tests share: the device, and the GPU-only tests left out where there is no GPU.

Every test runs on the device there is: compiled on a GPU, in Triton's interpreter elsewhere. Tests marked
`gpu` claim something that has no meaning in the interpreter (graph capture, a cache of several gigabytes on
the device); without CUDA they are deselected, and the summary counts them as such.
"""

from pathlib import Path

import pytest
import torch

import minivllm.kernels.common  # noqa: F401  (chooses the interpreter, before anything here imports triton)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--num-stages 1`: every kernel is compiled without pipelining, whatever its tiles ask for."""
    parser.addoption("--num-stages", type=int, help="of every compiled kernel, instead of its tiles'")


def pytest_configure(config: pytest.Config) -> None:
    """Put `--num-stages` into each launch. A control for Triton's pipeliner, which has had bugs of its own."""
    if (num_stages := config.getoption("num_stages", None)) is None:
        return
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run

    def launch_with(self: object, *args: object, **options: object) -> object:
        return launch(self, *args, **options | {"num_stages": num_stages})

    JITFunction.run = launch_with


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect this folder's `gpu` tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    dropped = [item for item in items if here in item.path.parents and item.get_closest_marker("gpu")]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture
def device() -> torch.device:
    """The GPU if there is one, else the CPU with Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
