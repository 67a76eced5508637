"""The notebooks with the toy model run from top to bottom, one after the other in one kernel.

Each is built in a kernel of its own (`notebooks/build.py`), and has to say the same here. What one kernel for all
saves is to import torch a dozen times, half of the time of these tests.
"""

import pytest
from jupyter_client import KernelManager

from tests.notebooks.helpers import NOTEBOOKS, SOURCES, TIMED, build, run_and_compare

# Before each notebook: no name is left of the one before, and no figure. `reset` takes `__spec__` as well, which
# spawned processes ask for (chapter 13); in a fresh kernel it is None.
CLEAN = """
get_ipython().run_line_magic("reset", "-f")
__spec__ = None
import gc, sys
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
gc.collect()
del gc, sys
"""


@pytest.fixture(scope="module")
def kernel():
    manager = KernelManager(kernel_name="python3")
    # The kernels of chapter 10 run in Triton's interpreter, which has to be asked for before Triton is imported.
    environment = build.kernel_environment(timed=False) | {"TRITON_INTERPRET": "1"}
    manager.start_kernel(env=environment, cwd=str(NOTEBOOKS))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    "source", [pytest.param(source, id=source.stem) for source in SOURCES if source not in TIMED]
)
def test_notebook_runs_from_top_to_bottom(source, kernel):
    """Would catch a notebook that no longer runs, and a page whose numbers the code of today no longer gives."""
    client = kernel.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    reply = client.execute_interactive(CLEAN, store_history=False, timeout=60)
    client.stop_channels()
    assert reply["content"]["status"] == "ok"
    run_and_compare(source, kernel)
