"""Rounds that count: chosen by the machine's memory, never by what was measured."""

import pytest
import torch

from minivllm.bench.steady import PATIENCE_SECONDS, Dropout, alike, bandwidth_meter, describe, in_steady_turns


def scripted(*values):
    """A bandwidth meter that gives these values, one after the other."""
    return iter(values).__next__


def turns(log):
    """Two functions that note their names; each result is the number of the call."""
    return {name: lambda name=name: log.append(name) or len(log) for name in "ab"}


def test_the_most_rounds_that_are_alike_count():
    """Would catch rounds of two speeds counted together, and a round kept in which the speed changed."""
    assert alike([[50, 48], [78, 50], [49, 51]]) == [0, 2]
    assert alike([[78, 77], [48, 49], [50, 51], [79, 78], [47, 48]]) == [1, 2, 4]
    assert alike([[78, 77], [48, 49]]) == [0]  # equally many: the first
    assert alike([[50, 80], [48, 80]]) == [0]  # nothing is alike: one round, of which no ratio is quoted
    assert alike([]) == []


def test_the_limit_is_between_the_extremes_and_not_between_neighbours():
    """Would catch a chain: 50 is like 60 and 60 is like 72, but 50 is not like 72."""
    assert alike([[50], [60], [72]]) == [0, 1]
    assert alike([[72], [60], [50]]) == [0, 1]


def test_steady_rounds_are_as_many_as_asked_for():
    """Would catch rounds added although the memory stayed as it was, or an order other than turns."""
    log = []
    steady = in_steady_turns(turns(log), 3, scripted(*[50.0] * 9))
    assert log == ["a", "b"] * 3
    assert steady.results == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert steady.kept == [0, 1, 2]


def test_a_round_with_a_change_is_set_aside_and_replaced():
    """Would catch results that belong to another round than the bandwidth which chose them."""
    log = []
    bandwidths = [50.0, 50.0, 50.0, 50.0, 50.0, 80.0, 80.0, 80.0, 80.0, 51.0, 49.0, 50.0]
    steady = in_steady_turns(turns(log), 2, scripted(*bandwidths))
    assert steady.kept == [0, 3]
    assert steady.results == {"a": [1, 7], "b": [2, 8]}
    assert steady.bandwidths == [bandwidths[i : i + 3] for i in (0, 3, 6, 9)]
    assert describe(steady.as_json()) == (
        "memory was read at 49 to 51 GB/s in the 2 rounds that count; 2 more were set aside, with 50 to 80 GB/s"
    )


def test_a_machine_that_never_rests_ends_the_benchmark():
    """Would catch a benchmark that waits forever for a quiet machine, and one that throws away what it has:
    then all rounds count.
    """
    log = []
    now = scripted(0.0, 0.0, 0.0, PATIENCE_SECONDS - 1, PATIENCE_SECONDS)
    steady = in_steady_turns(turns(log), 2, scripted(*[50.0, 80.0, 50.0] * 4), clock=now)
    assert log == ["a", "b"] * 3
    assert steady.kept == [0, 1, 2] and steady.results == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_what_counts_so_far_is_told_after_each_round():
    """Would catch hours of measuring of which nothing is written before the end."""
    told, bandwidths = [], scripted(50.0, 50.0, 50.0, 50.0, 50.0, 80.0, 50.0, 50.0, 50.0)
    final = in_steady_turns(turns([]), 2, bandwidths, told.append)
    assert [so_far.kept for so_far in told] == [[0], [0, 1], [0, 2]]
    assert [so_far.results["b"] for so_far in told] == [[2], [2, 4], [2, 6]]
    assert [len(so_far.bandwidths) for so_far in told] == [1, 2, 3]  # each a list of its own
    assert told[-1] == final


def test_a_turn_that_drops_out_takes_no_other_with_it():
    """Would catch rounds of two lost with a third, half of its own counted, or a call after it has given up."""
    log = []

    def c():
        log.append("c")
        if log.count("c") == 2:
            raise Dropout("c")
        return 0

    steady = in_steady_turns({"c": c} | turns(log), 3, lambda: 50.0)
    assert log == ["c", "a", "b", "c", "a", "b", "a", "b"]
    assert steady.kept == [0, 1, 2] and set(steady.results) == {"a", "b"}
    assert steady.results["a"] == [2, 5, 7]
    assert in_steady_turns({"c": lambda: c()}, 3, lambda: 50.0).results == {"c": [0, 0, 0]}
    log[:] = ["c"]
    assert in_steady_turns({"c": c}, 3, lambda: 50.0).results == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_meter_reads_memory(threads):
    """Would catch bytes in the place of gigabytes, and a time in the place of a rate."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert 0.1 < bandwidth_meter(torch.device("cpu"))() < 2000
    finally:
        torch.set_num_threads(before)
