"""From sampled tokens to what the user sees: text, stop strings, log-probabilities with words, metrics.

The scheduler knows tokens only. This module turns them into text as they come, and is therefore the place
where a stop string is noticed: it then tells the scheduler to finish the sequence.

What is handed out depends on the request's `output_kind`::

    step                      1        2         3           4 (finished)
    CUMULATIVE               "The"    "The sky" "The sky is" "The sky is blue"
    DELTA                    "The"    " sky"    " is"        " blue"
    FINAL_ONLY                -        -         -           "The sky is blue"

What may be handed out is not all there is: while a request runs, the last characters of its text may turn
out to begin a stop string, and then they must never have been shown::

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
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind
from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import SchedulerOutput
from minivllm.sequence import Sequence, SequenceGroup, SequenceStatus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class _Completion:
    """One completion as far as it has been turned into text, and as far as it has been handed out."""

    detokenizer: IncrementalDetokenizer | None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cut: int | None = None  # where a stop string ended the text
    num_chars_sent: int = 0
    num_tokens_sent: int = 0

    @property
    def text(self) -> str:
        """The text so far, empty without a tokenizer."""
        return "" if self.detokenizer is None else self.detokenizer.text


@dataclass
class _Request:
    """What is remembered about an unfinished request. Times are seconds of the engine's clock.

    `completions` fills as sequences are first seen: all n of them in the step that ends the prompt. Beams are
    not in it, since most of them never become an output.
    """

    group: SequenceGroup
    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    completions: dict[int, _Completion] = field(default_factory=dict)  # by seq_id
    prompt_logprobs: list[dict[int, Logprob] | None] = field(default_factory=list)
    num_prompt_logprobs_sent: int = 0


class OutputProcessor:
    """Keeps the text of every unfinished request and makes its outputs.

    It only reads sequences and groups; what it adds (text, where it was cut, how much of it has been handed
    out) lies in records of its own. One change it asks the scheduler for: to finish a sequence.

    Args:
        tokenizer: None: outputs have token ids and empty text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        self.tokenizer = tokenizer
        # Bounded, or a server that runs for months would grow without end.
        self.finished_metrics: deque[RequestMetrics] = deque(maxlen=10_000)
        self._requests: dict[str, _Request] = {}
        self._decoded: dict[int, str] = {}  # token id -> its text alone, for logprobs

    def add(self, group: SequenceGroup, arrival_time: float) -> None:
        """Expect outputs for a new request that arrived at `arrival_time` (seconds of the engine's clock)."""
        self._requests[group.request_id] = _Request(group, arrival_time)

    def note_scheduled(self, plan: SchedulerOutput, now: float) -> None:
        """Remember when each request ran for the first time: before that it was queueing."""
        for row in plan.scheduled:
            request = self._requests[row.group.request_id]
            if request.first_scheduled_time is None:
                request.first_scheduled_time = now

    def process(
        self, updated: list[tuple[SequenceGroup, list[Sequence]]], scheduler: Scheduler, now: float
    ) -> list[RequestOutput]:
        """Turn the tokens of one step into outputs; finishes sequences that reached a stop string.

        Args:
            updated: what `Scheduler.update_from_output` returned.
            scheduler: told about stop strings, so that the blocks are free before the next step.
            now: seconds of the engine's clock.

        Returns:
            At most one output a request; none for a request that wants only its last one and runs on.
        """
        stopped = False
        for group, seqs in updated:
            request = self._requests[group.request_id]
            if request.first_token_time is None:
                request.first_token_time = now
            if isinstance(group.params, BeamSearchParams):
                continue  # hypotheses come and go; they become text at the end
            for seq in seqs:
                stopped |= self._consume(request, seq, scheduler)
        # All stop strings first: whether a group of n is finished shows only when every member was looked at.
        if stopped:
            scheduler.remove_finished()
        outputs = (self._make_output(self._requests[group.request_id], seqs, now) for group, seqs in updated)
        return [output for output in outputs if output is not None]

    def finish_aborted(self, group: SequenceGroup, now: float) -> RequestOutput:
        """The last output of a request that was aborted: what there is of it.

        The whole text, even for a request that was handed deltas: this is what `abort_request` returns, not
        one more piece of a stream.
        """
        request = self._requests[group.request_id]
        # A beam in mid-search is no answer: the best of them may be dropped in the next step.
        if isinstance(group.params, BeamSearchParams):
            return self._finish(request, [], now)
        return self._finish(request, [self._complete(request, seq, delta=False) for seq in group.seqs], now)

    def reset(self) -> None:
        """Forget all unfinished requests."""
        self._requests.clear()

    # -- tokens to text -----------------------------------------------------------------------------

    def _completion(self, request: _Request, seq: Sequence) -> _Completion:
        """The record of one sequence, made when it is first seen (n > 1 forks late)."""
        if seq.seq_id not in request.completions:
            params, detokenizer = request.group.params, None
            if self.tokenizer is not None and params.detokenize:
                prompt = seq.token_ids[: seq.num_prompt_tokens]
                detokenizer = IncrementalDetokenizer(self.tokenizer, prompt, params.skip_special_tokens)
            request.completions[seq.seq_id] = _Completion(detokenizer)
        return request.completions[seq.seq_id]

    def _consume(self, request: _Request, seq: Sequence, scheduler: Scheduler) -> bool:
        """Take in the newest token of `seq`; True if a stop string finished it.

        Called once for each sampled token, when `seq` already ends with it and the scheduler has judged it by
        its id. Text is all that is left to judge.

        Example, stop="b": the token "abc" gives the text "abc", the checker answers ("b", 1), and from then
        on the text ends at character 1: "a". The token stays in `token_ids`; the blocks are free at once.
        """
        params = request.group.params
        completion = self._completion(request, seq)
        if seq.sample_logprobs:
            completion.logprobs.append(self._with_words(seq.sample_logprobs[-1]))
        if completion.detokenizer is None:
            return False  # no text: stop strings were refused when the request came in

        # A token that ended the text is no part of it, unless asked for. Nothing is searched for then: the
        # stop token wins over a stop string that its own text would complete.
        by_token = seq.status is SequenceStatus.FINISHED_STOPPED
        num_new = 0
        if not by_token or params.include_stop_str_in_output:
            num_new += len(completion.detokenizer.append(seq.token_ids[-1]))
        if seq.status.is_finished:
            num_new += len(completion.detokenizer.flush())
        # `<=`: the newest token is counted already, and a stop string in the first `min_tokens` tokens does
        # not count. No new character (half an emoji): nothing that was not looked at before.
        if by_token or seq.num_output_tokens <= params.min_tokens or not num_new:
            return False
        found = StopChecker(params.stop_strings, params.include_stop_str_in_output).check(
            completion.text, num_new
        )
        if found is None:
            return False
        # Even if max_tokens ended it in this same step: "stop" says more than "length", as in vLLM.
        stop, completion.cut = found
        scheduler.finish(seq, SequenceStatus.FINISHED_STOPPED, stop)
        return True

    def _with_words(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        """The dictionary users get for one position: the token that stands there, then the likeliest.

        k entries if the token is among the k likeliest, else k + 1: `setdefault` keeps the first, which has
        its true rank.

        Example, k = 2, token 9 was drawn though it is only the 5th in rank, 4 and 7 are the likeliest:
        {9: rank 5, 4: rank 1, 7: rank 2}. Had 7 been drawn: {7: rank 2, 4: rank 1}.
        """
        result = {entry.token_id: Logprob(entry.logprob, entry.rank, self._word(entry.token_id))}
        for rank, (token_id, logprob) in enumerate(entry.top, start=1):
            result.setdefault(token_id, Logprob(logprob, rank, self._word(token_id)))
        return result

    def _word(self, token_id: int) -> str | None:
        """Text of a single token, remembered: the likeliest tokens are mostly the same few hundred."""
        if self.tokenizer is None:
            return None
        if token_id not in self._decoded:
            self._decoded[token_id] = self.tokenizer.decode([token_id])
        return self._decoded[token_id]

    # -- text to outputs ----------------------------------------------------------------------------

    def _make_output(self, request: _Request, seqs: list[Sequence], now: float) -> RequestOutput | None:
        """The output that the request wants to see after this step, if any."""
        group = request.group
        if isinstance(group.params, BeamSearchParams):
            if not group.is_finished:
                return None
            return self._finish(request, [self._complete_beam(group, seq) for seq in group.seqs], now)
        # In deltas only those that got a token (`seqs`) have anything new to say. Cumulative outputs show all
        # n, the finished ones too: "everything so far" would shrink when a sibling ends.
        kind = group.params.output_kind
        if kind is RequestOutputKind.FINAL_ONLY and not group.is_finished:
            return None
        delta = kind is RequestOutputKind.DELTA
        completions = [self._complete(request, seq, delta) for seq in (seqs if delta else group.seqs)]
        if group.is_finished:
            return self._finish(request, completions, now)
        return self._request_output(request, completions, now=None)

    def _finish(self, request: _Request, completions: list[CompletionOutput], now: float) -> RequestOutput:
        """The last output; the request is forgotten."""
        output = self._request_output(request, completions, now)
        self.finished_metrics.append(output.metrics)
        del self._requests[request.group.request_id]
        return output

    def _request_output(
        self, request: _Request, completions: list[CompletionOutput], now: float | None
    ) -> RequestOutput:
        """An output with these completions; `now` is None while the request runs. Shares no list with us."""
        group = request.group
        metrics = RequestMetrics(
            request.arrival_time,
            request.first_scheduled_time,
            request.first_token_time,
            finished_time=now,
            num_output_tokens=sum(seq.num_output_tokens for seq in group.seqs),
        )
        return RequestOutput(
            request_id=group.request_id,
            prompt=group.prompt,
            prompt_token_ids=group.seqs[0].token_ids[: group.num_prompt_tokens],
            prompt_logprobs=self._prompt_logprobs(request),
            outputs=completions,
            finished=now is not None,
            metrics=metrics,
            num_cached_tokens=group.num_cached_tokens,
        )

    def _prompt_logprobs(self, request: _Request) -> list[dict[int, Logprob] | None] | None:
        """One entry a prompt token, None for the first; in deltas, only those not handed out yet."""
        params, known = request.group.params, request.prompt_logprobs
        if isinstance(params, BeamSearchParams) or params.prompt_logprobs is None:
            return None
        if not known:
            known.append(None)  # nothing comes before the first token that could predict it
        # A long prompt is computed in chunks, and its entries come with them; those at hand stay as they are.
        known += map(self._with_words, request.group.prompt_logprobs[len(known) - 1 :])
        first = request.num_prompt_logprobs_sent if params.output_kind is RequestOutputKind.DELTA else 0
        request.num_prompt_logprobs_sent = len(known)
        return known[first:]

    def _complete(self, request: _Request, seq: Sequence, delta: bool) -> CompletionOutput:
        """One completion: everything, or what has not been handed out yet.

        What has been shown stays shown: `end` never falls behind `num_chars_sent`.

        In characters, for stop="STOP" (3 held back) and a text that grows step by step::

            text               "The sky"   "The sky ST"   "The sky STARS"   finished
            end                    4             7               10            13
            a delta shows       "The "         "sky"           " ST"         "ARS"

        Tokens are not held back: `token_ids` and `logprobs` may be ahead of `text`.
        """
        params, completion = request.group.params, self._completion(request, seq)
        end = len(completion.text) if completion.cut is None else completion.cut
        if not seq.status.is_finished:
            end -= StopChecker(params.stop_strings, params.include_stop_str_in_output).num_held_back
        end = max(end, completion.num_chars_sent)
        first_char = completion.num_chars_sent if delta else 0
        first_token = completion.num_tokens_sent if delta else 0
        completion.num_chars_sent, completion.num_tokens_sent = end, seq.num_output_tokens
        wants_logprobs = params.logprobs is not None
        return CompletionOutput(
            index=seq.index,
            text=completion.text[first_char:end],
            token_ids=seq.output_token_ids[first_token:],
            cumulative_logprob=seq.cumulative_logprob if wants_logprobs else None,
            logprobs=completion.logprobs[first_token:] if wants_logprobs else None,
            finish_reason=seq.status.finish_reason,
            stop_reason=seq.stop_reason,
        )

    def _complete_beam(self, group: SequenceGroup, seq: Sequence) -> CompletionOutput:
        """One finished hypothesis of a beam search; its text is decoded in one go.

        Nothing of it could be decoded earlier: until the end, any beam may be dropped for another.
        """
        text = ""
        if self.tokenizer is not None:
            with_eos = group.params.include_stop_str_in_output
            text = self.tokenizer.decode(seq.output_token_ids, skip_special_tokens=not with_eos)
        return CompletionOutput(
            index=seq.index,
            text=text,
            token_ids=seq.output_token_ids,
            cumulative_logprob=seq.cumulative_logprob,
            finish_reason=seq.status.finish_reason,
            stop_reason=seq.stop_reason,
        )
