"""Milestone 6, and with it all six: paging, a prefix cache, and prompts in chunks under a token budget.

waiting  --_admit-->  running  --finished-->  done         a request moves right; preempted, it moves back
             |            |
             +-- blocks --+     BlockPool: free (oldest first), holders, known content
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from minivllm.course.project import Limits, Model, Row


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(eq=False)
class Request:
    """A request and its block table."""

    tokens: list[int]
    num_wanted: int  # tokens, the prompt included
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def num_left(self) -> int:
        """Tokens that are known and not computed: 1 while it generates."""
        return len(self.tokens) - self.computed

    def row(self, num_new: int, size: int) -> Row:
        """The next tokens, through the block table."""
        end = self.computed + num_new
        slots = [self.blocks[p // size] * size + p % size for p in range(end)]
        return Row(self.tokens[self.computed : end], slots)


class BlockPool:
    """Who holds which block, and what is in it.

    A block without holders is free. It keeps its content until it is taken, the one released longest ago first. A
    block's key is the whole text up to its end, because K and V depend on everything before them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.free = OrderedDict.fromkeys(range(num_blocks))
        self.holders = [0] * num_blocks
        self.block_of: dict[tuple[int, ...], int] = {}
        self.key_of: dict[int, tuple[int, ...]] = {}

    def take(self) -> int:
        """A free block; what was in it is forgotten."""
        block, _ = self.free.popitem(last=False)
        if block in self.key_of:
            del self.block_of[self.key_of.pop(block)]
        self.holders[block] = 1
        return block

    def share(self, key: tuple[int, ...]) -> int | None:
        """The block with this content, with one holder more; None if there is none."""
        block = self.block_of.get(key)
        if block is not None:
            self.free.pop(block, None)
            self.holders[block] += 1
        return block

    def remember(self, block: int, key: tuple[int, ...]) -> None:
        """A full block can be found from now on. Of two blocks with one content the first is kept."""
        if key not in self.block_of and block not in self.key_of:
            self.block_of[key], self.key_of[block] = block, key

    def release(self, blocks: list[int]) -> None:
        """One holder less each. The tail first: a block is of no use without those before it."""
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self.free[block] = None


class Engine:
    """Each call: running requests in order of admission, then new ones, until the token budget is used."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.size = limits.block_size
        self.pool = BlockPool(model.num_slots // limits.block_size)

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """The generated tokens of each prompt."""
        requests = [Request(list(p), len(p) + n) for p, n in zip(prompts, max_tokens, strict=True)]
        for request in requests:
            needed = cdiv(request.num_wanted - 1, self.size)
            if needed > len(self.pool.holders):
                raise ValueError(f"a request needs {needed} blocks, and memory has {len(self.pool.holders)}.")
        waiting, running = deque(requests), []
        while waiting or running:
            self._step(self._schedule(waiting, running))
            for request in [each for each in running if len(each.tokens) == each.num_wanted]:
                running.remove(request)
                self._release(request)
        return [request.tokens[len(prompt) :] for request, prompt in zip(requests, prompts, strict=True)]

    def _schedule(self, waiting: deque[Request], running: list[Request]) -> list[tuple[Request, int]]:
        """Which requests compute how many tokens in this call."""
        budget, plan, preempted = self.limits.max_num_batched_tokens, [], False
        while len(plan) < len(running) and budget > 0:
            request = running[len(plan)]
            num_new = min(request.num_left, budget)
            if self._fits(request, num_new):
                plan.append((request, num_new))
                budget -= num_new
            else:
                victim = running.pop()
                self._release(victim)
                waiting.appendleft(victim)
                preempted = True
        while waiting and len(running) < self.limits.max_num_seqs and budget > 0 and not preempted:
            request = waiting[0]
            self._find_prefix(request)
            num_new = min(request.num_left, budget)
            if not self._fits(request, num_new):
                self._release(request)
                break
            running.append(waiting.popleft())
            plan.append((request, num_new))
            budget -= num_new
        return plan

    def _find_prefix(self, request: Request) -> None:
        """Share the blocks whose content is known; at least one token is left to compute."""
        for end in range(self.size, len(request.tokens), self.size):
            block = self.pool.share(tuple(request.tokens[:end]))
            if block is None:
                break
            request.blocks.append(block)
            request.computed = end

    def _fits(self, request: Request, num_new: int) -> bool:
        """Take the blocks for the next tokens of a request, or none."""
        needed = cdiv(request.computed + num_new, self.size) - len(request.blocks)
        if needed > len(self.pool.free):
            return False
        request.blocks += [self.pool.take() for _ in range(needed)]
        return True

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.computed = [], 0

    def _step(self, plan: list[tuple[Request, int]]) -> None:
        """Compute, remember full blocks, and append the next token where the text is computed to its end."""
        rows = [request.row(num_new, self.size) for request, num_new in plan]
        for (request, num_new), token in zip(plan, self.model.forward(rows), strict=True):
            full_before = request.computed // self.size
            request.computed += num_new
            for index in range(full_before, request.computed // self.size):
                key = tuple(request.tokens[: (index + 1) * self.size])
                self.pool.remember(request.blocks[index], key)
            if request.num_left == 0:
                request.tokens.append(token)
