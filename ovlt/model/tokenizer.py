"""What ovlt uses of a transformers tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

TemplateValue = bool | int | float | str
TemplateKeywords = Mapping[str, TemplateValue]  # of a chat template, such as enable_thinking
MODEL_KEYWORDS = "model.chat_template_kwargs"  # the recipe key that gives them, most often


class Encoding(Protocol):
    """The ids of a text."""

    @property
    def ids(self) -> list[int]: ...


class Backend(Protocol):
    """The tokenizer in Rust behind transformers' object."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class Tokenizer(Protocol):
    """A fast tokenizer, as ``AutoTokenizer`` gives it; transformers' own types are looser."""

    pad_token_id: int | None
    chat_template: str | dict[str, str] | None

    @property
    def added_tokens_decoder(self) -> Mapping[int, object]: ...
    @property
    def backend_tokenizer(self) -> Backend: ...
    def __len__(self) -> int: ...
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    def get_vocab(self) -> Mapping[str, int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...
    def apply_chat_template(
        self,
        conversation: Sequence[object],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **keywords: TemplateValue,
    ) -> str: ...
