"""The final project, milestone 1: a loop that generates the right text."""

import pytest

from tests.exercises.expect import expect, same_text
from tests.exercises.project import Bench, prompts_of


@pytest.mark.exercise("m1", points=2, hint="Compute the whole text, append the token that comes back, again.")
def test_one_prompt_is_continued(ex):
    """The prompt is fed again, or a token is left out before the next one is computed."""
    Bench(ex).run([[7, 3, 200]], [6])


@pytest.mark.exercise("m1", points=1, hint="The answer's place in the list is that of its prompt.")
def test_every_prompt_gets_as_many_tokens_as_it_asked_for(ex, rng):
    """Answers in the order in which they end, or one length for all."""
    Bench(ex).run(prompts_of(rng, [5, 1, 9, 2, 3, 7]), [3, 8, 1, 5, 1, 2])


@pytest.mark.exercise("m1", points=1, hint="Append to a copy: list(prompt).")
def test_the_prompts_stay_as_they_were(ex):
    """Tokens appended to the list that the caller still holds."""
    bench, prompts = Bench(ex), [[7, 3, 200], [9]]
    bench.engine.generate(prompts, [4, 4])
    expect(prompts, [[7, 3, 200], [9]], "the prompts after generate(prompts, [4, 4])")


@pytest.mark.exercise(
    "m1", points=1, hint="What belongs to one call of generate must not stay in the engine."
)
def test_an_engine_can_be_used_again(ex):
    """Requests of the call before that are generated, or returned, again."""
    bench = Bench(ex)
    for prompts, max_tokens in (([[7, 3], [8]], [3, 5]), ([[9, 1, 2]], [4]), ([[7, 3], [8]], [3, 5])):
        bench.run(prompts, max_tokens)


@pytest.mark.exercise("m1", points=1, hint="Does the row name one slot for each position, and no slot twice?")
def test_a_llama_is_continued(ex, tiny_model, reference_text):
    """An engine that fits the model of glass only: here a Llama writes, and minivllm has written the text before."""
    from minivllm.course.project import Limits
    from minivllm.course.project.llama_model import LlamaModel
    from tests.exercises.engine import default_prompts, print_texts

    prompts, max_tokens = default_prompts(tiny_model), [len(text) for text in reference_text]
    got = ex.Engine(LlamaModel(tiny_model, 256), Limits()).generate(
        [list(each) for each in prompts], max_tokens
    )
    same_text(got, reference_text, "with a Llama")
    print_texts(tiny_model, prompts, got)
