"""What the tests of the final project share: an engine on a model of glass, and what its calls tell.

The tests know `Engine` and `generate` and nothing else of the engine. Whose row is whose they read from the text: in
each test no two prompts begin with the same token, unless the test is about prompts that do.
"""

from minivllm.course.project import GlassModel, Limits, ModelMisuse
from minivllm.course.project.glass import next_token
from tests.exercises.expect import expect, expect_that, same_text

# Roomy: with these, memory and budget are no concern, whichever milestone the engine has reached.
SEATS, LONGEST = 4, 64


def greedy_text(prompt, count):
    """The oracle: `count` tokens after `prompt`, each the model's likeliest."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Bench:
    """An engine under test on its model."""

    def __init__(self, ex, num_slots=SEATS * LONGEST, **limits):
        self.limits = Limits(**({"max_model_len": LONGEST, "max_num_seqs": SEATS} | limits))
        self.model = GlassModel(num_slots)
        self.engine = ex.Engine(self.model, self.limits)

    def run(self, prompts, max_tokens):
        """Generate, check the text, and return the calls of this run: a list of tuples of `Seen`."""
        __tracebackhide__ = True
        before = len(self.model.calls)
        what = f"generate({few(prompts)}, {few(max_tokens)})"
        try:
            got = self.engine.generate([list(prompt) for prompt in prompts], list(max_tokens))
        except ModelMisuse as error:
            raise AssertionError(f"{what}\n  call {len(self.model.calls) - before}: {error}") from None
        expect(type(got), list, f"the type of {what}")
        expect([len(each) for each in got], list(max_tokens), f"how many tokens come from {what}")
        expected = [greedy_text(prompt, count) for prompt, count in zip(prompts, max_tokens, strict=True)]
        same_text([list(each) for each in got], expected, what)
        return self.model.calls[before:]


def few(values):
    """A list, shortened for a message."""
    text = str(values)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def rows_of(calls, prompt):
    """(number of the call, row) of one request: the rows whose text begins like `prompt`."""
    start = bytes(prompt)
    return [
        (number, seen)
        for number, call in enumerate(calls)
        for seen in call
        if seen.text.startswith(start) or start.startswith(seen.text)
    ]


def started(calls, prompts):
    """For each prompt, the number of the first call with a row of it."""
    return [rows_of(calls, prompt)[0][0] for prompt in prompts]


def num_computed(calls):
    """Positions computed in all calls."""
    return sum(seen.num_new for call in calls for seen in call)


def widest(calls):
    """Rows of the call with the most."""
    return max(len(call) for call in calls)


def expect_once(calls, prompts, max_tokens):
    """Every position that is needed is computed once: all but the last token of each request."""
    __tracebackhide__ = True
    for prompt, count in zip(prompts, max_tokens, strict=True):
        computed = sum(seen.num_new for _, seen in rows_of(calls, prompt))
        expect(computed, len(prompt) + count - 1, f"positions computed for a prompt of {len(prompt)} tokens and {count} more")  # fmt: skip


def expect_blocks(calls, block_size):
    """The slots of each block of a sequence lie side by side, from a multiple of the block size on."""
    __tracebackhide__ = True
    for number, call in enumerate(calls):
        for seen in call:
            for position, slot in enumerate(seen.slots):
                first = seen.slots[position - position % block_size]
                expect_that(
                    first % block_size == 0 and slot == first + position % block_size,
                    f"in call {number}, block {position // block_size} of a sequence is one block of memory, "
                    f"{block_size} slots from a multiple of {block_size} on",
                    slots=seen.slots,
                )


def prompts_of(rng, lengths):
    """Random prompts; each begins with its own number, so that no two share a prefix."""
    return [
        [number, *(rng.randrange(256) for _ in range(length - 1))] for number, length in enumerate(lengths)
    ]
