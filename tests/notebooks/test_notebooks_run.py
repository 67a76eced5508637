"""The notebooks with the toy model run from top to bottom, each in a kernel of its own. Apart from the others, to share out."""

import pytest

from tests.notebooks.helpers import SOURCES, TIMED, run_and_compare


@pytest.mark.parametrize(
    "source", [pytest.param(source, id=source.stem) for source in SOURCES if source not in TIMED]
)
def test_notebook_runs_from_top_to_bottom(source):
    """Would catch a notebook that no longer runs, and a page whose numbers the code of today no longer gives."""
    run_and_compare(source)
