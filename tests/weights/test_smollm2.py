"""The real model: the engine says what `transformers` says."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from minivllm import LLM, SamplingParams

pytestmark = pytest.mark.model

PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
    "def fibonacci(n):\n",
    "In a village at the foot of the mountains there lived",
    "Water boils at a temperature of",
    "1, 1, 2, 3, 5, 8,",
]
NUM_TOKENS = 48


@pytest.fixture(scope="module")
def hugging_face(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # go on after the end, as ignore_eos does
    return model


@pytest.fixture(scope="module")
def llm(smollm2):
    return LLM(str(smollm2), num_blocks=256, max_model_len=512)


def assert_greedy(ours, prompt, model, tolerance=1e-3):
    """Each token is the model's own best after the prompt and the tokens before it, or tied with the best.

    By induction `ours` is what a greedy loop over the model writes; all its steps in one forward pass (causal
    attention: row t knows nothing of the tokens after t). Returns the positions of ties.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
    ties = []
    for position, (token, row) in enumerate(zip(ours, logits, strict=True)):
        best = row.argmax().item()
        gap = (row[best] - row[token]).item()
        assert gap < tolerance, f"at {position}: {token} is not {best}, the logits differ by {gap}"
        if token != best:
            ties.append(position)
    return ties


def test_greedy_tokens_equal_hugging_faces(llm, hugging_face, capsys):
    """Would catch what is wrong only with real weights, 30 layers and 9 query heads on 3 KV heads."""
    tokenizer = llm.get_tokenizer()
    outputs = llm.generate(
        PROMPTS, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True), use_tqdm=False
    )
    ties = {}
    for text, output in zip(PROMPTS, outputs, strict=True):
        prompt, ours = tokenizer.encode(text), output.outputs[0].token_ids
        assert output.prompt_token_ids == prompt and len(ours) == NUM_TOKENS
        if found := assert_greedy(ours, prompt, hugging_face):
            ties[text] = found
    with capsys.disabled():
        print(f"\n{len(PROMPTS)} prompts x {NUM_TOKENS} tokens equal Hugging Face's; ties: {ties or 'none'}")


def test_one_forward_pass_says_what_generate_writes(llm, hugging_face):
    """Would catch a comparison that is not Hugging Face's greedy loop: its own text passes, token for token."""
    prompt = llm.get_tokenizer().encode(PROMPTS[2])
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    with torch.inference_mode():
        text = hugging_face.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    assert assert_greedy(text[len(prompt) :], prompt, hugging_face) == []
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    (ours,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    assert ours.outputs[0].token_ids == text[len(prompt) :]


def test_a_wrong_token_is_not_taken_for_a_tie(llm, hugging_face):
    """Negative control of the comparison above: a token beside the right one, a zero, the text one token late."""
    prompt = llm.get_tokenizer().encode(PROMPTS[2])
    right = llm.generate(
        {"prompt_token_ids": prompt}, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False
    )[0].outputs[0].token_ids  # fmt: skip
    assert assert_greedy(right, prompt, hugging_face) == []
    for position in range(4):
        for token in (right[position] + 1, 0):
            wrong = [*right[:position], token, *right[position + 1 :]]
            with pytest.raises(AssertionError, match=f"at {position}"):
                assert_greedy(wrong, prompt, hugging_face)
    with pytest.raises(AssertionError, match="at 0"):
        assert_greedy(right[1:], prompt, hugging_face)


def test_the_chat_answer_of_the_readme(llm):
    """Would catch a chat template that is applied twice, or an end-of-sequence token that is missed."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    (completion,) = output.outputs
    assert completion.text == "The capital of France is Paris."
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_text_is_what_the_tokenizer_decodes(llm):
    """Would catch text that is lost or doubled between tokens, with characters of several bytes."""
    prompts = [
        "Translate to Chinese: good morning ->",
        "Some emoji: 😀😃😄",
        "Ein Gedicht über Bäume und Flüsse:",
    ]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False):
        (completion,) = output.outputs
        assert completion.text == llm.get_tokenizer().decode(completion.token_ids, skip_special_tokens=True)


def test_streamed_pieces_join_to_the_whole_text(llm):
    """Would catch a stream that drops or repeats characters at its seams."""
    params = SamplingParams(temperature=0, max_tokens=30)
    (whole,) = llm.generate(PROMPTS[3], params, use_tqdm=False)
    pieces = [output.outputs[0].text for output in llm.stream(PROMPTS[3], params)]
    assert "".join(pieces) == whole.outputs[0].text
    assert len(pieces) > 20
