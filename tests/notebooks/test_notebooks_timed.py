"""The notebooks with a clock run from top to bottom, each in a kernel of its own. Apart from the others, to share out."""

import pytest

from tests.notebooks.helpers import SOURCES, TIMED, run_and_compare


@pytest.mark.parametrize(
    "source", [pytest.param(source, id=source.stem) for source in SOURCES if source in TIMED]
)
def test_notebook_runs_from_top_to_bottom(source):
    """Would catch a statement about seconds that is no longer true, and a count on the page that is another today."""
    run_and_compare(source)
