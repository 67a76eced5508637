# caught by: test_a_step_without_drafts
"""Makes both lists equally long, by adding to the caller's."""


def after_check(num_known, drafts, chosen, block_size):
    drafts.append(None)
    new = []
    for draft, choice in zip(drafts, chosen, strict=True):
        new.append(choice)
        if draft != choice:
            break
    computed = num_known + len(new) - 1
    return new, computed, list(range((num_known - 1) // block_size, computed // block_size))
