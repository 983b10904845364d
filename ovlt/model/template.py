"""What a chat template does, found out by rendering it once on short conversations.

Training and sampling rest on facts that a tokenizer's attributes do not hold: which token ends the
model's turn (``eos_token`` often names another), whether contents are lists of parts or plain
strings, where an image goes, and whether a conversation grows without its earlier turns changing.
So they are read off the template's own output.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ovlt.model.sizes import Config
from ovlt.model.tokenizer import MODEL_KEYWORDS, TemplateKeywords, Tokenizer

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a token of the vocabulary
IMAGE_MARKUP = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"  # for templates of plain strings
# Tokens that stand for pixels. A policy that samples one breaks the match between placeholders and
# features, so the engine may never sample them, and the trainer's normaliser leaves them out.
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_TOKEN,
    "<|video_pad|>",
)

Part = dict[str, str]  # {"type": "image"} or {"type": "text", "text": ...}
Turn = dict[str, str | list[Part]]  # a message as the template takes it

# Words that no template holds and no tokenizer, template or trim filter changes.
_SYSTEM, _QUESTION, _ANSWER, _MORE, _LAST = (
    "zwordone",
    "zwordtwo",
    "zwordsix",
    "zwordten",
    "zwordup",
)
_TAG = re.compile(r"</?[A-Za-z_]\w*>")  # <think>, </answer>: part of what a model says
_LEAD = re.compile(rf"(?:{_TAG.pattern}\s*)+\Z")
_PYTHON_LIST = re.compile(r"""['"]type['"]\s*:""")  # a list of parts that was joined as a string


def banned_ids(config: Config, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that may never be sampled: vision tokens, and rows without a token."""
    vocabulary = tokenizer.get_vocab()
    vision = {vocabulary[token] for token in VISION_TOKENS if token in vocabulary}
    return sorted(vision | set(rows_without_token(config, tokenizer)))


def rows_without_token(config: Config, tokenizer: Tokenizer) -> list[int]:
    """Return the rows of embedding and head that no token of the tokenizer has."""
    tokens = set(tokenizer.get_vocab().values())  # ids may have gaps
    return [i for i in range(int(config.get_text_config().vocab_size)) if i not in tokens]


REWRITES = (
    "chat template rewrites earlier turns, so its turns cannot be labelled: give rows of one "
    "answer, or a chat_template.jinja that leaves turns as they are"
)


class TemplateRefusal(ValueError):
    """The template refuses a conversation; the message is its own."""


@dataclass(frozen=True)
class Template:
    """The facts about a chat template.

    Attributes:
        end: the token that the template writes after a turn of the model, and its ``end_id``.
        strings: roles whose content the template takes as one string, not as a list of parts.
        control: special tokens that no text may spell: they would be read as markup.
        opening: what a turn that the model is to continue begins with and a finished one lacks,
            such as ``<think>``; mostly empty.
        lead: tags with which the template begins every turn that the model is to continue, such as
            ``<think>``: a response comes without them. Mostly empty.
        several: why the turns of a longer conversation cannot be labelled; empty: they can.
    """

    end: str
    end_id: int
    strings: frozenset[str]
    control: tuple[str, ...]
    opening: str
    lead: str
    several: str


def content_of(parts: Sequence[Part], *, as_string: bool) -> str | list[Part]:
    """Return the content of a message as its role's turns take it."""
    if not as_string:
        return list(parts)
    return "".join(part["text"] if part["type"] == "text" else IMAGE_MARKUP for part in parts)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template, with keywords that it reads besides the conversation.

    ``key`` is the recipe key that gives the keywords.
    """

    tokenizer: Tokenizer
    keywords: TemplateKeywords
    key: str = MODEL_KEYWORDS

    def check(self) -> None:
        """Raise ValueError for a keyword that stands nowhere in the template: a misspelt one."""
        words = set(re.findall(r"[A-Za-z_]\w*", str(self.tokenizer.chat_template)))
        for name in self.keywords:
            if name not in words:
                near = difflib.get_close_matches(name, words, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ValueError(f"the chat template does not read {self.key}.{name}{hint}")


def render(renderer: Renderer, turns: Sequence[Turn], *, open_turn: bool) -> str:
    """Return chat-formatted text with one placeholder per image. Raises TemplateRefusal."""
    try:
        return renderer.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=open_turn, **renderer.keywords
        )
    except Exception as error:  # a template is a program: it may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TemplateRefusal(reason) from None


def read_template(renderer: Renderer, *, images: bool) -> Template:
    """Try a tokenizer's chat template on text, images (with ``images``) and several turns.

    Raises ValueError if it does not do what prompts need: write question and images once, open the
    model's turn, and end it with a token.
    """
    tokenizer = renderer.tokenizer
    if not tokenizer.chat_template:
        raise ValueError(
            "there is no chat template (in tokenizer_config.json, chat_template.jinja or "
            "chat_template.json), so there is no telling how to ask the model: copy that of the "
            "model it comes from"
        )
    renderer.check()
    strings = _string_roles(renderer, images=images)

    def turn(role: str, text: str) -> Turn:
        parts = [{"type": "text", "text": text}]
        return {"role": role, "content": content_of(parts, as_string=role in strings)}

    talk = [turn("user", _QUESTION), turn("assistant", _ANSWER)]
    prompt = _rendered(renderer, talk[:1], open_turn=True)
    closed = _rendered(renderer, talk, open_turn=False)
    before, _, tail = closed.rpartition(_ANSWER)
    if not before:
        raise ValueError("the chat template leaves out what the model says")
    if prompt == _rendered(renderer, talk[:1], open_turn=False):
        raise ValueError(
            "the chat template opens no turn for the model: it ignores add_generation_prompt"
        )
    end, end_id = _end(tokenizer, tail)
    pairs = zip(prompt, closed, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(closed)))
    opening = prompt[common:] if closed[common:].startswith(_ANSWER) else ""
    turns = [*talk, turn("user", _MORE), turn("assistant", _LAST)]
    return Template(
        end=end,
        end_id=end_id,
        strings=strings,
        control=_control(renderer, turns, end),
        opening=opening,
        lead=match.group() if (match := _LEAD.search(prompt)) else "",
        several=_why_not_several(renderer, turns, end, opening),
    )


def _rendered(renderer: Renderer, turns: Sequence[Turn], *, open_turn: bool) -> str:
    try:
        return render(renderer, turns, open_turn=open_turn)
    except TemplateRefusal as error:
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise ValueError(
            f"the chat template fails on a plain conversation ({roles}): {error}"
        ) from None


def _string_roles(renderer: Renderer, *, images: bool) -> frozenset[str]:
    """Return the roles whose content the template takes as a string. Raises ValueError.

    A model with images is asked in parts if its template takes them, a text-only one in strings.
    """
    order = (False, True) if images else (True, False)
    reasons: list[str] = []
    for as_string in order:
        if reason := _question_fails(renderer, as_string=as_string, images=images):
            reasons.append(reason)
            continue
        if as_string:
            return frozenset(("system", "user", "assistant"))
        plain: Turn = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}
        answers = (("system", _SYSTEM), ("assistant", _ANSWER))
        return frozenset(
            role for role, word in answers if not _takes_parts(renderer, role, word, plain)
        )
    raise ValueError(f"the chat template {reasons[0]}")


def _question_fails(renderer: Renderer, *, as_string: bool, images: bool) -> str:
    """Return what a template does wrong with questions of no, one and two images; or nothing."""
    for count in (0, 1, 2) if images else (0,):
        parts: list[Part] = [{"type": "text", "text": _QUESTION}]
        parts += [{"type": "image"}, {"type": "text", "text": _MORE}] * count
        content = content_of(parts, as_string=as_string)
        try:
            text = render(renderer, [{"role": "user", "content": content}], open_turn=True)
        except TemplateRefusal as error:
            return f"fails on a question with {count} images: {error}"
        if text.count(_QUESTION) != 1 or _PYTHON_LIST.search(text):
            return "does not write the text of a question, neither as a string nor as parts"
        if (placeholders := text.count(IMAGE_TOKEN)) != count:
            return f"writes {placeholders} placeholders {IMAGE_TOKEN} for {count} images"
    return ""


def _takes_parts(renderer: Renderer, role: str, word: str, question: Turn) -> bool:
    turn: Turn = {"role": role, "content": [{"type": "text", "text": word}]}
    turns = [question, turn] if role == "assistant" else [turn, question]
    try:
        text = render(renderer, turns, open_turn=False)
    except TemplateRefusal:
        return False
    return text.count(word) == 1 and not _PYTHON_LIST.search(text)


def _end(tokenizer: Tokenizer, tail: str) -> tuple[str, int]:
    """Return the first token of the vocabulary's added ones in ``tail``. Raises ValueError."""
    added = tokenizer.added_tokens_decoder
    for token_id in tokenizer.backend_tokenizer.encode(tail, add_special_tokens=False).ids:
        if token_id in added and (text := str(added[token_id])) not in VISION_TOKENS:
            return text, int(token_id)
    raise ValueError(
        f"the chat template ends a turn of the model with {tail!r}, which holds no token of its "
        "own: an engine could not stop there, and a model could not learn to"
    )


def special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the added tokens that are marked special."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(str(token) for token in added if getattr(token, "special", False))


def _control(renderer: Renderer, turns: Sequence[Turn], end: str) -> tuple[str, ...]:
    """Return the special tokens that are markup: ends, padding, vision, and those in the template.

    Tags such as ``<think>`` may be special too, and a template may write them into the model's
    turns; they are part of what the model says, so texts may spell them.
    """
    tokenizer, named = renderer.tokenizer, {end, *VISION_TOKENS}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if value := getattr(tokenizer, name, None):
            named.add(str(value))
    markup = _rendered(renderer, turns, open_turn=True)
    question = _rendered(renderer, turns[:1], open_turn=False)
    special = special_tokens(tokenizer)
    named |= {t for t in special if t in question or (t in markup and not _TAG.fullmatch(t))}
    return tuple(token for token in special if token in named)


def _why_not_several(renderer: Renderer, turns: Sequence[Turn], end: str, opening: str) -> str:
    """Return why a conversation of two questions and answers cannot be labelled; or nothing."""
    done = ""
    for count in (2, 4):
        try:
            prompt = render(renderer, turns[: count - 1], open_turn=True)
            whole = render(renderer, turns[:count], open_turn=False)
        except TemplateRefusal as error:
            return f"chat template refuses several turns ({error})"
        prompt = prompt.removesuffix(opening)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            return REWRITES
        if end not in whole[len(prompt) :]:
            return f"chat template does not end every turn of the model with {end}"
        done = whole
    return ""
