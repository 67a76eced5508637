"""Chapter 16: propose, accept_or_redraw, after_check; the first one inside the engine, too."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm import SamplingParams
from minivllm.outputs import SequenceOutput
from minivllm.speculative import speculator
from minivllm.speculative.ngram import propose_ngram, propose_ngram_reference
from tests.exercises.engine import make_llm, remembered
from tests.exercises.expect import expect, expect_that, expect_unchanged
from tests.helpers import add, make_scheduler

GUESSING = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}

# -- ex16a ------------------------------------------------------------------------------------------


def check_propose(ex, token_ids, count, longest, expected):
    """The student's guesses, as a list; the text must be as it was."""
    text = list(token_ids)
    got = ex.propose(text, count, longest)
    call = f"propose({list(token_ids)}, {count}, longest={longest})"
    expect_that(isinstance(got, list | tuple), f"{call} gives a list of tokens", got=got)
    expect(list(got), list(expected), call)
    expect(text, list(token_ids), f"the text itself, after {call}")


@pytest.mark.exercise(
    "ex16a", points=1, hint="The end of the text is no earlier place: a token must follow it."
)
def test_without_a_repetition_nothing_is_guessed(ex):
    """A guess out of nowhere costs a longer step, and is wrong."""
    for text in ([], [4], [1, 2, 3], list(range(20))):
        check_propose(ex, text, 3, 4, [])


@pytest.mark.exercise(
    "ex16a", points=1, hint="Search from the end to the front, and stop at the first place."
)
def test_the_latest_place_is_copied(ex):
    """What was written last is the likeliest to go on: a changed line is repeated as changed."""
    check_propose(ex, [1, 2, 8, 1, 2, 9, 1, 2], 2, 2, [9, 1])
    check_propose(ex, [3, 5, 3, 6, 3, 7, 3], 1, 4, [7])


@pytest.mark.exercise("ex16a", points=1, hint="for n in range(longest, 0, -1): the longest n first.")
def test_the_longest_run_decides(ex):
    """Many things follow "the", few follow "once upon a"; and 21, 3 is not 1, 3, nor is 65537 in two bytes."""
    check_propose(ex, [7, 1, 2, 3, 9, 4, 1, 2, 3], 2, 4, [9, 4])
    check_propose(ex, [1, 2, 3, 9, 6, 3, 8, 1, 2, 3], 2, 3, [9, 6])
    check_propose(ex, [1, 2, 3, 9, 6, 3, 8, 1, 2, 3], 2, 1, [8, 1])
    check_propose(ex, [21, 3, 8, 3, 9, 1, 3], 1, 2, [9])
    check_propose(ex, [65_537, 4, 8, 4, 9, 1, 4], 1, 2, [9])


@pytest.mark.exercise("ex16a", points=1, hint="Append each copied token to the text, and copy on from there.")
def test_the_copy_runs_into_itself(ex):
    """A list of equal lines, a table, a loop: the best guess goes on for longer than the text has repeated."""
    check_propose(ex, [5, 6, 5, 6], 5, 2, [5, 6, 5, 6, 5])
    check_propose(ex, [1, 4, 4], 3, 2, [4, 4, 4])


@pytest.mark.exercise(
    "ex16a", points=2, hint="Write down the rule for [0, 0, 1, 0, 0] and longest = 3 by hand."
)
@given(text=st.lists(st.integers(0, 2), max_size=14), count=st.integers(1, 5), longest=st.integers(1, 5))
def test_any_text_of_few_tokens(ex, text, count, longest):
    """Short texts of three tokens have every kind of repetition."""
    expected = propose_ngram_reference(text, count, longest)
    got = ex.propose(list(text), count, longest)
    expect(list(got), list(expected), f"propose({text}, {count}, longest={longest})")


@pytest.mark.exercise(
    "ex16a", points=2, hint="The engine calls it once per step with everything known so far."
)
def test_the_engine_needs_as_few_steps_with_it(ex, tiny_model, monkeypatch):
    """Wrong guesses change no text, so only the number of steps tells good ones from bad ones."""

    def with_guesses_of(propose):
        monkeypatch.setattr(speculator, "propose_ngram", propose)
        engine = make_llm(tiny_model, speculative_config=GUESSING).llm_engine
        params, texts = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), {}
        for index, prompt in enumerate(([1, 2, 3, 4] * 4, [9, 9, 9, 9, 9], [5, 6] * 5)):
            engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            texts |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        return texts, engine.stats()

    texts, stats = remembered(("guesses", tiny_model), lambda: with_guesses_of(propose_ngram))
    got_texts, got = with_guesses_of(lambda ids, count, most, _: tuple(ex.propose(list(ids), count, most)))
    expect(got_texts, texts, "the tokens which the engine generates with your guesses")
    numbers = (got.num_steps, got.num_draft_tokens, got.num_accepted_tokens)
    expected = (stats.num_steps, stats.num_draft_tokens, stats.num_accepted_tokens)
    expect(numbers, expected, "steps of the engine, drafts, accepted drafts")


# -- ex16b ------------------------------------------------------------------------------------------

P = [0.35, 0.05, 0.25, 0.2, 0.1, 0.05]
Q = [0.1, 0.3, 0.25, 0.05, 0.2, 0.1]
GRID = [(i + 0.5) / 60 for i in range(60)]


def distribution(ex, p, q):
    """Probability of each token, by trying a grid of both random numbers for each draft: exact to 1 in 60."""
    found = [0.0] * len(p)
    for draft, weight in enumerate(q):
        if weight > 0:
            for u_accept, u_redraw in itertools.product(GRID, GRID):
                token = ex.accept_or_redraw(list(p), list(q), draft, u_accept, u_redraw)
                expect_that(token in range(len(p)), "the answer is a token", got=token)
                found[token] += weight / len(GRID) ** 2
    return found


def check_distribution(ex, p, q):
    got = distribution(ex, p, q)
    worst = max(abs(a - b) for a, b in zip(got, p, strict=True))
    expect_that(
        worst < 0.02, f"tokens are distributed as p (q is {q})", p=p, got=[round(share, 3) for share in got]
    )


@pytest.mark.exercise("ex16b", points=1, hint="Compare u_accept with p[draft] / q[draft]: below it, accept.")
def test_the_example_by_hand(ex):
    """The four cases of the docstring, and a u_redraw which the sum reaches exactly: 0.5 is not above 0.5."""
    p, q = [0.7, 0.3], [0.4, 0.6]
    for draft, u_accept, expected in ((0, 0.99, 0), (1, 0.49, 1), (1, 0.51, 0), (1, 0.99, 0)):
        given, call = (list(p), list(q)), f"accept_or_redraw({p}, {q}, {draft}, {u_accept}, 0.6)"
        expect(ex.accept_or_redraw(*given, draft, u_accept, 0.6), expected, call)
        expect_unchanged(given, (p, q), call)
    # What is left over is [0.25, 0.25, 0], and divided by its sum [0.5, 0.5, 0].
    p, q = [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]
    call = f"accept_or_redraw({p}, {q}, 2, 0.9, 0.5)"
    expect(ex.accept_or_redraw(list(p), list(q), 2, 0.9, 0.5), 1, call)


@pytest.mark.exercise(
    "ex16b", points=3, hint="After a rejection draw from max(0, p - q), divided by its sum."
)
def test_tokens_are_distributed_as_the_model_wants(ex):
    """The whole point: whatever the guesser is like, the text has the model's distribution."""
    check_distribution(ex, P, Q)
    check_distribution(ex, Q, P)


@pytest.mark.exercise("ex16b", points=1, hint="If p == q, p / q is 1, and u_accept is always below 1.")
def test_a_guesser_like_the_model_is_always_right(ex):
    """Otherwise a perfect draft model would be slower than it has to be."""
    for draft, u_accept in itertools.product(range(len(P)), (0.0, 0.5, 0.999)):
        got = ex.accept_or_redraw(list(P), list(P), draft, u_accept, 0.5)
        expect(got, draft, f"p == q, a draft of {draft}, u_accept {u_accept}")


@pytest.mark.exercise("ex16b", points=1, hint="u_accept may be 0: is it below a probability of 0?")
def test_what_the_model_excludes_never_comes(ex, rng):
    """A forbidden token has probability 0 (a bad word, top_k); a guesser may propose it all the same."""
    p, q = [0.5, 0.0, 0.5], [0.2, 0.6, 0.2]
    for u_accept, u_redraw in itertools.product((0.0, 0.5, 0.99), repeat=2):
        got = ex.accept_or_redraw(list(p), list(q), 1, u_accept, u_redraw)
        expect_that(got in (0, 2), "a draft with p = 0 is rejected", u_accept=u_accept, got=got)
    # The first and the last of 40 tokens are forbidden: neither end of [0, 1) may lead to them.
    for _ in range(20):
        p, q = ([rng.random() for _ in range(40)] for _ in "pq")
        p[0] = p[-1] = 0.0
        p, q = ([mass / math.fsum(row) for mass in row] for row in (p, q))
        for draft, u_redraw in itertools.product((0, 39), (0.0, 1 - 2**-53)):
            got = ex.accept_or_redraw(list(p), list(q), draft, 0.0, u_redraw)
            what = f"after a forbidden draft, with u_redraw {u_redraw!r}, a token comes of which something is left over"
            expect_that(got in range(40) and p[got] > q[got], what, got=got)


@pytest.mark.exercise("ex16b", points=2, hint="With q = 1 at the draft, what is left over is p without it.")
def test_a_guesser_that_is_certain(ex):
    """n-gram drafts: q is 1 at the draft and 0 elsewhere."""
    for draft in range(len(P)):
        check_distribution(ex, P, [float(token == draft) for token in range(len(P))])


# -- ex16c ------------------------------------------------------------------------------------------


def check_after(ex, arguments, expected):
    num_known, drafts, chosen, block_size = arguments
    given = list(drafts), list(chosen)
    got = ex.after_check(num_known, *given, block_size)
    call = f"after_check({num_known}, {drafts}, {chosen}, block_size={block_size})"
    expect_that(isinstance(got, tuple | list) and len(got) == 3, f"{call} gives three things", got=got)
    expect((list(got[0]), got[1], list(got[2])), expected, f"{call}: new tokens, num_computed, full blocks")
    expect_unchanged(given, (list(drafts), list(chosen)), call)


@pytest.mark.exercise("ex16c", points=1, hint="Without drafts it is an ordinary step: one new token.")
def test_a_step_without_drafts(ex):
    """The last known token is computed now, and the chosen one is not."""
    check_after(ex, (6, [], [50], 4), ([50], 6, []))
    check_after(ex, (8, [], [50], 4), ([50], 8, [1]))


@pytest.mark.exercise(
    "ex16c", points=2, hint="The first wrong draft ends it; the choice in its place is the last."
)
def test_a_wrong_draft_ends_the_run(ex):
    """What is chosen behind a wrong draft follows a text that does not exist."""
    check_after(ex, (6, [21, 22, 23], [21, 22, 99, 40], 16), ([21, 22, 99], 8, []))
    check_after(ex, (6, [21, 22, 23], [9, 22, 23, 40], 16), ([9], 6, []))
    check_after(ex, (6, [21, 22, 23], [21, 9, 23, 40], 16), ([21, 9], 7, []))


@pytest.mark.exercise(
    "ex16c", points=1, hint="All right: k drafts, and the model's choice after the last one."
)
def test_all_drafts_right_give_one_token_more(ex):
    """k + 1 tokens for one step: its last position has logits as well."""
    check_after(ex, (6, [21, 22, 23], [21, 22, 23, 40], 16), ([21, 22, 23, 40], 9, []))


@pytest.mark.exercise(
    "ex16c", points=2, hint="A block is full when num_computed reaches its end, not the drafts."
)
def test_blocks_get_names_only_for_what_is_part_of_the_text(ex):
    """A block named with a wrong draft in it is another request's wrong answer."""
    check_after(ex, (6, [21, 22, 23], [21, 22, 99, 40], 4), ([21, 22, 99], 8, [1]))
    check_after(ex, (6, [21, 22, 23], [21, 99, 23, 40], 4), ([21, 99], 7, []))
    check_after(ex, (3, [5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 1], 4), ([5, 6, 7, 8, 9, 1], 8, [0, 1]))
    check_after(ex, (4, [5], [5, 6], 4), ([5, 6], 5, [0]))


@pytest.mark.exercise("ex16c", points=2, hint="Before the step num_known - 1 tokens were computed.")
@given(
    num_known=st.integers(1, 12),
    drafts=st.lists(st.integers(0, 1), max_size=6),
    other=st.lists(st.integers(0, 1), min_size=7, max_size=7),
    size=st.integers(1, 5),
)
def test_the_scheduler_agrees(ex, num_known, drafts, other, size):
    """The engine's own scheduler, given the same step."""
    scheduler = make_scheduler(num_blocks=64, block_size=size, prefix_caching=True)
    group = add(scheduler, "a", [2] * num_known, max_tokens=20)
    (seq,) = group.seqs
    plan = scheduler.schedule()
    chosen, run = other[: len(drafts) + 1], [other[0]]
    while len(run) <= len(drafts) and run[-1] == drafts[len(run) - 1]:
        run.append(chosen[len(run)])
    scheduler.kv.extend(seq, num_known + len(drafts))
    scheduler.update_from_output(plan, [SequenceOutput((tuple(run),))])
    full = range((num_known - 1) // size, seq.num_computed_tokens // size)
    check_after(ex, (num_known, drafts, chosen, size), (run, seq.num_computed_tokens, list(full)))
