"""Your own serving engine. The six milestones are in README.md beside this file.

    python -m minivllm.course project check 1        the tests of milestone 1; later: 2 (with those of 1), 3, ...

The class `Engine` with `generate` is all that the tests know. Everything else is yours: more classes, more files
beside this one, other names. From the project only the four names below may be imported; what a scheduler, a block
pool or a block table is, you write.
"""

from minivllm.course.project import GlassModel, Limits, Model, Row


class Engine:
    """Generates text for many prompts on one model.

    Args:
        model: `model.forward(rows)` computes the new tokens of every row and returns one token id per row: the
            likeliest after the row's last token. `model.num_slots` is the size of its memory.
        limits: `max_model_len` (from milestone 2 on), `max_num_seqs` (3), `block_size` (5),
            `max_num_batched_tokens` (6).
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """Continue every prompt greedily.

        Args:
            prompts: token ids, at least one each. They are not changed.
            max_tokens: for each prompt, how many tokens to generate, 1 or more. No text ends before.

        Returns:
            For each prompt, in the order of `prompts`, its generated token ids, `max_tokens` many.
        """
        raise NotImplementedError("m1")


if __name__ == "__main__":
    # A model whose memory you can look into. `model.calls` is what it was asked to compute, call by call.
    model = GlassModel(num_slots=64)
    print("next token after 7 3 200:", model.forward([Row(token_ids=[7, 3, 200], slots=[0, 1, 2])]))
    print("generated:", Engine(model, Limits()).generate([[7, 3, 200]], [5]))
    for call in model.calls:
        print([(list(seen.text), "computed", seen.num_new, "slots", seen.slots) for seen in call])
