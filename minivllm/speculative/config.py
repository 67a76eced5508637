"""What `speculative_config={...}` may say: vLLM's keys.

::

    {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
    {"method": "draft_model", "model": "smollm2-135m-instruct", "num_speculative_tokens": 4}

A key of the other method is an error and not ignored, like any unknown key.

vLLM V1: `vllm/config/speculative.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from minivllm.config import EngineConfig, require_choice, require_int

METHODS = ("ngram", "draft_model")


@dataclass(frozen=True)
class SpeculativeConfig:
    """How drafts are made.

    Attributes:
        method: "ngram" or "draft_model".
        num_speculative_tokens: drafts per sequence and step, at most.
        prompt_lookup_max, prompt_lookup_min: n-grams of how many tokens are looked up, the longest first.
        model: the draft model, by any name that `LLM(model=...)` takes.
        max_tokens_per_step: a step gets drafts as long as it stays within so many tokens. A step of many
            sequences has no room for guesses: it is bound by arithmetic, so that each token costs its full
            price. 32 is for a CPU, where that begins at about 8 tokens; a GPU has room for some hundred.

    Raises:
        ValueError, TypeError: a value which is out of range, or belongs to the other method.
    """

    method: str
    num_speculative_tokens: int
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    model: str | None = None
    max_tokens_per_step: int = 32

    def __post_init__(self) -> None:
        require_choice("speculative_config's method", self.method, METHODS)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("method", "model") and value is not None:
                require_int(field.name, value, minimum=1)
        lookup = self.prompt_lookup_max, self.prompt_lookup_min
        if self.method == "draft_model" and lookup != (None, None):
            raise ValueError('prompt_lookup_max and prompt_lookup_min belong to the method "ngram".')
        if (self.method == "draft_model") != (self.model is not None):
            raise ValueError(f'the method "draft_model" needs a model, "ngram" has none; got {self.model!r}.')
        if self.shortest > self.longest:
            raise ValueError(
                f"prompt_lookup_min ({self.shortest}) is above prompt_lookup_max ({self.longest})."
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest n-gram looked up; 4 unless given, or the shortest if only that is given."""
        return self.prompt_lookup_max or self.prompt_lookup_min or 4

    @property
    def shortest(self) -> int:
        """Tokens of the shortest n-gram looked up; 2 unless given, or the longest if that is 1."""
        return self.prompt_lookup_min or min(2, self.longest)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> SpeculativeConfig:
        """The config of `speculative_config={...}`; a TypeError names keys that are unknown or missing."""
        known, needed = cls.__dataclass_fields__, {"method", "num_speculative_tokens"}
        unknown, missing = sorted(set(options) - set(known)), sorted(needed - set(options))
        if unknown or missing:
            raise TypeError(
                f"speculative_config: unknown {', '.join(unknown) or 'nothing'}, missing "
                f"{', '.join(missing) or 'nothing'}. Known keys: {', '.join(known)}."
            )
        return cls(**options)


def speculation_of(config: EngineConfig) -> SpeculativeConfig | None:
    """What an engine's config says about speculation, checked; None: nothing."""
    options = config.speculative_config
    return None if options is None else SpeculativeConfig.from_dict(options)
