"""What captioner and teacher are asked: one model's prompts, made of questions and captions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ovlt.data.sources import Limits, Row, to_prompt
from ovlt.distill.forms import fill
from ovlt.model.chat import IMAGE_TAG, BadText
from ovlt.model.load import ModelFolder
from ovlt.types import Prompt


@dataclass(frozen=True)
class Asker:
    """Makes the prompts for one model folder.

    Attributes:
        folder: whose tokenizer and chat template are used.
        limits: of images and prompts.
    """

    folder: ModelFolder
    limits: Limits

    def about_image(self, row: Row, request: str) -> Prompt:
        """The row's images and ``request`` in place of its question. Raises BadText."""
        ids = self.folder.chat.prompt_ids(IMAGE_TAG * len(row.images) + request, row.grids)
        return self._bounded(to_prompt(replace(row, token_ids=ids), self.limits))

    def question(self, row: Row) -> Prompt:
        """The question itself, with its images: a model that sees answers it."""
        return self._bounded(to_prompt(row, self.limits))

    def about_caption(self, row: Row, request: str, caption: str) -> Prompt:
        """``request`` with {caption} and {question} filled in; no image. Raises BadText."""
        question = row.question.replace(IMAGE_TAG, "").strip()
        text = fill(request, {"caption": caption.strip(), "question": question})
        ids = self.folder.chat.prompt_ids(text, [])
        return self._bounded(Prompt(row.id, row.source, row.question, row.answer, ids))

    def _bounded(self, prompt: Prompt) -> Prompt:
        if len(prompt.token_ids) > self.limits.max_tokens:
            raise BadText(
                f"prompt has more than distill.max_prompt_tokens = {self.limits.max_tokens} tokens"
            )
        return prompt
