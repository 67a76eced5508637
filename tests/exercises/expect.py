"""Assertions that say what was called, what was expected and what came, in words a student can act on."""

import sys

import pytest


def expect(got, expected, what):
    """`got` has to equal `expected`; `what` is the call, as one would type it."""
    __tracebackhide__ = True
    if got != expected:
        raise AssertionError(f"{what}\n  expected  {expected!r}\n  got       {got!r}")


def expect_that(condition, what, **values):
    """`condition` has to hold; `what` says it in words, `values` are shown."""
    __tracebackhide__ = True
    if not condition:
        lines = "".join(f"\n  {name.replace('_', ' '):<9} {value!r}" for name, value in values.items())
        raise AssertionError(f"expected that {what}{lines}")


def expect_raises(kind, what, function, *arguments):
    """The call has to raise `kind`; any other error but "not written yet" is the wrong one."""
    __tracebackhide__ = True
    try:
        got = function(*arguments)
    except kind:
        return
    except NotImplementedError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{what}\n  expected  {kind.__name__}\n  got       {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what}\n  expected  {kind.__name__}\n  got       the result {got!r}")


def expect_close(got, expected, what, tolerance):
    """Two tensors have to agree in shape, and in every element up to `tolerance`."""
    import torch

    __tracebackhide__ = True
    if not isinstance(got, torch.Tensor):
        raise AssertionError(
            f"{what}\n  expected  a tensor of shape {tuple(expected.shape)}\n  got       {got!r}"
        )
    if got.shape != expected.shape:
        raise AssertionError(
            f"{what}\n  expected  shape {tuple(expected.shape)}\n  got       shape {tuple(got.shape)}"
        )
    difference = (got.double() - expected.double()).abs().nan_to_num(float("inf"))
    worst = difference.max().item() if difference.numel() else 0.0
    if not worst <= tolerance:
        index = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        pair = [each[index].item() for each in (expected, got)]
        shown = [f"{number:.6g}" for number in pair]
        if shown[0] == shown[1]:
            shown = [repr(number) for number in pair]
        raise AssertionError(
            f"{what}\n  expected  {shown[0]} at index {index}"
            f"\n  got       {shown[1]}   (the largest of all differences; {tolerance:g} is allowed)"
        )


def expect_unchanged(after, before, what):
    """Arguments that the text of the exercise says are not changed; tensors bit by bit, NaN included."""
    __tracebackhide__ = True
    for got, expected in zip(after, before, strict=True):
        if (shown := changes(got, expected)) is not None:
            raise AssertionError(
                f"{what} leaves its arguments as they were\n  before    {shown[0]}\n  after     {shown[1]}"
            )


def changes(after, before):
    """(before, after) as text, if an argument has changed; of a tensor the first number that has."""
    torch = sys.modules.get("torch")  # not imported for a list: that would take a second of the test's time
    if torch is None or not isinstance(after, torch.Tensor):
        return None if after == before else (f"{before}", f"{after}")
    if after.shape != before.shape:
        return f"shape {tuple(before.shape)}", f"shape {tuple(after.shape)}"
    places = (after.nan_to_num(7e7) != before.nan_to_num(7e7)).nonzero().tolist()
    if not places:
        return None
    index = tuple(places[0])
    where = f"at index {index} of a tensor of shape {tuple(before.shape)}"
    return (
        f"{before[index].item():.6g} {where}",
        f"{after[index].item():.6g}, and {len(places)} numbers in all",
    )


def same_text(got, expected, what):
    """Token ids of several requests have to be equal; the first difference is shown."""
    __tracebackhide__ = True
    for request, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        if ours != theirs:
            place = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            pytest.fail(f"{what}: the text of request {request} differs from output token {place} on"
                        f"\n  expected  {theirs}\n  got       {ours}", pytrace=False)  # fmt: skip
