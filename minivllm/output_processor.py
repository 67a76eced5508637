"""From sampled tokens to what the user sees: text, stop strings, log-probabilities with words, metrics.

The scheduler knows tokens only. This module turns them into text as they come, and is therefore the place
where a stop string is noticed. It works in two passes, because an output says whether its request is
finished: `read` takes in the new tokens and returns the stop strings it found, the scheduler ends these
sequences, and `make_outputs` then reports.

What is handed out depends on the request's `output_kind`::

    step                      1        2         3           4 (finished)
    CUMULATIVE               "The"    "The sky" "The sky is" "The sky is blue"
    DELTA                    "The"    " sky"    " is"        " blue"
    FINAL_ONLY                -        -         -           "The sky is blue"

Not all of the text may be handed out at once: while a request runs, the last characters of its text may turn
out to begin a stop string, and a stop string must not be shown, not even in part::

    stop="STOP"    text      "The sky ST"     held back   " ST"  (longest stop string - 1 characters)
                   shown     "The sky"        next token  "OP"  -> cut at "The sky ", finish_reason "stop"
                                                          "ARS" -> " STARS" is shown, but for its last 3

vLLM V1: `vllm/v1/engine/output_processor.py`, `vllm/v1/engine/logprobs.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minivllm.detokenizer import IncrementalDetokenizer, StopChecker
from minivllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, TokenLogprobs
from minivllm.sampling_params import RequestOutputKind
from minivllm.scheduler import Updated
from minivllm.scheduler_output import SchedulerOutput
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus
from minivllm.step_rules import Stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class _TextState:
    """How far one sequence has been turned into text, and how far it has been handed out."""

    detokenizer: IncrementalDetokenizer | None
    checker: StopChecker
    text: str = ""  # so far; empty without a tokenizer
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    num_tokens_read: int = 0
    cut: int | None = None  # where a stop string ended the text
    num_chars_sent: int = 0
    num_tokens_sent: int = 0


@dataclass
class _Request:
    """What is remembered about an unfinished request. Times are seconds of the engine's clock.

    `states` gets an entry when a sequence is first seen: for n completions in the step that ends the prompt,
    for beams at the end, and then only for those which become outputs.
    """

    group: SequenceGroup
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    states: dict[int, _TextState] = field(default_factory=dict)  # by seq_id
    prompt_logprobs: list[dict[int, Logprob] | None] = field(default_factory=list)
    num_prompt_logprobs_sent: int = 0


class OutputProcessor:
    """Keeps the text of every unfinished request and makes its outputs.

    It only reads sequences and groups; what it adds (text, where it was cut, how much of it has been handed
    out) lies in records of its own.

    Args:
        tokenizer: None: outputs have token ids and empty text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        self.tokenizer = tokenizer
        # Bounded, or a server that runs for months would grow without end.
        self.finished_metrics: deque[RequestMetrics] = deque(maxlen=10_000)
        self._requests: dict[str, _Request] = {}
        self._decoded: dict[int, str] = {}  # token id -> its text alone, for logprobs

    def add(self, group: SequenceGroup) -> None:
        """Expect outputs for a new request."""
        self._requests[group.request_id] = _Request(group)

    def note_scheduled(self, plan: SchedulerOutput, now: float) -> None:
        """Remember when each request ran for the first time: before that it was queueing."""
        for row in plan.scheduled:
            request = self._requests[row.request_id]
            if request.first_scheduled_time is None:
                request.first_scheduled_time = now

    def read(self, updated: Updated, now: float) -> list[Stop]:
        """Turn the new tokens of one step into text; returns the stop strings that ended a sequence.

        Args:
            updated: what `Scheduler.update_from_output` returned.
            now: seconds of the engine's clock.
        """
        stops = []
        for group, seqs in updated:
            request = self._requests[group.request_id]
            if request.first_token_time is None:
                request.first_token_time = now
            if not group.is_beam_search:  # hypotheses come and go; they become text at the end
                stops += [stop for seq in seqs if (stop := self._read_tokens(request, seq)) is not None]
        return stops

    def make_outputs(self, updated: Updated, now: float) -> list[RequestOutput]:
        """What the requests asked to see after a step whose tokens have been read.

        Returns:
            At most one output per request; none for a request that wants only its last one and runs on.
        """
        outputs = []
        for group, seqs in updated:
            kind = group.params.output_kind
            if kind is RequestOutputKind.FINAL_ONLY and not group.is_finished:
                continue
            # In deltas only the sequences that got a token have anything new to say. Cumulative outputs show
            # all n, the finished ones too: "everything so far" would shrink when a sibling ends.
            delta = kind is RequestOutputKind.DELTA
            request = self._requests[group.request_id]
            outputs.append(self._make_output(request, seqs if delta else group.seqs, delta, now))
        return outputs

    def finish_aborted(self, group: SequenceGroup, now: float) -> RequestOutput:
        """The last output of a request that was aborted: what there is of it.

        The whole text, even for a request that was handed deltas: this is what `abort_request` returns, not
        one more piece of a stream.
        """
        # A beam in mid-search is not an answer: even the best beam may be dropped in the next step.
        seqs = [] if group.is_beam_search else group.seqs
        return self._make_output(self._requests[group.request_id], seqs, delta=False, now=now)

    def reset(self) -> None:
        """Forget all unfinished requests."""
        self._requests.clear()

    # -- tokens to text -----------------------------------------------------------------------------

    def _state_of(self, request: _Request, seq: Sequence) -> _TextState:
        """The record of one sequence, made when it is first seen (n > 1 forks late).

        The text of a beam is decoded in one go: until the end, any beam may be dropped for another.
        """
        if seq.seq_id not in request.states:
            params, detokenizer, text = request.group.params, None, ""
            if self.tokenizer is not None and request.group.is_beam_search:
                with_eos = params.include_stop_str_in_output
                text = self.tokenizer.decode(seq.output_token_ids, skip_special_tokens=not with_eos)
            elif self.tokenizer is not None and params.detokenize:
                prompt = seq.token_ids[: seq.num_prompt_tokens]
                detokenizer = IncrementalDetokenizer(self.tokenizer, prompt, params.skip_special_tokens)
            checker = StopChecker(params.stop_strings, params.include_stop_str_in_output)
            request.states[seq.seq_id] = _TextState(detokenizer, checker, text)
        return request.states[seq.seq_id]

    def _read_tokens(self, request: _Request, seq: Sequence) -> Stop | None:
        """Take in the tokens of `seq` that have not been read; returns the stop string that ended it, if any.

        `seq` ends with these tokens already, and the scheduler has judged them by their ids. What is left is
        to judge their text, one token after the other: tokens behind a stop string do not count.

        Example, stop="b": the token "abc" gives the text "abc", the checker answers ("b", 1), and from then
        on the text ends at character 1: "a". The token stays in `token_ids`.
        """
        params, state = request.group.params, self._state_of(request, seq)
        # A stop token wins over a stop string that its own text would complete.
        by_token = seq.status is SequenceStatus.FINISHED_STOPPED
        for index in range(state.num_tokens_read, seq.num_output_tokens):
            state.num_tokens_read += 1
            is_last = state.num_tokens_read == seq.num_output_tokens
            if seq.sample_logprobs:
                state.logprobs.append(self._with_words(seq.sample_logprobs[index], params.detokenize))
            num_new = self._read_token(request, seq, index, is_last)
            # `<=`: a stop string in the first `min_tokens` tokens does not count. Without a new character
            # (half an emoji) there is no text that was not looked at before.
            if (by_token and is_last) or state.num_tokens_read <= params.min_tokens or not num_new:
                continue
            if (found := state.checker.check(state.text, num_new)) is not None:
                # Even if max_tokens ends `seq` in the same step: "stop" says more than "length", as in vLLM.
                string, state.cut = found
                return Stop(seq, string, state.num_tokens_read)
        return None

    def _read_token(self, request: _Request, seq: Sequence, index: int, is_last: bool) -> int:
        """Turn output token `index` of `seq` into text; returns the number of new characters."""
        state = request.states[seq.seq_id]
        if state.detokenizer is None:
            return 0  # no text: stop strings were refused when the request came in
        # A token that ended the text is not part of it, unless asked for.
        ended_by_it = is_last and seq.status is SequenceStatus.FINISHED_STOPPED
        if not ended_by_it or request.group.params.include_stop_str_in_output:
            state.detokenizer.append(seq.token_ids[seq.num_prompt_tokens + index])
        if is_last and seq.status.is_finished:
            state.detokenizer.flush()
        num_old, state.text = len(state.text), state.detokenizer.text
        return len(state.text) - num_old

    def _with_words(self, entry: TokenLogprobs, detokenize: bool) -> dict[int, Logprob]:
        """The dictionary users get for one position: the token that stands there, then the likeliest.

        k entries if the token is among the k likeliest, else k + 1: `setdefault` keeps the entry made first,
        which has the token's true rank.

        Example, k = 2, token 9 was drawn though it is only the 5th in rank, 4 and 7 are the likeliest:
        {9: rank 5, 4: rank 1, 7: rank 2}. Had 7 been drawn: {7: rank 2, 4: rank 1}.
        """
        word = self._word if detokenize and self.tokenizer is not None else lambda token_id: None
        result = {entry.token_id: Logprob(entry.logprob, entry.rank, word(entry.token_id))}
        for rank, (token_id, logprob) in enumerate(entry.top, start=1):
            result.setdefault(token_id, Logprob(logprob, rank, word(token_id)))
        return result

    def _word(self, token_id: int) -> str:
        """Text of a single token, remembered: the likeliest tokens are mostly the same few hundred."""
        if token_id not in self._decoded:
            self._decoded[token_id] = self.tokenizer.decode([token_id])
        return self._decoded[token_id]

    # -- text to outputs ----------------------------------------------------------------------------

    def _make_output(self, request: _Request, seqs: list[Sequence], delta: bool, now: float) -> RequestOutput:
        """An output with a completion of each of `seqs`; after the last one the request is forgotten."""
        group = request.group
        metrics = RequestMetrics(
            group.arrival_time,
            request.first_scheduled_time,
            request.first_token_time,
            finished_time=now if group.is_finished else None,
            num_output_tokens=max(seq.num_output_tokens for seq in group.seqs),
        )
        if group.is_finished:
            self.finished_metrics.append(metrics)
            del self._requests[group.request_id]
        # Each of these lists is a copy: users may change what they got. The dictionaries of log-probabilities
        # in them are the same in all outputs of a request; a long prompt has thousands.
        return RequestOutput(
            request_id=group.request_id,
            prompt=group.prompt,
            prompt_token_ids=group.seqs[0].token_ids[: group.num_prompt_tokens],
            prompt_logprobs=self._prompt_logprobs(request),
            outputs=[self._completion(request, seq, delta) for seq in seqs],
            finished=group.is_finished,
            metrics=metrics,
            num_cached_tokens=group.num_cached_tokens,
        )

    def _prompt_logprobs(self, request: _Request) -> list[dict[int, Logprob] | None] | None:
        """One entry per prompt token, None for the first; in deltas, only those not handed out yet."""
        params, known = request.group.params, request.prompt_logprobs
        if params.prompt_logprobs is None:
            return None
        if not known:
            known.append(None)  # no token comes before the first one, so none predicts it
        # A long prompt is computed in chunks, and each chunk brings its entries; those at hand stay.
        new = request.group.prompt_logprobs[len(known) - 1 :]
        known += [self._with_words(entry, params.detokenize) for entry in new]
        first = request.num_prompt_logprobs_sent if params.output_kind is RequestOutputKind.DELTA else 0
        request.num_prompt_logprobs_sent = len(known)
        return known[first:]

    def _completion(self, request: _Request, seq: Sequence, delta: bool) -> CompletionOutput:
        """One completion: everything, or what has not been handed out yet.

        What has been shown stays shown: `end` never falls behind `num_chars_sent`.

        In characters, for stop="STOP" (3 held back) and a text that grows step by step::

            text               "The sky"   "The sky ST"   "The sky STARS"   finished
            end                    4             7               10            13
            a delta shows       "The "         "sky"           " ST"         "ARS"

        Tokens are not held back: `token_ids` and `logprobs` may be ahead of `text`.
        """
        params, state = request.group.params, self._state_of(request, seq)
        end = len(state.text) if state.cut is None else state.cut
        if not seq.status.is_finished:
            end -= state.checker.num_held_back
        end = max(end, state.num_chars_sent)
        first_char, first_token = (state.num_chars_sent, state.num_tokens_sent) if delta else (0, 0)
        state.num_chars_sent, state.num_tokens_sent = end, seq.num_output_tokens
        wants_logprobs, is_beam = params.logprobs is not None, request.group.is_beam_search
        return CompletionOutput(
            index=seq.index,
            text=state.text[first_char:end],
            token_ids=seq.output_token_ids[first_token:],
            cumulative_logprob=seq.cumulative_logprob if wants_logprobs or is_beam else None,
            logprobs=state.logprobs[first_token:] if wants_logprobs else None,
            finish_reason=seq.status.finish_reason,
            stop_reason=seq.stop_reason,
        )
