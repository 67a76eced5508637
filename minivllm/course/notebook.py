"""What a notebook says besides code: a claim that is checked, a guess that is compared, source that is shown.

A notebook teaches by statements with numbers in them. Each is a call of `claim`, so a statement that has
stopped being true stops the notebook, and so does a notebook that claims nothing (`notebooks/build.py`
counts)::

    >>> claim("paging wastes less than one block per sequence", waste < block_size, measured=f"{waste} slots")
    CLAIM HOLDS: paging wastes less than one block per sequence (measured: 3 slots)

    >>> guess = None                          # the reader writes a number here, or leaves it
    >>> reveal(guess, measured=9, unit="positions")
    (no guess yet: the answer is there, folded)
    >>> reveal(7, measured=9, unit="positions")
    Measured: 9 positions. You guessed 7: it is 2 more.

Code is not pasted into a notebook. `show_source(BlockTable.slot)` displays it from the module, so what the
reader sees is what runs. Above the code stand its file and its name, and no line number: that would be wrong
as soon as a line is added further up. `notebooks/build.py` reads file and name back and compares the code
with the module's.

Claims about counts hold exactly. Claims about time are one-sided with a margin, and stand only in notebooks
marked `timed`.
"""

from __future__ import annotations

import ast
import html
import inspect
import random
import re
import textwrap
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import torch

import minivllm

CLAIM_PREFIX = "CLAIM HOLDS: "
# What `source_of` returns: file, qualified name, code.
SHOWN = re.compile(r"`(?P<path>[\w/]+\.py)`, `(?P<name>[\w.]+)`\n\n```python\n(?P<code>.*)\n```", re.DOTALL)


def claim(text: str, condition: bool, measured: object = None) -> None:
    """State something and prove it: print one line if `condition` is true, else raise AssertionError.

    Args:
        text: the statement, as a reader should remember it.
        condition: a bool; anything else is a TypeError, because "not empty" is not a proof.
        measured: the number behind the claim, as it should be printed.
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


def reveal(guess: float | None, measured: float, unit: str = "", how: str = "Measured") -> None:
    """Compare a reader's guess with what was measured, or with what was found in the way that `how` says.

    None: no guess was made yet. Then the answer is folded: it takes a click to see it, in the stored notebook
    and on the site as well.
    """
    result = f"{measured:,.4g}" if isinstance(measured, float) else f"{measured:,}"
    result = f"{result} {unit}".rstrip()
    if guess is None:
        _fold(f"{how}: {result}.")
    elif guess == measured:
        print(f"{how}: {result}. Exactly your guess.")
    else:
        side = "more" if measured > guess else "less"
        print(f"{how}: {result}. You guessed {guess:,}: it is {abs(measured - guess):,.4g} {side}.")


def _fold(text: str) -> None:
    """Display a text that opens at a click; viewers without HTML show it as it is."""
    from IPython.display import display

    how = "No guess yet: write one in place of None above and run both cells again. Or open the answer here."
    folded = f"<details><summary>{how}</summary><p><b>{html.escape(text)}</b></p></details>"
    display({"text/html": folded, "text/plain": text}, raw=True)


def source_of(item: type | FunctionType | MethodType | property, docstring: bool = True) -> str:
    """The code of a function or class as Markdown, headed by its file and its name (`SHOWN` takes it apart).

    Args:
        item: defined in a module of this project, at its top level or in a class.
        docstring: False leaves out the docstring of a function, for a cell where the text has said it.

    Raises:
        ValueError: the module's file has no function or class by that name.
    """
    target = item.fget if isinstance(item, property) else inspect.unwrap(item)
    path, name = Path(inspect.getsourcefile(target) or ""), target.__qualname__
    code = current_source(path, name)
    if code is None:
        raise ValueError(f"{path.name} has no {name} at its top level or in a class: nothing to show.")
    shown = path.relative_to(Path(minivllm.__file__).parent.parent).as_posix()
    return f"`{shown}`, `{name}`\n\n```python\n{code if docstring else without_docstring(code)}\n```"


def current_source(path: Path, name: str) -> str | None:
    """The code of a function or class, with its decorators, as it stands in the file now; None: not there.

    Read from the file, because the loaded module may be older.

    Args:
        name: qualified, such as "BlockTable.slot".
    """
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [each for each in getattr(node, "body", []) if getattr(each, "name", None) == part]
        if not found:
            return None
        node = found[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def without_docstring(code: str) -> str:
    """Cut the docstring of a function, which must be triple-quoted; code without one is returned as it is."""
    function = ast.parse(code).body[0]
    if ast.get_docstring(function) is None:
        return code
    before, _, rest = code.partition('"""')
    _, _, after = rest.partition('"""')
    return before.rstrip() + "\n" + after.lstrip("\n")


def show_source(item: type | FunctionType | MethodType | property, docstring: bool = True) -> None:
    """Display what `source_of` returns, highlighted."""
    from IPython.display import Markdown, display

    display(Markdown(source_of(item, docstring)))


def seed_all(seed: int = 0) -> None:
    """Seed every source of random numbers that a notebook uses, and keep torch to one thread.

    One thread is enough for tiny models, and it keeps the order of sums, on which floats depend.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
