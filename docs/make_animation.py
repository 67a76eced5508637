"""Draw `docs/_static/paged_attention.gif`, the animation of the README and of the site's first page.

Nothing in it is staged: SmolLM2 runs with 7 blocks of 4 slots, and the picture is drawn from the trace. Three
requests, which arrive one after the other, bring about all that block tables are for::

    request 0   two completions of one prompt: shared blocks, then a copy on write
    request 1   another prompt; the pool runs full, it is preempted, and comes back
    request 2   begins as request 0 did: its first block is found in the prefix cache

    python docs/make_animation.py
"""

from pathlib import Path

from minivllm import SamplingParams
from minivllm.course.toy import real_llm
from minivllm.viz.animation import animate
from minivllm.viz.player import frames_of
from minivllm.viz.trace import Trace

PROMPT = "The capital of France is"
TARGET = Path(__file__).parent / "_static" / "paged_attention.gif"
TWO = SamplingParams(n=2, temperature=1.0, seed=4, max_tokens=8, ignore_eos=True)
# Step of arrival -> prompt and parameters.
ARRIVALS = {
    0: (PROMPT, TWO),
    2: ("Water boils at a", SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)),
    8: (PROMPT + " Paris. Italy's is", SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)),
}


def record() -> Trace:
    """Run the three requests; the trace keeps their words."""
    engine = real_llm(num_blocks=7).llm_engine
    step = 0
    while engine.has_unfinished_requests() or step <= max(ARRIVALS):
        if step in ARRIVALS:
            engine.add_request(str(list(ARRIVALS).index(step)), *ARRIVALS[step])
        engine.step()
        step += 1
    return engine.trace


def main() -> None:
    """Run, draw, and say how large the file is."""
    trace = record()
    picture = animate(frames_of(trace))
    TARGET.write_bytes(picture)
    copies = sum(len(step.blocks_to_copy) for step in trace.steps)
    preemptions = sum(len(step.preempted) for step in trace.steps)
    print(f"{len(picture):,} bytes, {len(trace.steps)} steps, {preemptions} preemptions, {copies} copies")


if __name__ == "__main__":
    main()
