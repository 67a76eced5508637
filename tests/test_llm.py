"""`LLM` as a user meets it: forms of prompts, errors before anything happens, streams, interrupts."""

import json
import sys
from pathlib import Path

import pytest

import minivllm
from minivllm import LLM, BeamSearchParams, RequestOutputKind, SamplingParams


@pytest.fixture
def llm(tiny_llama):
    """A fresh engine; afterwards nothing may be left in it."""
    llm = LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=200)
    yield llm
    assert_nothing_is_left(llm)


def assert_nothing_is_left(llm):
    """No request, block, text or mailbox, wherever one could be forgotten."""
    engine, loop = llm.llm_engine, llm.engine_loop
    scheduler, kv = engine.scheduler, engine.scheduler.kv
    kv.check_invariants()
    assert not (scheduler.groups or scheduler.waiting or scheduler.running or scheduler.swapped)
    assert kv.pool.num_used == kv.cpu_pool.num_used == 0
    assert not (kv.block_tables or kv.swapped_tables or kv.in_flight)
    assert not engine.output_processor._requests
    assert not (loop._mailboxes or loop._left or loop._line)


GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


def test_every_form_of_prompt_gives_the_same_tokens(llm):
    """Would catch a form that is tokenized twice, or not at all."""
    ids = llm.get_tokenizer().encode("hello")
    forms = [
        "hello",
        {"prompt": "hello"},
        {"prompt_token_ids": ids},
        {"prompt": "hello", "prompt_token_ids": ids},
    ]
    outputs = llm.generate(forms, GREEDY, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert [output.prompt for output in outputs] == ["hello", "hello", None, "hello"]
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].text == texts(outputs)[0]


def test_results_are_in_the_order_of_the_prompts(llm):
    """Would catch completion order (as in vLLM 0.1.0), and ids sorted as strings ("10" before "9")."""
    prompts = [f"prompt number {index}" for index in range(12)]
    params = [SamplingParams(temperature=0, max_tokens=12 - index, ignore_eos=True) for index in range(12)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(12, 0, -1))


def test_max_tokens_is_sixteen_unless_asked(llm):
    """Would catch another default: users of vLLM know this one (and trip over it)."""
    (output,) = llm.generate("a", SamplingParams(temperature=0, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 16
    assert output.outputs[0].finish_reason == "length"


def test_max_tokens_none_goes_up_to_the_models_length(llm):
    """Would catch a sequence that grows past max_model_len, or stops one short of it."""
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    (output,) = llm.generate({"prompt_token_ids": [1] * 190}, params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 10


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        ([], [GREEDY], ValueError, r"The lengths of prompts \(0\) and params \(1\) must be the same\."),
        (["a", "b"], [GREEDY], ValueError, r"The lengths of prompts \(2\) and params \(1\) must be the same\."),
        (["a", ""], GREEDY, ValueError, "The decoder prompt cannot be empty"),
        (["a", {"prompt_token_ids": []}], GREEDY, ValueError, "The decoder prompt cannot be empty"),
        (["a", {"prompt_token_ids": [258]}], GREEDY, ValueError, r"Token id 258 is out of vocabulary \(0 to 257\)"),
        (["a", {"prompt_token_ids": [-1]}], GREEDY, ValueError, "Token id -1 is out of vocabulary"),
        (["a", {"prompt_token_ids": [1] * 201}], GREEDY, ValueError,
         r"The decoder prompt \(length 201\) is longer than the maximum model length of 200"),
        (["a", {"prompt_token_ids": "abc"}], GREEDY, TypeError, "prompt_token_ids must be a list of ints, got str"),
        (["a", {"prompt_token_ids": [1.5]}], GREEDY, TypeError, "must contain only integers, got 1.5"),
        (["a", {1: 2, "text": "b"}], GREEDY, ValueError, r"got the keys \['1', 'text'\]"),
        (["a", {"prompt": 7, "prompt_token_ids": [1]}], GREEDY, TypeError, "text of a prompt must be a string, got int"),
        (["a", {"text": "b"}], GREEDY, ValueError, r"needs \"prompt\" or \"prompt_token_ids\", got the keys"),
        (["a", 7], GREEDY, TypeError, "a prompt must be a string, .* got int"),
        (7, GREEDY, TypeError, "prompts must be a prompt or a list of prompts, got int"),
        ("a", "greedy", TypeError, "sampling_params must be SamplingParams, got str"),
        ("a", {"temperature": 0}, TypeError, "sampling_params must be SamplingParams, got dict"),
        ("a", BeamSearchParams(2, 4), TypeError, "sampling_params must be SamplingParams, got BeamSearchParams"),
        ("a", SamplingParams(logprobs=21), ValueError,
         "Requested sample logprobs of 21, which is greater than max allowed: 20"),
        ("a", SamplingParams(prompt_logprobs=-1), ValueError, "Requested prompt logprobs of 258, which is greater"),
        ("a", SamplingParams(logit_bias={300: 1.0}), ValueError, r"token_id\(s\) \[300\] in logit_bias contain out-of-vocab"),
        ("a", SamplingParams(allowed_token_ids=[300]), ValueError, "allowed_token_ids contains out-of-vocab token id!"),
        ("a", SamplingParams(stop_token_ids=[300]), ValueError, r"token_id\(s\) \[300\] in stop_token_ids contain out-of-vocab"),
        ("a", SamplingParams(n=65), ValueError, r"asks for 65 sequences at once|may need"),
        ("a", SamplingParams(n=2, seed=0, max_tokens=150), ValueError, r"may need 76 KV blocks of 4 tokens \(2 x"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_before_anything_happens(llm, prompts, params, error, message):
    """Would catch the first prompt being queued although the second is refused, and unhelpful texts."""
    with pytest.raises(error, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert texts(llm.generate("a", GREEDY, use_tqdm=False)) == texts(
        llm.generate("a", GREEDY, use_tqdm=False)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_nm_seqs": 3}, TypeError, "unknown engine option max_nm_seqs. Known options: .*max_num_seqs"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 1.5}, TypeError, "block_size must be an int, but is of type float"),
        ({"num_blocks": True}, TypeError, "num_blocks must be an int, but is of type bool"),
        ({"dtype": "float64"}, ValueError, "dtype must be one of auto, float32, float16, bfloat16"),
        ({"device": "tpu"}, ValueError, "device must be one of auto, cpu, cuda"),
        ({"attention_backend": "flash"}, ValueError, "attention_backend must be one of auto, torch, .*triton, got 'flash'"),
        ({"enable_prefix_caching": "False"}, TypeError, "enable_prefix_caching must be True or False, got 'False'"),
        ({"gpu_memory_utilization": "0.9"}, TypeError, "gpu_memory_utilization must be a number, but is of type str"),
        ({"tokenizer": 5}, TypeError, "tokenizer must be a name or a path, got 5"),
        ({"num_blocks": 10**13}, ValueError, "No memory for the KV cache: 10000000000000 blocks take .* bytes. Lower"),
        ({"num_blocks": 10**30}, ValueError, "No memory for the KV cache: 1000"),
        ({"gpu_memory_utilization": 1.5}, ValueError, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"preemption_mode": "swap"}, ValueError, "needs swap_space_bytes > 0"),
        ({"preemption_mode": "swap", "swap_space_bytes": 5}, ValueError, r"swap_space_bytes \(5\) holds no block"),
        ({"num_blocks": 3, "kv_cache_memory_bytes": 9}, ValueError, "not both"),
        ({"num_blocks": None, "kv_cache_memory_bytes": 9}, ValueError, "No memory for the KV cache: 9 bytes are"),
        ({"max_model_len": 513}, ValueError, r"max_model_len \(513\) is greater than the derived max_model_len"),
        ({"max_num_batched_tokens": 8}, ValueError, r"max_num_batched_tokens \(8\) must be greater than or equal"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_by_name(tiny_llama, options, error, message):
    """Would catch an unknown key that is silently dropped, and a wrong value that fails somewhere else."""
    with pytest.raises(error, match=message):
        LLM(str(tiny_llama), **options)


def test_without_a_tokenizer_token_ids_work_and_text_is_refused(tiny_llama):
    """Would catch skip_tokenizer_init that still needs a tokenizer to detokenize."""
    llm = LLM(str(tiny_llama), skip_tokenizer_init=True, num_blocks=16)
    (output,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, GREEDY, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6
    assert output.outputs[0].text == ""
    with pytest.raises(ValueError, match="skip_tokenizer_init=True"):
        llm.generate("text", GREEDY, use_tqdm=False)
    with pytest.raises(ValueError, match="stop strings and bad_words need a tokenizer"):
        llm.generate({"prompt_token_ids": [1]}, SamplingParams(stop="x"), use_tqdm=False)
    with pytest.raises(ValueError, match="it has no tokenizer"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_chat_applies_the_template_once(llm):
    """Would catch special tokens that are added a second time by the tokenizer."""
    conversation = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    want = llm.get_tokenizer().apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )
    assert output.prompt_token_ids == want
    outputs = llm.chat([conversation, [*conversation, {"role": "assistant", "content": "yo"}]], GREEDY, False)
    assert len(outputs) == 2
    with pytest.raises(ValueError, match="messages is empty"):
        llm.chat([])


HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ("hi", TypeError, "messages must be a list of messages, got str"),
        (HI, TypeError, "messages must be a list of messages, got dict"),
        ([], ValueError, "messages is empty"),
        ([[]], ValueError, "a conversation is empty"),
        ([[HI], HI], TypeError, "a conversation must be a list of messages, got dict"),
        ([HI, "hi"], TypeError, r"a message must be .*, got 'hi'"),
        ([{}], TypeError, r"a message must be .*, got {}"),
        ([{"role": "user"}], TypeError, r"a message must be .*, got {'role': 'user'}"),
        ([{"role": "user", "content": None}], TypeError, "a message must be"),
        ([{"role": "user", "content": []}], TypeError, "a message must be"),
        ([{"role": "user", "content": ["hi"]}], ValueError, "content must be text or .*, got a part of type 'hi'"),
    ],
)  # fmt: skip
def test_a_bad_message_is_refused_before_the_template_swallows_it(llm, messages, error, message):
    """Would catch a prompt made of nothing: in Jinja a missing "content" is an empty string."""
    with pytest.raises(error, match=message):
        llm.chat(messages, GREEDY, use_tqdm=False)


@pytest.mark.parametrize("model", [None, 5, "", b"m"])
def test_a_model_that_is_no_name_is_refused(model):
    """Would catch None looked for as a folder called "None"."""
    with pytest.raises(TypeError, match="model must be a name or a path, got"):
        LLM(model)


@pytest.mark.parametrize(
    "prompts", [[""], ["abc", ""], ["abc", "x" * 600], ["abc", {"prompt_token_ids": [999]}]]
)
def test_a_refused_call_does_not_change_what_the_next_one_draws(tiny_llama, prompts):
    """Would catch a refused request, or those queued before it, using up seeds and request ids."""
    params = SamplingParams(max_tokens=12, ignore_eos=True)

    def draw(refused):
        llm = LLM(str(tiny_llama), num_blocks=64)
        for bad in refused:
            with pytest.raises(ValueError):
                llm.generate(bad, params, use_tqdm=False)
        return [
            (output.request_id, output.outputs[0].token_ids)
            for output in llm.generate(["abc", "abc"], params, use_tqdm=False)
        ]

    want = draw([])
    assert want[0][1] != want[1][1], "two requests have two seeds"
    assert draw([prompts, prompts]) == want


def test_a_request_too_large_for_the_pool_leaves_those_before_it_unqueued(tiny_llama):
    """Would catch the pool being asked only after the first requests have been queued, seeds and all."""
    llm = LLM(str(tiny_llama), num_blocks=2)
    params = [SamplingParams(max_tokens=4), SamplingParams(max_tokens=100)]
    want = LLM(str(tiny_llama), num_blocks=2).generate("abc", params[0], use_tqdm=False)
    with pytest.raises(ValueError, match="request '1' may need 7 KV blocks"):
        llm.generate(["abc", "abc"], params, use_tqdm=False)
    got = llm.generate("abc", params[0], use_tqdm=False)
    assert (texts(got), got[0].request_id) == (texts(want), "0")


@pytest.mark.parametrize("end", ["close", "throw", "delete"])
def test_however_a_stream_is_left_nothing_stays(llm, end):
    """Would catch requests that run on for a generator that nothing holds (the fixture checks the pool)."""
    stream = llm.stream(["abc", "de"], SamplingParams(n=3, max_tokens=40, ignore_eos=True))
    next(stream)
    assert llm.llm_engine.has_unfinished_requests()
    if end == "close":
        stream.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            stream.throw(KeyError("thrown in"))
    else:
        del stream
    assert not llm.llm_engine.has_unfinished_requests()
    assert_nothing_is_left(llm)


def test_generate_may_run_inside_a_stream(llm):
    """Would catch a nested call that takes the stream's outputs, or waits for it."""
    want = "".join(texts(llm.generate("abc", GREEDY, use_tqdm=False)))
    pieces = []
    for output in llm.stream("abc", GREEDY):
        pieces.append(output.outputs[0].text)
        assert len(texts(llm.generate("other", GREEDY, use_tqdm=False))) == 1
    assert "".join(pieces) == want


def test_default_sampling_params_come_from_the_models_generation_config(tiny_llama, tmp_path):
    """Would catch None meaning something else than in vLLM."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"temperature": 0.6, "top_p": 0.9, "top_k": 40}))
    llm = LLM(str(folder), num_blocks=16)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.6, top_p=0.9, top_k=40)


def test_leaving_a_stream_early_frees_its_blocks(llm):
    """Would catch requests that run on without a reader (the fixture checks the pool)."""
    for count, _ in enumerate(llm.stream(["abc", "def"], SamplingParams(temperature=0, max_tokens=50))):
        if count == 3:
            break


def test_two_open_streams_do_not_steal_each_others_outputs(llm):
    """Would catch a step run for one stream that drops, or hangs, the other."""
    want = texts(llm.generate(["abc", "wxyz"], GREEDY, use_tqdm=False))
    first, second = llm.stream("abc", GREEDY), llm.stream("wxyz", GREEDY)
    pieces = ["", ""]
    for _ in range(3):
        pieces[0] += next(first).outputs[0].text
    for output in second:
        pieces[1] += output.outputs[0].text
    for output in first:
        pieces[0] += output.outputs[0].text
    assert pieces == want


def test_a_request_aborted_from_elsewhere_does_not_hang_its_stream(llm):
    """Would catch an endless loop of empty steps."""
    stream = llm.stream("abc", GREEDY)
    request_id = next(stream).request_id
    llm.llm_engine.abort_request(request_id)
    with pytest.raises(RuntimeError, match=f"requests {request_id} are no longer in the engine"):
        list(stream)


def test_ctrl_c_leaves_the_llm_usable(llm, monkeypatch):
    """Would catch requests of an interrupted call that finish inside the next one."""
    want = texts(llm.generate(["abc", "def"], GREEDY, use_tqdm=False))
    original, calls = llm.llm_engine.runner.execute_model, []

    def interrupted(plan):
        calls.append(plan)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(plan)

    monkeypatch.setattr(llm.llm_engine.runner, "execute_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["abc", "def"], GREEDY, use_tqdm=False)
    assert texts(llm.generate(["abc", "def"], GREEDY, use_tqdm=False)) == want


def test_progress_bar_counts_prompts_and_speed(llm, capsys):
    """Would catch a bar that counts steps, or is shown although it was turned off."""
    llm.generate(["a", "b", "c"], GREEDY)
    shown = capsys.readouterr().err
    assert "Processed prompts: 100%" in shown
    assert "3/3" in shown
    assert "est. speed input: " in shown and "toks/s, output: " in shown
    llm.generate(["a"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_beam_search_takes_beam_search_params_only(llm):
    """Would catch SamplingParams that are silently run as something else."""
    (output,) = llm.beam_search("abc", BeamSearchParams(beam_width=3, max_tokens=5))
    assert len(output.outputs) == 3
    assert output.finished
    assert all(completion.cumulative_logprob < 0 for completion in output.outputs)
    with pytest.raises(TypeError, match="params must be BeamSearchParams, got SamplingParams"):
        llm.beam_search("abc", SamplingParams())


def test_public_names_are_vllms():
    """Would catch a name that people type and that is gone."""
    assert {"LLM", "SamplingParams", "BeamSearchParams", "LLMEngine", "RequestOutput"} <= set(
        minivllm.__all__
    )
    assert RequestOutputKind.DELTA in minivllm.RequestOutputKind
    for name in minivllm.__all__:
        assert getattr(minivllm, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'minivllm' has no attribute 'LMM'"):
        _ = minivllm.LMM


def own_frames(frame):
    """Names of the functions of minivllm that are running, from the innermost to `LLM.generate`."""
    package = str(Path(minivllm.__file__).parent)
    names = []
    while frame is not None and (not names or names[-1] != "LLM.generate"):
        if frame.f_code.co_filename.startswith(package):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names


def test_at_most_eleven_frames_lead_from_generate_to_the_attention_kernel(tiny_llama):
    """Would catch a layer that only forwards, between what a user calls and what computes."""
    llm = LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=200, attention_backend="numba")
    kernel, stacks = llm.llm_engine.attention.decode_kernel, []

    def noting_kernel(*arguments):
        stacks.append(own_frames(sys._getframe()))
        return kernel(*arguments)

    llm.llm_engine.attention.decode_kernel = noting_kernel
    llm.generate("hello", GREEDY, use_tqdm=False)
    assert stacks
    for stack in stacks:
        assert stack[-1] == "LLM.generate"
        assert "LLMEngine.step" in stack and "LlamaModel.forward" in stack  # the count has not lost any
        assert len(stack) <= 11, stack
