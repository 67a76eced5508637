"""What users type as a prompt: text, token ids, or a conversation, in each of the forms that are accepted.

    "Hi"   {"prompt": "Hi"}   [504, 6376]   {"prompt_token_ids": [504, 6376]}        one prompt each
    [{"role": "user", "content": "Hi"}]   --render_chat-->   {"prompt": "<|im_start|>user\\nHi...",
                                                              "prompt_token_ids": [1, 4093, ...]}

A conversation becomes text through the chat template that comes with the model, a program in the language
Jinja. If something is wrong with a conversation, the error names the message or the template at fault.

vLLM V1: `vllm/inputs/`, `vllm/entrypoints/chat_utils.py`.
"""

from __future__ import annotations

import operator
import re
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | list[int] | dict[str, Any]
Message = dict[str, Any]


def as_list(prompts: Prompt | list[Prompt]) -> list[Prompt]:
    """A single prompt as a list of one; a TypeError for what is neither a prompt nor a list.

    A list that begins with an int is one prompt of token ids, any other list is a list of prompts::

        "Hi"  ->  ["Hi"]          ("a", "b")  ->  ["a", "b"]
        [1, 2, 3]  ->  [[1, 2, 3]]       [[1, 2], [3]]  ->  [[1, 2], [3]]
    """
    if isinstance(prompts, str | dict):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompts must be a prompt or a list of prompts, got {type(prompts).__name__}.")
    is_one = len(prompts) > 0 and isinstance(prompts[0], Integral) and not isinstance(prompts[0], bool)
    return [list(prompts)] if is_one else list(prompts)


def as_conversations(messages: list[Message] | list[list[Message]]) -> list[list[Message]]:
    """One conversation as a list of one, each message checked and its content a string.

    A chat template would not notice a wrong key: in Jinja a missing value is an empty string, so a message
    without "content" becomes a prompt that looks right and asks nothing.

    Raises:
        TypeError: something that is not a list, not a conversation or not a message.
        ValueError: an empty list, in which there is no turn to answer; or content that is not text.
    """
    if not isinstance(messages, list | tuple):
        raise TypeError(f"messages must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise ValueError("messages is empty: give at least one conversation with one message.")
    # A conversation is a list of dicts; several are a list of lists. The first element tells them apart.
    conversations = messages if isinstance(messages[0], list | tuple) else [messages]
    for conversation in conversations:
        if not isinstance(conversation, list | tuple):
            raise TypeError(f"a conversation must be a list of messages, got {type(conversation).__name__}.")
        if not conversation:
            raise ValueError("a conversation is empty: give at least one message.")
    return [[_with_text(message) for message in conversation] for conversation in conversations]


def _with_text(message: Message) -> Message:
    """The message with its content as a string; parts of text are joined by line breaks, as in vLLM.

    Keys other than role and content stay for the template to read. Example: the content
    `[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]` becomes "a\\nb".
    """
    match message:
        case {"role": str(), "content": str()}:
            return message
        case {"role": str(), "content": [_, *_] as parts}:
            return {**message, "content": "\n".join(map(_text_of, parts))}
    raise TypeError(f'a message must be {{"role": str, "content": str}}, got {message!r}.')


def _text_of(part: object) -> str:
    """The text of one part of a message's content; ValueError for a picture, a sound and the like."""
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    kind = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f'content must be text or {{"type": "text", "text": str}}, got a part of type {kind!r}.')


def render_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[Message],
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> Prompt:
    """One conversation as a prompt, through the chat template.

    Args:
        messages: one conversation, see `as_conversations`.
        chat_template: a Jinja template in place of the tokenizer's own.
        add_generation_prompt: end the prompt where the assistant's turn begins.
        continue_final_message: let the model go on with the last message; the turn is then not ended.

    Returns:
        `{"prompt": the rendered text, "prompt_token_ids": its tokens}`.

    Raises:
        TypeError: something in `messages` is not a message.
        ValueError: the template is missing or fails; the message quotes the template's own error.
    """
    (conversation,) = as_conversations([messages])
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
        )
    except Exception as error:  # a template is a program, which can fail in every way
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"the chat template cannot render these messages ({reason}).") from error
    # The template has put the special tokens in already.
    return {"prompt": text, "prompt_token_ids": encode(tokenizer, text, add_special_tokens=False)}


def encode(tokenizer: PreTrainedTokenizerFast, text: str, add_special_tokens: bool) -> list[int]:
    """The tokens of a text; a ValueError with the place of a lone surrogate, which is not Unicode."""
    if half := re.search("[\ud800-\udfff]", text):
        where = f"{half[0]!r} at position {half.start()}"
        raise ValueError(f"text must be Unicode, but {where} is a lone surrogate, half of a character.")
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def list_of_ints(token_ids: object) -> list[int]:
    """`token_ids` as a list of Python ints; numpy's integers and tensors of one integer are converted.

    It is a new list: a caller that goes on using the old one must not change a queued prompt.

    Raises:
        TypeError: not a list, tuple, array or tensor; or an element is not an integer (a bool is not one).
    """
    if hasattr(token_ids, "tolist"):  # numpy arrays and torch tensors
        token_ids = token_ids.tolist()
    if not isinstance(token_ids, list | tuple):
        raise TypeError(f"prompt_token_ids must be a list of ints, got {type(token_ids).__name__}.")
    for token in token_ids:
        if isinstance(token, bool) or not _is_integer(token):
            raise TypeError(f"prompt_token_ids must contain only integers, got {token!r}.")
    return list(map(operator.index, token_ids))


def _is_integer(token: object) -> bool:
    """Whether Python would accept `token` as an index: ints, numpy's integers, a tensor of one integer."""
    try:
        operator.index(token)
    except TypeError:
        return False
    return True
