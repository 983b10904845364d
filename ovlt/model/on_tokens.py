"""What no loss reads is not computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class OnTokens:
    """Lets a module that treats each token alone compute some of them; the others get zeros.

    By hooks, so that whatever replaces the module's ``forward`` afterwards (Liger, recomputation)
    computes these tokens only. A layer that is recomputed reads ``tokens`` again in backward: they
    stay what they are until then.

    Attributes:
        tokens: places in the packed row, int64 [U], each once; None: all tokens are computed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tokens: Tensor | None = None
        self._num_tokens = 0
        module.register_forward_pre_hook(self._select)
        module.register_forward_hook(self._spread)

    def _select(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the hidden states [1, T, H] by those of the tokens, [1, U, H]."""
        (hidden,) = args
        self._num_tokens = hidden.shape[1]
        return (hidden if self.tokens is None else hidden.index_select(1, self.tokens),)

    def _spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the module's output [1, U, H] at its places in [1, T, H]."""
        if self.tokens is None:
            return output
        whole = output.new_zeros(1, self._num_tokens, output.shape[2])
        return whole.index_copy(1, self.tokens, output)
