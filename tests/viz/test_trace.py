"""The trace: right numbers, a file that can be read back, a schema that refuses everything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import SamplingParams
from minivllm.baselines import ReservationPolicy, orca
from minivllm.scheduler import Scheduler
from minivllm.viz.trace import ScheduledRecord, StepRecord, Trace
from tests import helpers


def traced_step(scheduler, trace, now=0.0):
    """One step without a model, recorded."""
    plan = scheduler.schedule()
    updated = scheduler.update_from_output(plan, helpers.run_model(scheduler, plan))
    trace.record(plan, updated, scheduler, now)
    return trace.steps[-1]


def run_traced(scheduler, trace):
    """Step until nothing is left."""
    while scheduler.has_unfinished:
        traced_step(scheduler, trace, now=float(len(trace.steps)))
        assert len(trace.steps) < 2000


def test_a_record_is_what_the_docstring_says():
    """Would catch a wrong field on the example that all pages use: table [7, 2], 6 tokens in 8 slots."""
    scheduler = helpers.make_scheduler(num_blocks=8, block_size=4)
    pool = scheduler.kv.pool
    blocks = pool.allocate(8)
    pool.free([blocks[i] for i in (7, 2, 4, 1, 0, 3, 6, 5)])
    helpers.add(scheduler, 0, prompt=6)
    trace = Trace(start_time=10.0)
    record = traced_step(scheduler, trace, now=10.25)
    row = ScheduledRecord(seq_id=0, request_id="0", start=0, num_tokens=6, num_samples=1, block_ids=(7, 2))
    assert record == StepRecord(
        step=0, time=0.25, scheduled=(row,), blocks_to_copy=(), blocks_to_swap_out=(), blocks_to_swap_in=(),
        running=("0",), waiting=(), swapped=(), preempted=(), finished=(), requests={0: "0"},
        block_tables={0: (7, 2)}, swapped_tables={}, filled={0: 6}, reserved={0: 8}, free=(4, 1, 0, 3, 6, 5),
        ref_counts={7: 1, 2: 1},
    )  # fmt: skip
    assert (trace.num_blocks, trace.block_size) == (8, 4)


def test_a_record_shows_the_moment_after_the_step_and_the_tables_during_it():
    """Would catch blocks of a finished sequence drawn as held, or its table lost from the step it ran in."""
    scheduler = helpers.make_scheduler(num_blocks=8, block_size=4)
    helpers.add(scheduler, 0, prompt=6, max_tokens=1)
    record = traced_step(scheduler, Trace())
    assert record.finished == ("0",)
    assert (record.running, record.block_tables, record.ref_counts) == ((), {}, {})
    assert len(record.free) == 8
    assert record.scheduled[0].block_ids == (0, 1)


def test_a_fork_shows_as_shared_blocks_and_then_as_copies():
    """Would catch reference counts derived from tables that were read at another moment."""
    scheduler = helpers.make_scheduler(num_blocks=16, block_size=4)
    helpers.add(scheduler, 0, prompt=6, n=2)
    trace = Trace()
    record = traced_step(scheduler, trace)
    assert len(record.requests) == 2
    assert set(record.requests.values()) == {"0"}
    assert set(record.ref_counts.values()) == {2}
    record = traced_step(scheduler, trace)
    assert len(record.blocks_to_copy) == 1
    assert sorted(record.ref_counts.values()) == [1, 1, 2]


def test_swapping_shows_moves_queue_and_tables():
    """Would catch a figure of swapping in which the blocks vanish while they are in CPU memory."""
    scheduler = helpers.make_scheduler(num_blocks=4, num_cpu_blocks=8, preemption_mode="swap")
    for name in range(2):
        helpers.add(scheduler, name, prompt=6, max_tokens=9)
    trace = Trace()
    run_traced(scheduler, trace)
    (out,) = [record for record in trace.steps if record.blocks_to_swap_out]
    assert out.preempted == ("1",)
    assert out.swapped == ("1",)
    assert len(out.swapped_tables[1]) == len(out.blocks_to_swap_out) == 2
    assert out.filled[1] > 0
    (back,) = [record for record in trace.steps if record.blocks_to_swap_in]
    assert back.step > out.step
    assert back.swapped == ()


def test_a_block_that_is_never_freed_stays_visible():
    """Would catch a trace that reads the running requests only: it would draw a leak as free memory."""

    class Leaky(Scheduler):
        def finish(self, seq, status, stop_reason=None):
            seq.status = status

    kv = helpers.make_scheduler(num_blocks=8, block_size=4).kv
    scheduler = Leaky(kv, 8, 32)
    helpers.add(scheduler, 0, prompt=6, max_tokens=1)
    record = traced_step(scheduler, Trace())
    assert record.finished == ("0",)
    assert record.block_tables == {0: (0, 1)}
    assert len(record.free) == 6


def test_contiguous_memory_records_what_its_policy_reserved():
    """Would catch figures that draw the allocator's rounding as if the request had asked for it."""
    scheduler = Scheduler(orca(ReservationPolicy.ORACLE, 32)(16, 4), 8, 32)
    helpers.add(scheduler, 0, prompt=6, max_tokens=5)
    record = traced_step(scheduler, Trace())
    assert record.reserved == {0: 10}
    assert record.block_tables == {0: (0, 1, 2, 3)}


@given(
    requests=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 3)), min_size=1, max_size=8
    ),
    num_blocks=st.integers(12, 24),
    swap=st.booleans(),
    caching=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_records_add_up_and_survive_a_file(requests, num_blocks, swap, caching):
    """Would catch a block both free and held, tokens outside their table, and what JSON does not keep."""
    options = {"preemption_mode": "swap", "num_cpu_blocks": 12} if swap else {}
    scheduler = helpers.make_scheduler(num_blocks, 4, prefix_caching=caching, **options)
    for name, (prompt, output, n) in enumerate(requests):
        helpers.add(scheduler, name, prompt=prompt, max_tokens=output, n=n)
    trace = Trace(word_of=str)
    run_traced(scheduler, trace)
    assert sorted(name for record in trace.steps for name in record.finished) == sorted(
        str(name) for name in range(len(requests))
    )
    for number, record in enumerate(trace.steps):
        assert record.step == number
        held = set(record.ref_counts)
        assert not held & set(record.free)
        assert len(held) + len(record.free) == num_blocks
        assert held == {block for table in record.block_tables.values() for block in table}
        assert sum(record.ref_counts.values()) == sum(map(len, record.block_tables.values()))
        for seq_id, table in record.block_tables.items():
            assert record.filled[seq_id] <= len(table) * 4 == record.reserved[seq_id]
        for row in record.scheduled:
            assert len(row.words) == row.num_tokens
    again = Trace.from_json(trace.to_json())
    assert again.steps == trace.steps
    assert (again.num_blocks, again.block_size) == (num_blocks, 4)


def test_words_are_those_of_the_tokens_that_are_computed():
    """Would catch words shifted by one: the newest token is known but not yet computed."""
    scheduler = helpers.make_scheduler()
    group = helpers.add(scheduler, 0, prompt=[5, 6, 7], max_tokens=3)
    trace = Trace(word_of=lambda token_id: f"<{token_id}>")
    run_traced(scheduler, trace)
    words = [record.scheduled[0].words for record in trace.steps]
    first, second, _ = group.seqs[0].output_token_ids
    assert words == [("<5>", "<6>", "<7>"), (f"<{first}>",), (f"<{second}>",)]


# -- the schema ---------------------------------------------------------------------------------------


@pytest.fixture
def document():
    """A short trace as parsed JSON."""
    scheduler = helpers.make_scheduler()
    helpers.add(scheduler, 0, prompt=6, max_tokens=2)
    trace = Trace(word_of=str)
    run_traced(scheduler, trace)
    return json.loads(trace.to_json())


def corrupt(document, path, value):
    """Set `document[path[0]][path[1]]...` to `value`."""
    *way, last = path
    for key in way:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "minivllm-trace-2", "not a trace"),
        (["num_blocks"], "16", "num_blocks: expected"),
        (["num_blocks"], True, "num_blocks: expected"),
        (["steps"], {}, "steps: expected"),
        (["steps", 0, "step"], 1.5, r"steps\[0\].step: expected"),
        (["steps", 0, "step"], None, r"steps\[0\].step: expected"),
        (["steps", 0, "time"], "now", r"steps\[0\].time: expected"),
        (["steps", 0, "extra"], 1, r"steps\[0\]: missing nothing, unknown \['extra'\]"),
        (["steps", 0, "free"], [1, "2"], r"steps\[0\].free\[1\]: expected"),
        (["steps", 0, "running"], [0], r"steps\[0\].running\[0\]: expected"),
        (["steps", 0, "block_tables"], {"a": []}, r"steps\[0\].block_tables: expected ids as keys"),
        (["steps", 0, "block_tables"], {"0": [1.0]}, r"block_tables\[0\]\[0\]: expected"),
        (["steps", 0, "filled"], [], r"steps\[0\].filled: expected"),
        (["steps", 0, "blocks_to_copy"], [[1, 2, 3]], r"blocks_to_copy\[0\]: expected"),
        (["steps", 0, "scheduled", 0], {}, r"scheduled\[0\]: missing \['block_ids'"),
        (["steps", 0, "scheduled", 0, "words"], "abc", r"scheduled\[0\].words: expected"),
        (["steps", 0, "scheduled", 0], 3, r"scheduled\[0\]: expected"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_name(document, path, value, message):
    """Would catch a broken file that is accepted and then drawn wrong; the message has to name the field."""
    assert len(Trace.from_json(json.dumps(document)).steps) == 2
    corrupt(document, path, value)
    with pytest.raises(ValueError, match=message):
        Trace.from_json(json.dumps(document))


@pytest.mark.parametrize("name", StepRecord.__dataclass_fields__)
def test_a_missing_field_is_refused(document, name):
    """Would catch a field that the check has forgotten."""
    del document["steps"][1][name]
    with pytest.raises(ValueError, match=rf"steps\[1\]: missing \['{name}'\]"):
        Trace.from_json(json.dumps(document))


def test_other_json_is_refused():
    """Would catch an AttributeError in place of an explanation."""
    for text in ("[]", "{}", "3"):
        with pytest.raises(ValueError, match="not a trace"):
            Trace.from_json(text)


def test_a_trace_may_have_no_steps_and_no_words(tmp_path):
    """Would catch the empty and the optional case."""
    path = tmp_path / "trace.json"
    Trace().save(path)
    assert Trace.load(path).steps == []


# -- in the engine ------------------------------------------------------------------------------------


def generate(engine, params):
    """Two prompts to the end; returns their outputs."""
    for name, prompt in enumerate([[72, 105], list(range(30, 50))]):
        engine.add_request(str(name), {"prompt_token_ids": prompt}, params)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
    return outputs


def test_an_engine_without_a_trace_records_nothing(make_engine, monkeypatch):
    """Would catch a trace that is on by default."""

    def record(*args):
        raise AssertionError("no trace was asked for")

    monkeypatch.setattr(Trace, "record", record)
    engine = make_engine()
    assert engine.trace is None
    generate(engine, SamplingParams(temperature=0, max_tokens=4))
    with pytest.raises(AssertionError, match="no trace was asked for"):
        generate(make_engine(parts={"trace": Trace()}), SamplingParams(temperature=0, max_tokens=4))


def test_a_trace_changes_nothing_and_has_one_record_a_step(make_engine):
    """Would catch a trace that disturbs what it looks at, and steps recorded twice or not at all."""
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    plain = generate(make_engine(), params)
    trace = Trace()
    engine = make_engine(parts={"trace": trace})
    traced = generate(engine, params)
    assert [traced[name].outputs for name in "01"] == [plain[name].outputs for name in "01"]
    assert [record.step for record in trace.steps] == list(range(engine.scheduler.stats.num_steps))
    times = [record.time for record in trace.steps]
    assert times == sorted(times)
    assert times[0] > 0


def test_a_request_ended_by_a_stop_string_is_finished_in_that_step(make_engine):
    """Would catch recording too early: stop strings are found only when the text has been made."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    text = generate(make_engine(), params)["0"].outputs[0].text
    stop = next(char for char in text[3:] if char.isprintable() and char != "\ufffd")
    trace = Trace()
    engine = make_engine(parts={"trace": trace})
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop)
    output = generate(engine, params)["0"]
    assert output.outputs[0].finish_reason == "stop"
    (record,) = [record for record in trace.steps if "0" in record.finished]
    assert record.step == len(output.outputs[0].token_ids) - 1
    assert "0" not in record.running
    assert "0" not in record.requests.values()
