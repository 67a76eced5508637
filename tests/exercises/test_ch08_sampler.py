"""Chapter 8: sample, top_p, top_n_sigma; each alone and in place of the engine's sampler."""

import contextlib
import io
import math
from dataclasses import replace

import pytest

from tests.exercises.engine import generate, remembered
from tests.exercises.expect import expect, expect_close, expect_that, expect_unchanged, same_text

TOLERANCE = 1e-5  # float32 probabilities
NEVER = float("-inf")


def normal(rng, size, scale=1.0):
    """N(0, scale^2), float32."""
    import torch

    return torch.tensor([rng.gauss(0.0, scale) for _ in range(size)])


def shown(values):
    """A short form of a row for messages."""
    numbers = [f"{value:.5g}" for value in values.tolist()[:8]]
    return "[" + ", ".join(numbers) + (", ...]" if len(values) > 8 else "]")


def choosing(choose):
    """A sampler for the engine: token of each row from `choose(its logits, its seed and position, its id)`."""
    from minivllm.outputs import SequenceOutput

    def sampler(logits, rows):
        places = [((row.sampling.seed, row.sampling.position), int(row.request_id)) for row in rows]
        return [SequenceOutput(((int(choose(logits[i], *place)),),)) for i, place in enumerate(places)]

    return sampler


def asking(logits, rows, **options):
    """What the engine's own sampler chooses if every request asks for `options`."""
    from minivllm import SamplingParams
    from minivllm.sampler import Sampler

    params = SamplingParams(**options)
    return Sampler()(logits, [replace(row, sampling=replace(row.sampling, params=params)) for row in rows])


def expected_text(name, model, sampler):
    """What the engine writes with this sampler; printed nowhere, since it is not the student's."""

    def make():
        with contextlib.redirect_stdout(io.StringIO()):
            return generate(model, sampler=sampler)

    return remembered((name, model), make)


def draw_from(probs, place):
    """A draw from (V,) probabilities with the engine's random number of this seed and position."""
    import torch

    from minivllm.sampler import invert_cdf, uniform

    return invert_cdf(probs[None], torch.tensor([[uniform(*place, 0)]]))


# -- ex08a ------------------------------------------------------------------------------------------


def check_sample(ex, expected, logits, temperature, u):
    import torch

    row = torch.tensor(logits) if isinstance(logits, list) else logits
    call = f"sample({shown(row)}, temperature={temperature}, u={u:.6g})"
    given = row.clone()
    expect(token_of(ex.sample(given, temperature, u), call), expected, call)
    expect_unchanged([given], [row], call)


def token_of(got, call):
    """A token id, be it an int or a tensor of one element."""
    try:
        return int(got)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise AssertionError(f"{call}\n  expected  one token id\n  got       {got!r}")


def middles(logits, temperature, smallest=1e-3):
    """(token, u in the middle of its interval) for each token likelier than `smallest`; float64, no softmax."""
    best = max(logits)
    weights = [math.exp((logit - best) / temperature) for logit in logits]
    total, below = sum(weights), 0.0
    for token, weight in enumerate(weights):
        if weight > smallest * total:
            yield token, (below + weight / 2) / total
        below += weight


@pytest.mark.exercise("ex08a", points=1, hint="cumsum, then the first index whose sum is >= u.")
def test_the_first_sum_that_reaches_u_decides(ex):
    """Four equal tokens own a quarter of (0, 1] each, upper end included: token 1 owns what is above 0.25, up to 0.5."""
    zeros = [0.0] * 4
    for u, token in ((1e-9, 0), (0.2, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 3)):  # fmt: skip
        check_sample(ex, token, zeros, 1.0, u)


@pytest.mark.exercise(
    "ex08a", points=1, hint="Divide the logits, not the probabilities, and divide before the softmax."
)
def test_temperature_divides_the_logits(ex, rng):
    """Low temperatures favour the likeliest, high ones make all alike: multiplying does the opposite."""
    # Odds of 9 to 1 become 3 to 1 at temperature 2, and 81 to 1 at temperature 1/2.
    odds = [math.log(9.0), 0.0]
    for temperature, share in ((1.0, 9 / 10), (2.0, 3 / 4), (0.5, 81 / 82)):
        check_sample(ex, 0, odds, temperature, share - 0.005)
        check_sample(ex, 1, odds, temperature, share + 0.005)
    logits = normal(rng, 40, 2.0)
    for temperature in (0.3, 1.0, 2.5):
        for token, u in middles(logits.tolist(), temperature):
            check_sample(ex, token, logits, temperature, u)


@pytest.mark.exercise(
    "ex08a", points=1, hint="Ask for temperature == 0 before dividing; argmax needs no probabilities."
)
def test_temperature_zero_is_the_largest_logit(ex):
    """Dividing by 0 gives infinities, and their softmax NaN. Of equal tokens the first: greedy text can be repeated."""
    for u in (1e-9, 0.5, 1.0):
        check_sample(ex, 2, [0.5, -1.0, 3.0, 2.9], 0.0, u)
        check_sample(ex, 1, [0.0, 7.0, 3.0, 7.0], 0.0, u)
        check_sample(ex, 0, [-5.0, -6.0, NEVER], 0.0, u)
        check_sample(ex, 1, [-0.0, 1e-30, 0.0], 0.0, u)


@pytest.mark.exercise(
    "ex08a", points=1, hint="Subtract the row's largest logit first: no exponent is then above 0."
)
def test_large_logits_do_not_overflow(ex):
    """exp(1000) is infinite, and inf / inf is NaN; only differences between logits count."""
    for shift in (0.0, 1000.0, -1000.0):
        for temperature in (1.0, 0.01):
            logits = [shift, shift + 1.0, shift - 1.0, shift + 0.5]
            for token, u in middles(logits, temperature):
                check_sample(ex, token, logits, temperature, u)


@pytest.mark.exercise("ex08a", points=1, hint="Only temperature == 0 is greedy; 0.01 is a temperature.")
def test_a_low_temperature_is_not_zero(ex):
    """At 0.05 two tokens 0.02 apart still have 60 and 40 %: below 0.1 is not greedy, and 0.01 is not the limit."""
    for temperature in (0.09, 0.05, 0.02, 0.01):
        # The first token has 60 % at every temperature: the gap shrinks with it.
        logits = [3.0, 3.0 - temperature * math.log(1.5)]
        check_sample(ex, 0, logits, temperature, 0.55)
        check_sample(ex, 1, logits, temperature, 0.65)


@pytest.mark.exercise(
    "ex08a", points=1, hint="Look at all V tokens: no top-k, no 16-bit index, no 16-bit sum."
)
def test_a_large_vocabulary_is_reached_to_its_end(ex, rng):
    """Llama 3 has 128,256 tokens, and ids and shares of all of them count: the last one as much as the first."""
    import torch

    size = 128_256
    for token in (size - 1, 65_536, 32_768, 255):
        logits = torch.full((size,), -30.0)
        logits[token] = 10.0
        for temperature in (0.0, 1.0):
            check_sample(ex, token, logits, temperature, 0.5)
    # All equal: each id has the same share, to the end. 200 ids is what rounding of the sum may cost.
    logits = torch.zeros(size)
    for u in (0.25, 0.6, 0.95):
        call = f"sample(zeros({size}), temperature=1.0, u={u})"
        got = token_of(ex.sample(logits.clone(), 1.0, u), call)
        expect_that(abs(got - u * size) < 200, f"{call} is about {u * size:.0f}", got=got)


@pytest.mark.exercise(
    "ex08a", points=1, hint="Compare with u times the last sum, or look among the possible tokens only."
)
def test_a_forbidden_token_is_never_chosen(ex, rng):
    """bad_words and allowed_token_ids work with -inf: at u = 1 a sum of 0.9999999 must not run off the end."""
    check_sample(ex, 1, [NEVER, 0.0, NEVER], 1.0, 1e-9)
    check_sample(ex, 1, [NEVER, 0.0, NEVER], 1.0, 1.0)
    for size in (10, 100, 1000, 3000, 5000):
        for _ in range(5):
            logits = normal(rng, size)
            logits[::2] = NEVER  # the first one, and some at the end
            logits[-3:] = NEVER
            got = token_of(
                ex.sample(logits.clone(), 1.0, 1.0), f"sample({shown(logits)}, temperature=1.0, u=1.0)"
            )
            expect_that(0 <= got < size and logits[got] > NEVER, "sample(..., u=1.0) is a token that is allowed",
                        vocabulary=size, last_allowed=int(logits.isfinite().nonzero()[-1]), got=got)  # fmt: skip


@pytest.mark.exercise("ex08a", points=2, hint="Requests 0, 2 and 4 have temperature 0 here, the others 0.8.")
def test_the_engine_draws_the_same_tokens_with_it(ex, tiny_model, reference_text):
    """Inside the engine, with its random numbers: half of the requests greedy, half at temperature 0.8."""
    from minivllm.sampler import uniform

    def student(logits, place, request):
        return ex.sample(logits, 0.0 if request % 2 == 0 else 0.8, uniform(*place, 0))

    hot = expected_text(
        "temperature 0.8", tiny_model, lambda logits, rows: asking(logits, rows, temperature=0.8)
    )
    expected = [reference_text[i] if i % 2 == 0 else hot[i] for i in range(len(hot))]
    same_text(generate(tiny_model, sampler=choosing(student)), expected, "the engine with your sample")


# -- ex08b ------------------------------------------------------------------------------------------

FIVE = [0.4, 0.25, 0.2, 0.1, 0.05]  # the notebook's tokens a, b, c, d, e
POWERS = [0.5, 0.25, 0.125, 0.0625, 0.0625]  # their sums are exact, even in float32


def cut_oracle(probs, p):
    """From the likeliest down until p is reached; float64, one token after the other."""
    kept, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if mass >= p and p < 1:
            break
        kept.add(token)
        mass += probs[token]
    return [probs[i] / mass if i in kept else 0.0 for i in range(len(probs))]


def cut_of(ex, probs, p):
    """The student's cut of a list of probabilities, and the call as text."""
    import torch

    row = torch.tensor(probs)
    given, call = row.clone(), f"top_p({shown(row)}, p={p})"
    got = ex.top_p(given, p)
    expect_that(
        isinstance(got, torch.Tensor) and got.dtype == row.dtype, f"{call} is a float32 tensor", got=got
    )
    expect_unchanged([given], [row], call)
    return got, call


def check_cut(ex, expected, probs, p):
    import torch

    got, call = cut_of(ex, probs, p)
    expect_close(got, torch.tensor(expected), call, TOLERANCE)


def check_kept(ex, expected, probs, p):
    """Which tokens are kept, and nothing about their probabilities."""
    got, call = cut_of(ex, probs, p)
    expect(
        [token for token, share in enumerate(got.tolist()) if share > 0], expected, f"tokens kept by {call}"
    )


@pytest.mark.exercise("ex08b", points=1, hint="Sort falling, cumsum, find the cut, put the rest to 0.")
def test_the_fewest_tokens_with_mass_p_are_kept(ex):
    """The notebook's five tokens, in order and shuffled: each result stays in its token's place."""
    check_cut(ex, [8 / 17, 5 / 17, 4 / 17, 0.0, 0.0], FIVE, 0.7)
    check_cut(ex, [5 / 17, 0.0, 8 / 17, 0.0, 4 / 17], [0.25, 0.05, 0.4, 0.1, 0.2], 0.7)
    check_kept(ex, [0, 1, 2, 3], FIVE, 0.9)


@pytest.mark.exercise("ex08b", points=2, hint="A token stays if the sum *before* it has not reached p yet.")
def test_the_token_that_crosses_p_is_kept(ex):
    """Without it less than p would be left: so in nano-vllm's pull request #196; #260 keeps the token."""
    check_kept(ex, [0, 1], POWERS, 0.6)
    check_kept(ex, [0], POWERS, 0.3)
    check_kept(ex, [2, 3], [0.0625, 0.125, 0.25, 0.5, 0.0625], 0.51)


@pytest.mark.exercise("ex08b", points=1, hint="sum >= p is enough: compare with < where you go on.")
def test_reaching_p_exactly_is_enough(ex):
    """Sums of 0.5, 0.75 and 0.875 are exact in floating point: no further token is needed."""
    check_kept(ex, [0], POWERS, 0.5)
    check_kept(ex, [0, 1], POWERS, 0.75)
    check_kept(ex, [0, 1, 2], POWERS, 0.875)


@pytest.mark.exercise("ex08b", points=1, hint="Divide by the sum of what is left.")
def test_what_is_left_adds_up_to_one(ex, rng):
    """The result is drawn from as a distribution: the kept tokens share what the others have lost."""
    for p in (0.1, 0.5, 0.9):
        probs = normal(rng, 30, 2.0).softmax(dim=-1)
        got = ex.top_p(probs.clone(), p)
        expect_close(got.sum(), probs.new_tensor(1.0), f"sum of top_p(30 tokens, p={p})", 1e-5)


@pytest.mark.exercise("ex08b", points=1, hint="In float32, 1 + 1e-9 is 1: treat p = 1 as its own case.")
def test_p_of_one_keeps_every_token(ex):
    """p = 1 is the default and means "no cut": a sum that is 1 early, by rounding, must not drop the rest."""
    probs = [1.0, 1e-9, 1e-9, 1e-12]
    check_kept(ex, [0, 1, 2, 3], probs, 1.0)
    check_kept(ex, [0, 1, 2, 3], probs[::-1], 1.0)
    check_kept(ex, [1, 2], [0.0, 0.5, 0.5], 1.0)


@pytest.mark.exercise("ex08b", points=1, hint="Only p = 1 means no cut.")
def test_a_p_of_nearly_one_is_a_cut(ex):
    """p = 0.99 is what many use against the long tail: taken for 1, the tail is back."""
    for p in (0.95, 0.99):
        check_kept(ex, [1], [0.001, 0.996, 0.003], p)
    check_kept(ex, [1, 2], [0.001, 0.996, 0.003], 0.998)
    check_kept(ex, [0, 1, 2], [0.001, 0.996, 0.003], 0.9995)


@pytest.mark.exercise("ex08b", points=1, hint="Cut by p alone; how many tokens that are does not matter.")
def test_a_flat_row_keeps_as_many_tokens_as_it_takes(ex, rng):
    """A model that has no idea: half of 3,000 tokens are kept, where a top-k of 1,000 inside top_p cuts again."""
    probs = (1.0 + 0.2 * normal(rng, 3000).clamp(-3, 3)).double()
    probs = (probs / probs.sum()).float()
    got = ex.top_p(probs.clone(), 0.5)
    kept = got > 0
    call = "top_p(3,000 tokens of about the same probability, p=0.5)"
    mass = probs.double()[kept].sum().item()
    expect_that(
        abs(mass - 0.5) < 1e-3, f"{call} keeps tokens of probability 0.5 together", got=round(mass, 4)
    )
    lowest, highest = probs[kept].min().item(), probs[~kept].max().item()
    expect_that(lowest >= highest, f"{call} keeps the likeliest", least_kept=lowest, most_cut=highest)


@pytest.mark.exercise("ex08b", points=1, hint="The likeliest token stays, for every p.")
def test_one_token_may_hold_all_the_mass(ex):
    """A model that is sure, or a tiny p: one token is left, with probability 1, and no division by 0."""
    for p in (1e-6, 0.5, 0.999, 1.0):
        check_cut(ex, [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], p)
        check_cut(ex, [1.0], [1.0], p)
    check_cut(ex, [0.0, 1.0, 0.0], [0.3, 0.4, 0.3], 1e-6)


@pytest.mark.exercise(
    "ex08b",
    points=1,
    hint="Cut by place in the sorted row; or compare with the last one kept, by >=, before you divide.",
)
def test_equal_tokens_at_the_cut(ex):
    """Four tokens of 1/4 and p = 1/2: two of them, or all four; never one, and never a less likely token."""
    for probs, p, sure, fewest, most in (
        ([0.25] * 4, 0.5, set(), 2, 4),
        ([0.125, 0.5, 0.125, 0.125, 0.125], 0.6, {1}, 2, 5),
        ([0.0625, 0.25, 0.25, 0.0625, 0.25, 0.125], 0.5, set(), 2, 3),
    ):
        got, call = cut_of(ex, probs, p)
        kept = {token for token, share in enumerate(got.tolist()) if share > 0}
        expect_that(
            len(kept) in (fewest, most) and sure <= kept and min(probs[i] for i in kept) > 0.1,
            f"{call} keeps {fewest} tokens, or {most} if it keeps all that are equal", kept=sorted(kept),
        )  # fmt: skip
        for token in kept:
            share = probs[token] / sum(probs[i] for i in kept)
            expect_that(abs(got[token].item() - share) < TOLERANCE, f"in {call} token {token} has {share:.4f}",
                        got=round(got[token].item(), 4))  # fmt: skip


@pytest.mark.exercise("ex08b", points=1, hint="clone, or build a new tensor; do not write into probs.")
def test_the_probabilities_given_are_left_alone(ex):
    """Rows of a batch are views of one tensor, and the log-probabilities of the answer are read from it, too."""
    import torch

    probs = torch.tensor(FIVE)
    ex.top_p(probs, 0.7)
    expect_close(probs, torch.tensor(FIVE), "probs after top_p", 0.0)


@pytest.mark.exercise("ex08b", points=1, hint="Print the sorted sums of a small case and look for p in them.")
def test_random_rows_are_cut_like_one_token_after_the_other(ex, rng):
    """Peaked and flat rows of 1 to 60 tokens, any p: against a loop that adds token by token in float64."""
    for _ in range(150):
        probs = normal(rng, rng.randint(1, 60), rng.choice([0.2, 1.0, 4.0])).softmax(dim=-1).tolist()
        p = rng.uniform(0.02, 0.98)
        expected = cut_oracle(probs, p)
        # Rows where rounding decides are left out: p within 1e-5 of a sum.
        sums = [sum(sorted(probs, reverse=True)[: i + 1]) for i in range(len(probs))]
        if min(abs(each - p) for each in sums) > 1e-5:
            check_cut(ex, expected, probs, p)


@pytest.mark.exercise(
    "ex08b", points=2, hint="The engine refuses and draws again; your cut says what has to come out."
)
def test_the_engine_draws_what_your_cut_leaves(ex, rng):
    """4,000 draws of the engine, which never sorts: no other token than yours, and each as often as you say."""
    from minivllm import SamplingParams
    from minivllm.sampler import draw
    from tests.helpers_sampling import make_row

    logits, p, count = normal(rng, 40, 1.5), 0.8, 4000
    row = make_row(SamplingParams(top_p=p, max_tokens=None), num_samples=count, seed=rng.randrange(2**31))
    (tokens,) = draw(logits[None], [row.sampling])
    shares = ex.top_p(logits.softmax(dim=-1), p).tolist()
    others = sorted({token for token in tokens if shares[token] == 0})
    expect_that(not others, "top_p(..., p=0.8) keeps every token that the engine draws", missing=others)
    kept = [token for token in range(40) if shares[token] > 0]
    chi_square = sum((tokens.count(i) - count * shares[i]) ** 2 / (count * shares[i]) for i in kept)
    free = max(len(kept) - 1, 1)
    # Chance gives `free`, with a standard deviation of sqrt(2 free).
    expect_that(chi_square < free + 7 * math.sqrt(2 * free),
                "the engine's draws have the frequencies that top_p(..., p=0.8) says",
                frequencies={i: round(tokens.count(i) / count, 3) for i in kept},
                yours={i: round(shares[i], 3) for i in kept})  # fmt: skip


@pytest.mark.exercise(
    "ex08b", points=1, hint="With p = 1e-6 only the likeliest token is left: the text must be the greedy one."
)
def test_the_engine_writes_with_your_cut(ex, tiny_model, reference_text):
    """Inside the engine, as its sampler: p = 1e-6 gives the greedy text, p = 0.8 what a loop over tokens gives."""
    import torch

    def cutting(cut, p):
        return choosing(lambda logits, place, _: draw_from(cut(logits.softmax(dim=-1), p), place))

    got = generate(tiny_model, sampler=cutting(ex.top_p, 1e-6))
    same_text(got, reference_text, "the engine with your top_p, p=1e-6")
    oracle = cutting(lambda probs, p: torch.tensor(cut_oracle(probs.tolist(), p)), 0.8)
    expected = expected_text("top_p 0.8", tiny_model, oracle)
    same_text(
        generate(tiny_model, sampler=cutting(ex.top_p, 0.8)), expected, "the engine with your top_p, p=0.8"
    )


# -- ex08c ------------------------------------------------------------------------------------------

EIGHT = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]  # mean 5, standard deviation 2


def sigma_oracle(logits, n):
    """The formula in float64, over the finite logits."""
    finite = [logit for logit in logits if logit > NEVER]
    mean = sum(finite) / len(finite)
    sigma = math.sqrt(sum((logit - mean) ** 2 for logit in finite) / len(finite))
    lowest = max(finite) - n * sigma
    return [logit if logit >= lowest else NEVER for logit in logits]


def check_sigma(ex, expected, logits, n):
    """The rows must be equal, infinities and all: what is kept is not changed."""
    import torch

    row = torch.tensor(logits)
    given = row.clone()
    got = ex.top_n_sigma(given, n)
    call = f"top_n_sigma({shown(row)}, n={n})"
    expect_unchanged([given], [row], call)
    expect_that(isinstance(got, torch.Tensor) and got.shape == row.shape, f"{call} is a tensor like its input",
                got=got)  # fmt: skip
    expect(got.tolist(), expected, call)


@pytest.mark.exercise("ex08c", points=1, hint="logits.max() - n * sigma, and >=.")
def test_what_is_near_the_best_is_kept(ex):
    """The example by hand: sigma is 2, so n = 1 cuts at 7, which is kept, and n = 2 at 5."""
    check_sigma(ex, [NEVER] * 6 + [7.0, 9.0], EIGHT, 1)
    check_sigma(ex, [NEVER] * 4 + [5.0, 5.0, 7.0, 9.0], EIGHT, 2)
    check_sigma(ex, [9.0, 7.0] + [NEVER] * 6, EIGHT[::-1], 1)
    check_sigma(ex, EIGHT, EIGHT, 3.5)


@pytest.mark.exercise("ex08c", points=1, hint="Tensor.std divides by one less unless you say unbiased=False.")
def test_sigma_is_the_root_of_the_mean_square(ex):
    """n = 2.4 cuts at 4.2; the deviation divided by one less is 2.14 and would let the fours in."""
    check_sigma(ex, [NEVER] * 4 + [5.0, 5.0, 7.0, 9.0], EIGHT, 2.4)
    check_sigma(ex, [0.0, 1.0], [0.0, 1.0], 2)
    check_sigma(ex, [NEVER, 1.0], [0.0, 1.0], 1.9)


@pytest.mark.exercise("ex08c", points=1, hint="A tie with the largest is not below it: >=, not >.")
def test_n_of_zero_is_greedy(ex):
    """Only the largest logit is left, and what is equal to it."""
    check_sigma(ex, [NEVER, 3.0, NEVER], [1.0, 3.0, 2.9], 0)
    check_sigma(ex, [3.0, NEVER, 3.0], [3.0, -1.0, 3.0], 0)
    check_sigma(ex, [4.0, 4.0], [4.0, 4.0], 0)


@pytest.mark.exercise(
    "ex08c",
    points=2,
    hint="Everything in the rule must scale with the logits: no softmax, no fixed distance.",
)
def test_the_temperature_does_not_change_what_is_kept(ex, rng):
    """The point of the rule: logits twice as large, or four times as small, keep the same tokens."""
    import torch

    for _ in range(10):
        logits, n = normal(rng, 50, 2.0), rng.uniform(0.5, 2.5)
        kept = [logit > NEVER for logit in sigma_oracle(logits.tolist(), n)]
        for temperature in (0.5, 1.0, 2.0, 8.0):
            got = ex.top_n_sigma(logits / temperature, n)
            expect(torch.isfinite(got).tolist(), kept, f"tokens kept by top_n_sigma(logits / {temperature}, n={n:.3f})")  # fmt: skip


@pytest.mark.exercise("ex08c", points=1, hint="Subtract the mean first, then square: mean((x - mean) ** 2).")
def test_an_offset_of_all_logits_changes_nothing(ex):
    """Only differences count. mean(x ** 2) - mean ** 2 loses them: at 16,384 the squares are exact to 16 only."""
    for offset in (-16_384.0, 4096.0, 16_384.0):
        logits = [offset + each for each in EIGHT]
        check_sigma(ex, [NEVER] * 6 + logits[6:], logits, 1)
        check_sigma(ex, [NEVER] * 4 + logits[4:], logits, 2)


@pytest.mark.exercise(
    "ex08c", points=1, hint="Mean and sigma of logits[logits.isfinite()]: one -inf makes both NaN."
)
def test_forbidden_tokens_do_not_count(ex):
    """-inf is no logit of the model: one in the mean makes it -inf, and every comparison with NaN is False."""
    check_sigma(ex, [NEVER] * 7 + [7.0, NEVER, 9.0], [NEVER, *EIGHT[:6], 7.0, NEVER, 9.0], 1.9)
    check_sigma(ex, [NEVER, 2.0, NEVER], [NEVER, 2.0, NEVER], 1)


@pytest.mark.exercise("ex08c", points=1, hint="masked_fill and torch.where make a new tensor.")
def test_the_logits_given_are_left_alone(ex):
    """The log-probabilities that a request asks for are taken from the same tensor."""
    import torch

    logits = torch.tensor(EIGHT)
    ex.top_n_sigma(logits, 1)
    expect_close(logits, torch.tensor(EIGHT), "logits after top_n_sigma", 0.0)


@pytest.mark.exercise(
    "ex08c", points=2, hint="LLM(..., sampler=...) takes any function (logits, rows) -> outputs."
)
def test_the_engine_samples_with_your_rule(ex, tiny_model, reference_text):
    """Inside the engine, before its own sampler: n = 0 writes the greedy text even at temperature 3."""
    import torch

    def cutting(cut, n):
        def sampler(logits, rows):
            return asking(torch.stack([cut(row, n) for row in logits]), rows, temperature=3.0)

        return sampler

    got = generate(tiny_model, sampler=cutting(ex.top_n_sigma, 0))
    same_text(got, reference_text, "the engine with your top_n_sigma, n=0, temperature 3")
    oracle = cutting(lambda logits, n: torch.tensor(sigma_oracle(logits.tolist(), n)), 1.0)
    got = generate(tiny_model, sampler=cutting(ex.top_n_sigma, 1.0))
    expected = expected_text("top_n_sigma 1", tiny_model, oracle)
    same_text(got, expected, "the engine with your top_n_sigma, n=1, temperature 3")
