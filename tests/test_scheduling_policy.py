"""The order of the queues: first come first served, and by priority as in vLLM."""

import pytest

from minivllm import LLM, SamplingParams
from minivllm.config import CHOICES
from minivllm.scheduling_policy import POLICIES, FirstComeFirstServed, Priority
from tests.helpers import add, make_scheduler, run_to_end, step, token_after


def admitted(plans):
    """Request ids in the order of their first step."""
    return list(dict.fromkeys(row.request_id for plan in plans for row in plan.scheduled))


def greedy(prompt, max_tokens):
    tokens = list(range(prompt))
    for _ in range(max_tokens):
        tokens.append(token_after(tokens))
    return tokens[prompt:]


REQUESTS = [("a", 2), ("b", 1), ("c", 0), ("d", 1), ("e", -3)]


@pytest.mark.parametrize(("policy", "order"), [(FirstComeFirstServed, "abcde"), (Priority, "ecbda")])
def test_groups_are_admitted_in_the_order_of_the_policy(policy, order):
    """Would catch a policy that is not asked, and equals that change places."""
    scheduler = make_scheduler(max_num_seqs=1, policy=policy())
    for number, (name, priority) in enumerate(REQUESTS):
        add(scheduler, name, 5, max_tokens=2, priority=priority, arrival_time=float(number))
    assert admitted(run_to_end(scheduler)) == list(order)


def test_equal_priorities_go_by_arrival_time_and_not_by_the_moment_they_were_added():
    """Would catch a queue sorted by priority alone: vLLM's second key is the arrival time."""
    scheduler = make_scheduler(max_num_seqs=1, policy=Priority())
    for name, arrival_time in [("late", 3.0), ("early", 1.0), ("middle", 2.0)]:
        add(scheduler, name, 5, max_tokens=2, priority=1, arrival_time=arrival_time)
    assert admitted(run_to_end(scheduler)) == ["early", "middle", "late"]


@pytest.mark.parametrize(("policy", "victim"), [(FirstComeFirstServed, "urgent"), (Priority, "calm")])
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_the_least_urgent_running_group_is_preempted(policy, victim, mode):
    """Would catch the group admitted last as the victim, even if it is urgent."""
    scheduler = make_scheduler(num_blocks=6, num_cpu_blocks=8, preemption_mode=mode, policy=policy())
    calm = add(scheduler, "calm", 7, max_tokens=9, priority=5)
    step(scheduler)
    urgent = add(scheduler, "urgent", 7, max_tokens=9, priority=1, arrival_time=1.0)
    plans = run_to_end(scheduler)
    assert {name for plan in plans for name in plan.preempted} == {victim}
    for group in (calm, urgent):
        assert group.seqs[0].output_token_ids == greedy(7, 9)


def test_a_preempted_group_stands_before_those_that_are_as_urgent():
    """Would catch a victim that has to wait behind requests which came after it."""
    scheduler = make_scheduler(num_blocks=6, policy=Priority())
    add(scheduler, "first", 7, max_tokens=9)
    add(scheduler, "victim", 7, max_tokens=9)
    step(scheduler)
    add(scheduler, "newcomer", 7, max_tokens=2)
    while "victim" not in (plan := step(scheduler)).preempted:
        pass
    assert plan.preempted == ("victim",)
    assert [group.request_id for group in scheduler.waiting] == ["victim", "newcomer"]
    run_to_end(scheduler)


def test_every_name_in_the_config_has_a_policy():
    """Would catch a name that is accepted and then a KeyError."""
    assert set(POLICIES) == set(CHOICES["scheduling_policy"])


def test_the_engine_runs_by_priority_and_the_texts_stay_the_same(tiny_llama):
    """Would catch a priority that is lost on the way from `LLM.generate`, and one that changes a text."""
    options = {"num_blocks": 64, "block_size": 4, "max_model_len": 128, "max_num_seqs": 1}
    prompts = ["abc", "de", "fghi"]
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    want = LLM(str(tiny_llama), **options).generate(prompts, params, use_tqdm=False)
    llm = LLM(str(tiny_llama), scheduling_policy="priority", **options)
    got = llm.generate(prompts, params, use_tqdm=False, priority=[2, 0, 1])
    assert [output.outputs[0].text for output in got] == [output.outputs[0].text for output in want]
    start = [output.metrics.first_scheduled_time for output in got]
    assert start[1] < start[2] < start[0]


def test_priorities_that_mean_nothing_are_refused(tiny_llama):
    """Would catch a priority that is silently ignored, and a list of another length."""
    llm = LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=128)
    with pytest.raises(ValueError, match="Got priority 3 but Priority scheduling is not enabled"):
        llm.generate(["a", "b"], use_tqdm=False, priority=[0, 3])
    with pytest.raises(ValueError, match=r"prompts \(2\) and priority \(1\) must be the same"):
        llm.generate(["a", "b"], use_tqdm=False, priority=[0])
    with pytest.raises(TypeError, match="priority must be an int"):
        llm.llm_engine.add_request("0", "a", priority=1.5)
    with pytest.raises(ValueError, match="scheduling_policy must be one of fcfs, priority"):
        LLM(str(tiny_llama), scheduling_policy="fifo")
    assert not llm.llm_engine.has_unfinished_requests()
