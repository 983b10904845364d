"""Text to token ids through the model's own chat template, with image placeholders expanded.

The template comes with the tokenizer (jinja, through transformers). Text from a dataset may not
contain the tokenizer's special tokens: in a question they would turn into control tokens, or into
placeholders without an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jinja2 import TemplateError

from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.tokenizer import Tokenizer

IMAGE_TAG = "<image>"
Message = dict[str, str]
Turn = dict[str, str | list[dict[str, str]]]  # a message as the template takes it
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a character; no tokenizer takes it


class BadText(ValueError):
    """A text that cannot be trained on; the message is the reason, short enough to count by."""


class Chat:
    """Chat-formats conversations for one model folder's tokenizer and configuration."""

    def __init__(self, tokenizer: Tokenizer, config: qwen.Config):
        self.tokenizer = tokenizer
        self.config = config
        self.image_id = int(getattr(config, "image_token_id", -1))  # -1: a text-only model
        self.end = str(tokenizer.eos_token)
        self.end_id = int(tokenizer.eos_token_id)
        self._special = tuple(
            str(t) for t in tokenizer.added_tokens_decoder.values() if getattr(t, "special", False)
        )

    def prompt_ids(self, question: str, grids: Sequence[qwen.Grid]) -> np.ndarray:
        """Return one user turn and the opening of the assistant's as int64 [tokens].

        Raises BadText.
        """
        return self.dialogue_ids([{"role": "user", "content": question}], grids)

    def dialogue_ids(self, messages: Sequence[Message], grids: Sequence[qwen.Grid]) -> np.ndarray:
        """Return turns that end with the user's and the opening of the assistant's, int64 [tokens].

        Raises BadText.
        """
        return self._encode(self._render(self._turns(messages, len(grids)), open_turn=True), grids)

    def conversation_ids(
        self, messages: Sequence[Message], grids: Sequence[qwen.Grid]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a labelled conversation as (ids int64 [tokens], loss_mask bool [tokens]).

        The loss covers each assistant turn and the token that ends it, nothing else. Raises
        BadText.
        """
        if not any(m["role"] == "assistant" for m in messages):
            raise BadText("conversation has no assistant turn")
        if messages[0]["role"] == "assistant":
            raise BadText("conversation starts with the assistant")
        turns = self._turns(messages, len(grids))
        pieces: list[tuple[str, bool]] = []
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prefix = self._render(turns[:i], open_turn=True)
            whole = self._render(turns[: i + 1], open_turn=False)
            if not (prefix.startswith(done) and whole.startswith(prefix)):
                raise BadText(
                    "chat template rewrites earlier turns, so its turns cannot be labelled"
                )
            reply, end, rest = whole[len(prefix) :].partition(self.end)
            pieces += [(prefix[len(done) :], False), (reply + end, True), (rest, False)]
            done = whole
        while pieces and not pieces[-1][1]:
            pieces.pop()  # what the template writes after the last end token is never sampled
        ids: list[np.ndarray] = []
        mask: list[np.ndarray] = []
        used = 0  # images so far
        for text, labelled in pieces:
            count = text.count("<|image_pad|>")
            part = self._encode(text, grids[used : used + count])
            used += count
            ids.append(part)
            mask.append(np.full(len(part), labelled))
        if used != len(grids):
            raise BadText("an image stands after the last assistant turn")
        return np.concatenate(ids), np.concatenate(mask)

    def collapse(self, token_ids: np.ndarray, grids: Sequence[qwen.Grid]) -> list[int]:
        """Return an expanded prompt with one placeholder per image, as the engine's processor
        expects it."""
        keep = np.ones(len(token_ids), dtype=bool)
        slots = np.flatnonzero(token_ids == self.image_id)
        used = 0  # slots so far
        for grid in grids:
            count = qwen.tokens_per_image(self.config, grid)
            keep[slots[used + 1 : used + count]] = False  # all but the first
            used += count
        return token_ids[keep].tolist()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a response without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _turns(self, messages: Sequence[Message], num_images: int) -> list[Turn]:
        """Return messages as lists of text and image parts, one image for each ``<image>`` tag.

        Images go in front of the first user turn if the conversation has no tag.
        """
        tags = sum(m["content"].count(IMAGE_TAG) for m in messages)
        if tags and tags != num_images:
            raise BadText(f"{tags} {IMAGE_TAG} tags but {num_images} images")
        turns: list[Turn] = []
        first_user = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
        for i, message in enumerate(messages):
            text = message["content"]
            if any(token in text for token in self._special):
                raise BadText("text spells out a special token of the tokenizer")
            if _SURROGATE.search(text):
                raise BadText("text is not valid Unicode")
            if tags == 0 and num_images and i == first_user:
                text = IMAGE_TAG * num_images + text
            if self.image_id < 0:  # templates of text-only models join strings
                turns.append({"role": message["role"], "content": text})
                continue
            content: list[dict[str, str]] = []
            parts = text.split(IMAGE_TAG)
            for j, part in enumerate(parts):
                if j:
                    content.append({"type": "image"})
                if part:
                    content.append({"type": "text", "text": part})
            turns.append({"role": message["role"], "content": content})
        return turns

    def _render(self, turns: Sequence[Turn], *, open_turn: bool) -> str:
        """Return chat-formatted text with one placeholder per image. Raises BadText."""
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=open_turn
            )
        except TemplateError as error:
            raise BadText(f"chat template refuses the conversation ({error})") from None

    def _encode(self, text: str, grids: Sequence[qwen.Grid]) -> np.ndarray:
        """Return int64 [tokens], with each placeholder repeated for the tokens of its image."""
        # Not tokenizer(text): its bookkeeping costs five times the encoding, for every row.
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoded.ids, dtype=np.int64)
        repeats = np.ones(len(ids), dtype=np.int64)
        slots = np.flatnonzero(ids == self.image_id)
        if len(slots) != len(grids):
            raise BadText(f"{len(slots)} image placeholders but {len(grids)} images")
        for slot, grid in zip(slots, grids, strict=True):
            repeats[slot] = qwen.tokens_per_image(self.config, grid)
        return np.repeat(ids, repeats)
