"""`turn`: a figure with a slider for each of its numbers, and still a figure where nothing can be turned.

A chapter draws with a function of the numbers that beg to be turned, and names the values of each::

    def waste(block_size=16):
        trace = run(block_size)
        return memory_area({f"blocks of {block_size}": trace}), f"With blocks of {block_size} ..."

    turn(waste, block_size=(1, 4, 16, 64))

    [ figure for block_size = 16, the default of `waste`, and its sentence ]
    block_size  --------o----  16                        only in a running notebook

The figure is an ordinary output of the cell, so it is stored, and shown by GitHub and on the site. Moving a
slider calls the function again and replaces that output. The sliders come from ipywidgets and live as long as
the kernel does; `notebooks/build.py` does not store them, and so the stored file is the same at each build.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from minivllm.viz.style import figure_html

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

Draw = Callable[..., tuple[Figure, str]]
"""The values as keyword arguments -> a figure, and a sentence that says what it shows, with its numbers."""


def turn(draw: Draw, **choices: Sequence[Any]) -> None:
    """Display the figure of `draw` at its defaults; in a running notebook, with a slider for each choice.

    Args:
        draw: called with all names of `choices`, at first with its own defaults.
        choices: name of an argument of `draw` -> the values that it may have, two or more, in order.

    Raises:
        TypeError: `draw` has no such argument, or no default for it.
        ValueError: there is nothing to choose, or the default is not among the values.
    """
    start = starting_values(draw, choices)
    handle = _display(_page(draw, start, choices))
    if handle is not None and has_kernel():
        _show_sliders(draw, start, choices, handle)


def starting_values(draw: Draw, choices: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """The defaults of `draw` for the names in `choices`; see `turn` for the errors."""
    if not choices:
        raise ValueError("turn needs at least one number to turn, as in turn(draw, block_size=(4, 16)).")
    parameters = inspect.signature(draw).parameters
    start = {}
    for name, values in choices.items():
        if name not in parameters or parameters[name].default is inspect.Parameter.empty:
            raise TypeError(f"the function to draw needs an argument {name} with a default, to start from.")
        start[name] = parameters[name].default
        if len(values) < 2 or start[name] not in values:
            raise ValueError(
                f"{name} needs at least two values, its default {start[name]!r} among them; got {values}."
            )
    return start


def has_kernel() -> bool:
    """Whether a kernel runs this code, which can hear of a slider that was moved, and ipywidgets is there."""
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _page(draw: Draw, values: dict[str, Any], choices: dict[str, Sequence[Any]]) -> str:
    """The figure for these values as HTML; its caption names them, and what else may be chosen."""
    figure, sentence = draw(**values)
    now = ", ".join(f"{name} = {value}" for name, value in values.items())
    others = "; ".join(f"{name}: {', '.join(map(str, each))}" for name, each in choices.items())
    return figure_html(
        figure, sentence, f"{sentence} Drawn with {now}. Sliders in a running notebook: {others}."
    )


def _display(page: str) -> DisplayHandle | None:
    """Show HTML as an output of the cell; -> the handle with which it can be replaced."""
    from IPython.display import HTML, display

    return display(HTML(page), display_id=True)


def _show_sliders(
    draw: Draw, start: dict[str, Any], choices: dict[str, Sequence[Any]], handle: DisplayHandle
) -> None:
    """A slider for each choice; whichever is moved, the figure is drawn again from all of them."""
    from IPython.display import HTML, display
    from ipywidgets import SelectionSlider, VBox

    sliders = {
        name: SelectionSlider(options=list(values), value=start[name], description=name,
                              continuous_update=False, style={"description_width": "7em"},
                              layout={"width": "30em"})
        for name, values in choices.items()
    }  # fmt: skip

    def redraw(_: object) -> None:
        values = {name: slider.value for name, slider in sliders.items()}
        handle.update(HTML(_page(draw, values, choices)))

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    display(VBox(list(sliders.values())))
