"""The prompts of each phase, made of questions and of the records of the phase before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ovlt.config import DistillConfig
from ovlt.data.mixture.overlap import image_digest
from ovlt.data.rows import GoodRows
from ovlt.data.sources import Limits, Row, to_prompt
from ovlt.distill.phases import Phase
from ovlt.distill.shards import Record
from ovlt.distill.traces import fill
from ovlt.model.chat import IMAGE_TAG, BadText, Chat
from ovlt.types import Prompt


@dataclass(frozen=True)
class Asker:
    """Makes the prompts for one model.

    Attributes:
        chat: the model's tokenizer and chat template.
        limits: of images and prompts.
    """

    chat: Chat
    limits: Limits

    def about_image(self, row: Row, request: str) -> Prompt:
        """Return the row's images and ``request`` in place of its question. Raises BadText."""
        ids = self.chat.prompt_ids(IMAGE_TAG * len(row.images) + request, row.grids)
        return self._checked(to_prompt(row, self.limits, token_ids=ids))

    def question(self, row: Row) -> Prompt:
        """Return the question itself with its images. Raises BadText."""
        return self._checked(to_prompt(row, self.limits))

    def about_caption(self, row: Row, request: str, caption: str) -> Prompt:
        """Return ``request`` with {caption} and {question} filled in, no image. Raises BadText.

        A system prompt of the row comes first.
        """
        if any(turn.role != "system" for turn in row.earlier):
            raise BadText("question has earlier turns, which a teacher without images is not told")
        question = row.question.replace(IMAGE_TAG, "").strip()
        text = fill(request, {"caption": caption.strip(), "question": question})
        messages = [turn.message for turn in row.earlier]
        ids = self.chat.dialogue_ids([*messages, {"role": "user", "content": text}], [])
        return self._checked(to_prompt(row, self.limits, token_ids=ids, pixels=False))

    def _checked(self, prompt: Prompt) -> Prompt:
        if len(prompt.token_ids) > self.limits.max_tokens:
            raise BadText(
                f"prompt has more than distill.max_prompt_tokens = {self.limits.max_tokens} tokens"
            )
        return prompt


@dataclass(frozen=True)
class Requests:
    """What captioner and teacher are asked about each question.

    Attributes:
        config: the recipe's [distill].
        rows: the questions.
        captioner: makes prompts for the model that sees the images.
        teacher: makes prompts for the text-only model; without one it is not used.
        earlier: the records of the phase before, by the index of their question.
    """

    config: DistillConfig
    rows: GoodRows
    captioner: Asker
    teacher: Asker
    earlier: Mapping[int, Record]

    def prompt(self, phase: Phase, index: int) -> Prompt:
        """Return the prompt of a phase for one question.

        Raises ValueError, with the reason to drop the question: its text, an image, or an earlier
        phase that has dropped it.
        """
        config, row = self.config, self.rows[index]
        if phase == "captions":
            return self.captioner.about_image(row, config.caption_request)
        if phase == "answers" and not config.teacher:
            return self.captioner.question(row)
        record = self.earlier[index]
        if record["dropped"]:
            raise ValueError(record["dropped"])
        text = record["texts"][0]
        if phase == "details":
            return self.teacher.about_caption(row, config.details_request, caption=text)
        if phase == "recaptions":
            request = fill(config.recaption_request, {"details": text})
            return self.captioner.about_image(row, request)
        return self.teacher.about_caption(row, config.teacher_request, caption=text)


def digest_of(rows: Sequence[Row]) -> str:
    """Return a digest of questions with their answers and images, in order."""
    total = blake2b(digest_size=16)
    for row in rows:
        text = [row.id, row.source, row.question, row.answer]
        content = row.content()
        more = [list(row.earlier), content.extra]
        total.update(json.dumps([*text, *(m for m in more if m)]).encode("ascii") + b"\n")
        for ref in content.images:
            total.update(image_digest(ref))
    return total.hexdigest()
