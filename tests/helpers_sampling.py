"""Rows of a batch for tests of the sampler, made without a scheduler; a counter of calls into torch."""

from torch.overrides import TorchFunctionMode

from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.sequence import Sequence, SequenceGroup


def make_row(
    params=None, prompt=(1,), output=(), *, seed=0, num_samples=1, stop_token_ids=(), bad_words=(), **options
):
    """A row that has caught up: `num_samples` tokens are to be sampled after prompt and output.

    `options` are fields of `SamplingParams`, in place of `params`.
    """
    params = SamplingParams(**({"max_tokens": None} | options)) if params is None else params
    seq = Sequence(0, list(prompt), seed)
    for token in output:
        seq.append(token)
    group = SequenceGroup(
        request_id="0",
        prompt=None,
        seqs=[seq],
        params=params,
        max_num_tokens=10_000,
        stop_token_ids=frozenset(stop_token_ids),
        bad_words_token_ids=tuple(map(tuple, bad_words)),
    )
    seq.num_computed_tokens = len(seq) - 1
    return group.scheduled(seq, 1, num_samples, block_ids=(0,))


def make_beam_row(width, num_stop_tokens=0):
    """A row of a beam search."""
    return make_row(BeamSearchParams(width, max_tokens=8), stop_token_ids=range(num_stop_tokens))


class CountCalls(TorchFunctionMode):
    """Notes the name of every torch function that is called inside the `with`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ != "__get__":  # `.shape`, `.device` and the like
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))
