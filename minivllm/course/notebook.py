"""What a notebook says besides code: a claim that is checked, a guess that is compared, source that is shown.

A notebook teaches by statements with numbers in them. Each is a call of `claim`, so a statement that has
stopped being true stops the notebook, and so does a notebook that claims nothing (`notebooks/build.py`
counts)::

    >>> claim("paging wastes less than one block a sequence", waste < block_size, measured=f"{waste} slots")
    CLAIM HOLDS: paging wastes less than one block a sequence (measured: 3 slots)

    >>> guess = None                          # the reader writes a number here, or leaves it
    >>> reveal(guess, measured=9, unit="positions")
    Measured: 9 positions. (Put your own guess in the line above and run it again.)

Code is never pasted into a notebook. `show_source(BlockTable.slot)` displays it from the module, so what the
reader sees is what runs.

Claims about counts hold exactly. Claims about time are one-sided with a margin, and stand only in notebooks
marked `timed`.
"""

from __future__ import annotations

import inspect
import random
import textwrap
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch

import minivllm

CLAIM_PREFIX = "CLAIM HOLDS: "


def claim(text: str, condition: bool, measured: object = None) -> None:
    """State something and prove it: print one line if `condition` is true, else raise AssertionError.

    Args:
        text: the statement, as a reader should remember it.
        condition: a bool; anything else is a TypeError, because "not empty" is no proof.
        measured: the number behind it, as it should be printed.
    """
    if not isinstance(condition, bool | np.bool_):
        raise TypeError(
            f"the condition of a claim must be a bool, got {type(condition).__name__}. "
            f"Compare the measured value with something."
        )
    tail = "" if measured is None else f" (measured: {measured})"
    if not condition:
        raise AssertionError(f"claim does not hold: {text}{tail}")
    print(f"{CLAIM_PREFIX}{text}{tail}")


def reveal(guess: float | None, measured: float, unit: str = "") -> None:
    """Compare a reader's guess with what was measured. None: no guess was made, which is no error."""
    result = f"{measured:,.4g}" if isinstance(measured, float) else f"{measured:,}"
    result = f"{result} {unit}".rstrip()
    if guess is None:
        print(f"Measured: {result}. (Put your own guess in the line above and run it again.)")
    elif guess == measured:
        print(f"Measured: {result}. Exactly your guess.")
    else:
        how = "more" if measured > guess else "less"
        print(f"Measured: {result}. You guessed {guess:,}: it is {abs(measured - guess):,.4g} {how}.")


def source_of(item: ModuleType | type | FunctionType | MethodType | property, docstring: bool = True) -> str:
    """The code of a function, class or module as Markdown, headed by the file and the line it stands in.

    Args:
        docstring: False leaves out the docstring of a function, for a cell where the text has said it.
    """
    target = item.fget if isinstance(item, property) else inspect.unwrap(item)
    lines, first = inspect.getsourcelines(target)
    root = Path(minivllm.__file__).parent.parent
    path = Path(inspect.getsourcefile(target) or "").relative_to(root).as_posix()
    code = textwrap.dedent("".join(lines)).rstrip()
    if not docstring and target.__doc__:
        code = _without_docstring(code)
    return f"`{path}`, line {max(first, 1)}\n\n```python\n{code}\n```"


def _without_docstring(code: str) -> str:
    """Cut the first string literal of a function, which must be triple-quoted."""
    before, _, rest = code.partition('"""')
    _, _, after = rest.partition('"""')
    return before.rstrip() + "\n" + after.lstrip("\n")


def show_source(
    item: ModuleType | type | FunctionType | MethodType | property, docstring: bool = True
) -> None:
    """Display what `source_of` returns, highlighted."""
    from IPython.display import Markdown, display

    display(Markdown(source_of(item, docstring)))


def seed_all(seed: int = 0) -> None:
    """Seed every source of random numbers a notebook uses, and keep torch to one thread.

    One thread, because the models are tiny, and because a sum in another order is another float.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
