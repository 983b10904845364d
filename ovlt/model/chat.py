"""Text to token ids through the model's own chat template, with image placeholders expanded.

The template comes with the tokenizer (jinja, through transformers), and ``template.py`` finds out
what it does. Text from a dataset may not contain its control tokens: in a question they would turn
into the end of a turn, or into placeholders without an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ovlt.model import sizes
from ovlt.model.template import (
    IMAGE_TOKEN,
    REWRITES,
    VISION_TOKENS,
    Part,
    Renderer,
    TemplateRefusal,
    Turn,
    content_of,
    read_template,
    render,
)
from ovlt.model.tokenizer import MODEL_KEYWORDS, TemplateKeywords, Tokenizer

IMAGE_TAG = "<image>"
Message = dict[str, str]
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a character; no tokenizer takes it


class BadText(ValueError):
    """A text that cannot be trained on; the message is the reason, short enough to count by."""


class Chat:
    """Chat-formats conversations for one model folder's tokenizer and configuration.

    Raises ValueError if the chat template does not do what prompts need.

    Attributes:
        keywords: what the template is given besides the conversation.
        end: the token that ends a turn of the model, and its ``end_id``: labels end with it, and
            engines stop at it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: sizes.Config,
        keywords: TemplateKeywords | None = None,
        key: str = MODEL_KEYWORDS,
    ):
        """``keywords``, which the recipe gives as ``key``, are handed to the template."""
        self.tokenizer = tokenizer
        self.config = config
        self.keywords = keywords or {}
        self._renderer = Renderer(tokenizer, self.keywords, key)
        self.image_id = int(getattr(config, "image_token_id", -1))  # -1: a text-only model
        self.template = read_template(self._renderer, images=self.image_id >= 0)
        self.end, self.end_id = self.template.end, self.template.end_id
        vocabulary = tokenizer.get_vocab()
        silent = (vocabulary.get(token) for token in VISION_TOKENS)
        self._unspoken = frozenset((self.end_id, tokenizer.pad_token_id, *silent))

    def prompt_ids(self, question: str, grids: Sequence[sizes.Grid]) -> np.ndarray:
        """Return one user turn and the opening of the assistant's as int64 [tokens].

        Raises BadText.
        """
        return self.dialogue_ids([{"role": "user", "content": question}], grids)

    def dialogue_ids(self, messages: Sequence[Message], grids: Sequence[sizes.Grid]) -> np.ndarray:
        """Return turns that end with the user's and the opening of the assistant's, int64 [tokens].

        Raises BadText.
        """
        text = self._render(self._turns(messages, len(grids)), open_turn=True)
        # Not the model's earlier turns: a template may leave their thoughts out of a prompt.
        _check_written([m for m in messages if m["role"] != "assistant"], text)
        return self._encode(text, grids)

    def conversation_ids(
        self, messages: Sequence[Message], grids: Sequence[sizes.Grid]
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
                raise BadText(self._why_unlabelled(prefix, whole, done))
            _check_written(messages[i : i + 1], whole[len(done) :])
            reply, end, rest = whole[len(prefix) :].partition(self.end)
            if not end:
                raise BadText(f"chat template does not end this turn of the model with {self.end}")
            pieces += [(prefix[len(done) :], False), (reply + end, True), (rest, False)]
            done = whole
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        _check_written([m for m in messages[:last] if m["role"] != "assistant"], done)
        while pieces and not pieces[-1][1]:
            pieces.pop()  # what the template writes after the last end token is never sampled
        ids: list[np.ndarray] = []
        mask: list[np.ndarray] = []
        used = 0  # images so far
        for text, labelled in pieces:
            count = text.count(IMAGE_TOKEN)
            part = self._encode(text, grids[used : used + count])
            used += count
            ids.append(part)
            mask.append(np.full(len(part), labelled))
        if used != len(grids):
            raise BadText("an image stands after the last assistant turn")
        return np.concatenate(ids), np.concatenate(mask)

    def collapse(self, token_ids: np.ndarray, grids: Sequence[sizes.Grid]) -> list[int]:
        """Return an expanded prompt with one placeholder per image, as the engine's processor
        expects it."""
        keep = np.ones(len(token_ids), dtype=bool)
        slots = np.flatnonzero(token_ids == self.image_id)
        used = 0  # slots so far
        for grid in grids:
            count = sizes.tokens_per_image(self.config, grid)
            keep[slots[used + 1 : used + count]] = False  # all but the first
            used += count
        return token_ids[keep].tolist()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a response as the model wrote it, tags that are special tokens too.

        Only the end of the turn, padding and vision tokens are left out.
        """
        ids = [i for i in token_ids if i not in self._unspoken]
        # Not tokenizer.decode: a folder may have it tidy spaces that the model has written.
        return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def _why_unlabelled(self, prefix: str, whole: str, done: str) -> str:
        """Return why a turn of the model cannot be told from what stands before it."""
        for opening in (self.template.opening, self.template.lead):
            stem = prefix.removesuffix(opening)
            if opening and stem.startswith(done) and whole.startswith(stem):
                return (
                    f"chat template opens the turn with {opening!r}, but the answer does not begin "
                    "with that"
                )
        return self.template.several or REWRITES

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
            if any(token in text for token in self.template.control):
                raise BadText("text spells out a special token of the tokenizer")
            if _SURROGATE.search(text):
                raise BadText("text is not valid Unicode")
            if tags == 0 and num_images and i == first_user:
                text = IMAGE_TAG * num_images + text
            content: list[Part] = []
            parts = text.split(IMAGE_TAG) if self.image_id >= 0 else [text]
            for j, part in enumerate(parts):
                if j:
                    content.append({"type": "image"})
                if part:
                    content.append({"type": "text", "text": part})
            as_string = message["role"] in self.template.strings
            turns.append(
                {"role": message["role"], "content": content_of(content, as_string=as_string)}
            )
        return turns

    def _render(self, turns: Sequence[Turn], *, open_turn: bool) -> str:
        """Return chat-formatted text with one placeholder per image. Raises BadText."""
        try:
            return render(self._renderer, turns, open_turn=open_turn)
        except TemplateRefusal as error:
            raise BadText(f"chat template refuses the conversation ({error})") from None

    def _encode(self, text: str, grids: Sequence[sizes.Grid]) -> np.ndarray:
        """Return int64 [tokens], with each placeholder repeated for the tokens of its image."""
        # Not tokenizer(text): its bookkeeping costs five times the encoding, for every row.
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoded.ids, dtype=np.int64)
        repeats = np.ones(len(ids), dtype=np.int64)
        slots = np.flatnonzero(ids == self.image_id)
        if len(slots) != len(grids):
            raise BadText(f"{len(slots)} image placeholders but {len(grids)} images")
        for slot, grid in zip(slots, grids, strict=True):
            repeats[slot] = sizes.tokens_per_image(self.config, grid)
        return np.repeat(ids, repeats)


def _check_written(messages: Sequence[Message], text: str) -> None:
    """Raise BadText unless ``text`` holds all that the messages say, but for white space.

    Templates of reasoning models cut thoughts out of the model's turns, and others know no system
    turn: trained on these, a model would learn something else than the rows say.
    """
    written = "".join(text.split())
    for message in messages:
        for part in message["content"].split(IMAGE_TAG):
            if "".join(part.split()) not in written:
                raise BadText(
                    f"chat template leaves out, or changes, what stands in a turn of the "
                    f"{message['role']}"
                )
