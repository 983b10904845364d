"""Sampling without vLLM: a second, unsharded copy of the model with stock attention and its cache.

For machines where no vLLM can be installed. Slow (one prompt at a time), and exact: it is fed by
the same weight stream and passes the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from ovlt.model import sizes
from ovlt.model.load import ModelFolder
from ovlt.model.positions import mrope_positions
from ovlt.rollout.engine import Completion, Engine, Sampling, one_for_each
from ovlt.types import Prompt


class TransformersEngine(Engine):
    """Transformers' own forward as an engine; it shares no memory that ``sleep`` could free."""

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype):
        self.folder, self.device = folder, device
        if folder.patchify is None:
            raise ValueError(
                f"{folder.path} is a text-only model: engine.backend='vllm' serves such a model"
            )
        self._patchify = folder.patchify
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path, dtype=dtype, attn_implementation="sdpa"
        )
        self.model.to(device).eval()
        self._banned = torch.tensor(folder.banned, dtype=torch.int64, device=device)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Implement ``Engine.load``. Raises RuntimeError for a name that the model lacks."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                if name == "lm_head.weight" and name not in parameters:
                    continue  # tied: the embedding brings it
                if name not in parameters:
                    raise RuntimeError(f"the engine has no parameter named {name}")
                parameters[name].copy_(tensor)

    def weight(self, name: str) -> torch.Tensor:
        """Implement ``Engine.weight``."""
        try:
            return self.model.get_parameter(name).detach()  # a tied head is a parameter too
        except AttributeError:
            raise RuntimeError(f"the engine has no parameter named {name}") from None

    def close(self) -> None:
        """Nothing to shut down."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        finished: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Implement ``Engine.generate``, one prompt at a time. Raises ValueError for a nucleus."""
        samplings = one_for_each(sampling, len(seeds))
        if any(s.temperature > 0 and (s.top_p < 1 or s.top_k) for s in samplings):
            raise ValueError(
                "engine.backend='transformers' samples with top_p = 1 and top_k = 0 only: set them "
                "so in [grpo.rollout], [evaluate] or [distill], whichever samples"
            )
        completions: list[list[Completion]] = []
        for place, (prompt, each, seed) in enumerate(zip(prompts, samplings, seeds, strict=True)):
            completions.append(self._one(prompt, each, seed))
            if finished is not None:
                finished(place, completions[-1])
        return completions

    def _one(self, prompt: Prompt, sampling: Sampling, seed: int) -> list[Completion]:
        """Sample all n completions of a prompt side by side; finished ones leave the batch."""
        n, temperature = sampling.n, sampling.temperature
        generators = [torch.Generator(self.device).manual_seed(seed + i) for i in range(n)]
        logits, cache, position = self._prefill(prompt)
        # Not the cache's methods for batches: those of recurrent layers lack them.
        cache.reorder_cache(torch.zeros(n, dtype=torch.int64, device=self.device))
        logits = logits.expand(n, -1)
        alive = list(range(n))
        ids: list[list[int]] = [[] for _ in range(n)]
        logps: list[list[float]] = [[] for _ in range(n)]
        finished = [False] * n
        for step in range(sampling.max_tokens):
            logits = logits.float().clone()
            logits[:, self._banned] = -torch.inf
            logp = torch.log_softmax(logits / (temperature or 1.0), -1)
            if temperature > 0:
                token = torch.cat(
                    [
                        torch.multinomial(row.exp(), 1, generator=generators[i])
                        for i, row in zip(alive, logp, strict=True)
                    ]
                )
            else:
                token = logp.argmax(-1)
            chosen = logp.gather(1, token[:, None])[:, 0].tolist()
            keep = []
            for row, (i, t, p) in enumerate(zip(alive, token.tolist(), chosen, strict=True)):
                ids[i].append(t)
                logps[i].append(p)
                if t == self.folder.chat.end_id and not sampling.ignore_stop:
                    finished[i] = True
                else:
                    keep.append(row)
            if not keep or step + 1 == sampling.max_tokens:
                break
            if len(keep) < len(alive):
                cache.reorder_cache(torch.tensor(keep, device=self.device))
                alive = [alive[row] for row in keep]
                token = token[keep]
            positions = torch.full((3, len(alive), 1), position + step, device=self.device)
            out = self.model.model.language_model(
                input_ids=token[:, None],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = self.model.lm_head(out.last_hidden_state[:, -1])
        return [
            Completion(np.asarray(i, np.int64), np.asarray(p, np.float32), f)
            for i, p, f in zip(ids, logps, finished, strict=True)
        ]

    def _prefill(self, prompt: Prompt) -> tuple[torch.Tensor, Any, int]:
        """Logits of the last prompt token [1,V], the cache, and the next M-RoPE position."""
        config = self.folder.config
        grids = [sizes.image_grid(config, *x.shape[:2]) for x in prompt.images]
        positions = mrope_positions(prompt.token_ids, grids, config)
        kwargs: dict[str, Any] = {}
        if prompt.images:
            patches = np.concatenate([self._patchify(x) for x in prompt.images])
            kwargs["pixel_values"] = torch.from_numpy(patches).to(self.device, self.model.dtype)
            kwargs["image_grid_thw"] = torch.tensor(grids, device=self.device)
        out = self.model(
            input_ids=torch.from_numpy(prompt.token_ids)[None].to(self.device),
            position_ids=torch.from_numpy(positions)[:, None].to(self.device),
            use_cache=True,
            logits_to_keep=1,
            **kwargs,
        )
        return out.logits[:, -1], out.past_key_values, int(positions.max()) + 1
