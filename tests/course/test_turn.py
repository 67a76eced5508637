"""`turn`: a figure that is there without a kernel, sliders where there is one, the same bytes at each build."""

import IPython
import IPython.display
import ipywidgets
import nbformat
import pytest
from IPython.display import HTML

from minivllm.course import turn as turn_module
from minivllm.course.turn import starting_values, turn
from minivllm.viz.style import new_figure
from tests.notebooks.helpers import build


def draw(block_size=4, num_blocks=8):
    """A bar for the pool; the sentence tells the values apart."""
    figure = new_figure(2, 1)
    figure.subplots().bar([0], [block_size * num_blocks])
    return (
        figure,
        f"A pool of {num_blocks} blocks of {block_size} slots holds {block_size * num_blocks} tokens.",
    )


class Handle:
    """Stands in for what `display(..., display_id=True)` returns."""

    def __init__(self):
        self.pages = []

    def update(self, page):
        self.pages.append(page.data)


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed in place of a notebook: the pages, and the handle of the first one."""
    shown, handle = [], Handle()

    def display(item, display_id=False):
        shown.append(item)
        return handle if display_id else None

    monkeypatch.setattr(IPython.display, "display", display)
    return shown, handle


def test_without_a_kernel_the_figure_stands_alone(displayed, monkeypatch):
    """Would catch a cell that is empty on the site, and a slider that nothing listens to."""
    monkeypatch.setattr(turn_module, "has_kernel", lambda: False)
    turn(draw, block_size=(1, 4, 16))
    ((page,), _) = displayed
    assert isinstance(page, HTML)
    assert 'alt="A pool of 8 blocks of 4 slots holds 32 tokens."' in page.data
    assert "Drawn with block_size = 4." in page.data and "block_size: 1, 4, 16" in page.data


def test_a_slider_replaces_the_figure_in_its_place(displayed, monkeypatch):
    """Would catch sliders that draw with the values of the start, or add a figure below the old one."""
    monkeypatch.setattr(turn_module, "has_kernel", lambda: True)
    turn(draw, block_size=(1, 4, 16), num_blocks=(8, 64))
    (page, box), handle = displayed
    assert isinstance(page, HTML) and isinstance(box, ipywidgets.VBox)
    first, second = box.children
    assert (first.description, first.value, second.description, second.value) == (
        "block_size",
        4,
        "num_blocks",
        8,
    )
    assert handle.pages == []
    first.value = 16
    second.value = 64
    assert [text.split('"')[3] for text in handle.pages] == [
        "A pool of 8 blocks of 16 slots holds 128 tokens.",
        "A pool of 64 blocks of 16 slots holds 1024 tokens.",
    ]
    assert len(displayed[0]) == 2, "nothing is displayed anew"


def test_what_cannot_be_turned_is_refused():
    """Would catch a slider that shows one value while the figure has another."""
    with pytest.raises(ValueError, match="at least one number"):
        turn(draw)
    with pytest.raises(TypeError, match="needs an argument size with a default"):
        turn(draw, size=(1, 2))
    with pytest.raises(TypeError, match="needs an argument size with a default"):
        turn(lambda size: draw(size), size=(1, 2))
    for values in ((4,), (1, 2), ()):
        with pytest.raises(ValueError, match="at least two values, its default 4 among them"):
            turn(draw, block_size=values)
    assert starting_values(draw, {"block_size": (1, 4), "num_blocks": (8, 9)}) == {
        "block_size": 4,
        "num_blocks": 8,
    }


def test_a_built_notebook_stores_the_figure_and_no_slider():
    """Would catch a stored widget, which is another file at each build and an empty box on the site."""
    code = (
        "from minivllm.course.turn import has_kernel, turn\n"
        "from minivllm.viz.style import new_figure\n"
        "print('kernel:', has_kernel())\n"
        "def draw(size=4):\n"
        "    figure = new_figure(1, 1)\n"
        "    figure.subplots().bar([0], [size])\n"
        "    return figure, f'A single bar is {size} high.'\n"
        "turn(draw, size=(1, 4))\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, id="turn")])
    notebook.metadata.minivllm = {"timed": False}
    build.execute(notebook)
    printed, figure = notebook.cells[0].outputs
    assert printed.text == "kernel: True\n"
    assert 'alt="A single bar is 4 high."' in figure.data["text/html"] and build.WIDGET not in figure.data
    assert "widget" not in nbformat.writes(notebook)
