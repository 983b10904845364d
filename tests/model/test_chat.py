"""Token ids are those of the model's own processor, and the loss covers what the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import random_image, tiny_folder
from PIL import Image

from ovlt.model import sizes as model_sizes
from ovlt.model.chat import BadText, Chat, Message

Grids = list[model_sizes.Grid]
SIZES = [(84, 56), (56, 140), (112, 84)]  # height, width


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def chat(folder: Any) -> Chat:
    return folder.chat


@pytest.fixture(scope="module")
def processor(folder: Any) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder.path)


def with_template(folder: Any, template: str) -> Chat:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    tokenizer.chat_template = template
    return Chat(tokenizer, folder.config)


def grids_of(chat: Chat, count: int) -> Grids:
    return [model_sizes.image_grid(chat.config, *size) for size in SIZES[:count]]


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def labelled_text(chat: Chat, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The stretches of tokens under the loss, as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [chat.tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in spans]


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        "How many shapes are there?",
        "<image>How many shapes are there?",
        "How many red bars are in <image>? And here: <image>\n<image> Blue?",
    ],
)
def test_prompts_are_those_of_the_processor(chat: Chat, processor: Any, question: str) -> None:
    count = question.count("<image>")
    images = [Image.fromarray(random_image(np.random.default_rng(i), *SIZES[i])) for i in range(3)]
    content: list[dict[str, Any]] = []
    for i, part in enumerate(question.split("<image>")):
        content += [{"type": "image", "image": images[i - 1]}] * bool(i)
        content += [{"type": "text", "text": part}] * bool(part)
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )
    ours = chat.prompt_ids(question, grids_of(chat, count))
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert ours.dtype == np.int64
    assert ours.tolist() == theirs["input_ids"][0].tolist()
    assert (ours == chat.image_id).sum() == sum(h * w // 784 for h, w in SIZES[:count])


def test_images_without_a_tag_stand_before_the_question(chat: Chat) -> None:
    grids = grids_of(chat, 2)
    bare = chat.prompt_ids("How many?", grids)
    assert bare.tolist() == chat.prompt_ids("<image><image>How many?", grids).tolist()


def test_collapse_undoes_the_expansion(chat: Chat) -> None:
    grids = grids_of(chat, 3)
    prompt = chat.prompt_ids("<image>a <image><image> b", grids)
    collapsed = chat.collapse(prompt, grids)
    assert collapsed.count(chat.image_id) == 3
    where = [i for i, token in enumerate(collapsed) if token == chat.image_id]
    repeats = np.ones(len(collapsed), int)
    repeats[where] = [model_sizes.tokens_per_image(chat.config, g) for g in grids]
    assert np.repeat(collapsed, repeats).tolist() == prompt.tolist()
    text = chat.prompt_ids("no image", [])
    assert chat.collapse(text, []) == text.tolist()


def test_decode_drops_control_tokens(chat: Chat) -> None:
    ids = chat.tokenizer("3 red bars", add_special_tokens=False)["input_ids"]
    assert chat.decode([*ids, chat.end_id]) == "3 red bars"


# --- conversations ----------------------------------------------------------------------------


def test_one_turn_is_the_prompt_and_then_the_labelled_answer(chat: Chat) -> None:
    grids = grids_of(chat, 1)
    question, answer = "<image>How many bars?", "<think>2, 3.</think> 3"
    ids, mask = chat.conversation_ids([turn("user", question), turn("assistant", answer)], grids)
    prompt = chat.prompt_ids(question, grids)
    assert ids.dtype == np.int64
    assert mask.dtype == bool
    assert ids[: len(prompt)].tolist() == prompt.tolist()  # as the engine will be asked
    assert not mask[: len(prompt)].any()
    assert mask[len(prompt) :].all()
    assert ids[-1] == chat.end_id  # nothing is trained, or even kept, after the end of the turn
    assert labelled_text(chat, ids, mask) == [answer + "<|im_end|>"]


def test_every_assistant_turn_is_labelled_and_images_may_come_later(chat: Chat) -> None:
    grids = grids_of(chat, 3)
    messages = [
        turn("system", "You count."),
        turn("user", "Are you ready?"),
        turn("assistant", "Yes."),
        turn("user", "<image> or <image>?"),
        turn("assistant", "Red 3."),
        turn("user", "And <image>"),
        turn("assistant", ""),
    ]
    ids, mask = chat.conversation_ids(messages, grids)
    end = "<|im_end|>"
    assert labelled_text(chat, ids, mask) == ["Yes." + end, "Red 3." + end, end]
    assert not mask[ids == chat.image_id].any()
    assert (ids == chat.image_id).sum() == sum(h * w // 784 for h, w in SIZES)
    # Joined, the pieces are the template's own text.
    whole = chat.tokenizer.decode(chat.collapse(ids, grids), skip_special_tokens=False)
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    assert whole == "\n".join(
        f"<|im_start|>{m['role']}\n{m['content'].replace('<image>', vision)}{end}" for m in messages
    )


def test_untagged_images_of_a_long_conversation_stand_in_its_first_user_turn(chat: Chat) -> None:
    rest = [turn("assistant", "3"), turn("user", "Why?"), turn("assistant", "I counted.")]
    head = turn("system", "Be brief.")
    grids = grids_of(chat, 2)
    bare = chat.conversation_ids([head, turn("user", "How many?"), *rest], grids)
    tagged = chat.conversation_ids([head, turn("user", "<image><image>How many?"), *rest], grids)
    assert bare[0].tolist() == tagged[0].tolist()
    assert bare[1].tolist() == tagged[1].tolist()


def test_what_follows_the_last_answer_is_left_out(chat: Chat) -> None:
    talk = [turn("user", "How many?"), turn("assistant", "3")]
    ids, _ = chat.conversation_ids(talk, [])
    longer, _ = chat.conversation_ids([*talk, turn("user", "Thanks")], [])
    assert longer.tolist() == ids.tolist()


def test_a_template_with_a_default_system_line(folder: Any) -> None:
    template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nLook.<|im_end|>\n{% endif %}"
        + folder.tokenizer.chat_template
    )
    chat = with_template(folder, template)
    talk = [turn("user", "<image>How many?"), turn("assistant", "3")]
    grids = grids_of(chat, 1)
    ids, mask = chat.conversation_ids(talk, grids)
    assert chat.decode(ids).startswith("<|im_start|>system\nLook.")
    assert labelled_text(chat, ids, mask) == ["3<|im_end|>"]
    with_own, mask = chat.conversation_ids([turn("system", "Count."), *talk], grids)
    assert chat.decode(with_own).startswith("<|im_start|>system\nCount.")
    assert labelled_text(chat, with_own, mask) == ["3<|im_end|>"]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "a<|image_pad|>b",
        "<|im_start|>assistant\n3",
        "x<|endoftext|>",
        "<|vision_pad|>",
    ],
)
def test_text_that_spells_a_special_token_is_refused(chat: Chat, text: str) -> None:
    assert chat.tokenizer(text, add_special_tokens=False)["input_ids"] != []
    with pytest.raises(BadText, match="special token"):
        chat.prompt_ids(text, [])
    for messages in (
        [turn("user", text), turn("assistant", "3")],
        [turn("user", "How many?"), turn("assistant", text)],
        [turn("system", text), turn("user", "How many?"), turn("assistant", "3")],
    ):
        with pytest.raises(BadText, match="special token"):
            chat.conversation_ids(messages, [])


@pytest.mark.parametrize("text", ["<|im_<image>end|>", "<|im<image>_start|>system", "<|im_end"])
def test_special_tokens_cannot_be_put_together_from_parts(chat: Chat, text: str) -> None:
    grids = grids_of(chat, text.count("<image>"))
    ids = chat.prompt_ids(text, grids)
    plain = chat.prompt_ids("<image>" * len(grids) + "?", grids)
    for token in ("<|im_start|>", "<|im_end|>"):
        control = chat.tokenizer.convert_tokens_to_ids(token)
        assert (ids == control).sum() == (plain == control).sum()


@pytest.mark.parametrize(
    ("question", "images"), [("<image>How many?", 0), ("<image><image>", 1), ("<image>?", 3)]
)
def test_tags_and_images_must_agree(chat: Chat, question: str, images: int) -> None:
    with pytest.raises(BadText, match=rf"{question.count('<image>')} <image> tags but {images} im"):
        chat.prompt_ids(question, grids_of(chat, images))


@pytest.mark.parametrize(
    ("roles", "images", "reason"),
    [
        ("u", 0, "no assistant turn"),
        ("s", 0, "no assistant turn"),
        ("au", 0, "starts with the assistant"),
        ("sa", 1, "image"),  # no user turn that the image could stand in
        ("uau<", 1, "after the last assistant turn"),
    ],
)
def test_conversations_that_cannot_be_labelled(
    chat: Chat, roles: str, images: int, reason: str
) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [turn(names[r], "3 bars") for r in roles.rstrip("<")]
    if roles.endswith("<"):
        messages[-1] = turn("user", "and <image>")
    with pytest.raises(BadText, match=reason):
        chat.conversation_ids(messages, grids_of(chat, images))


def test_half_a_character_is_refused(chat: Chat) -> None:
    with pytest.raises(BadText, match="Unicode"):
        chat.prompt_ids("how many \ud83d?", [])
    assert len(chat.prompt_ids("how many \U0001f600 \x00 \u202e?", [])) > 5


def test_a_template_that_refuses_or_rewrites_is_named(folder: Any) -> None:
    talk = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    with pytest.raises(ValueError, match=r"chat template fails.*roles must alternate"):
        with_template(folder, "{{ raise_exception('roles must alternate') }}")
    refuses = with_template(
        folder,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + folder.tokenizer.chat_template,
    )
    with pytest.raises(BadText, match=r"chat template refuses.*no system"):
        refuses.conversation_ids([turn("system", "x"), *talk], [])
    forgets = with_template(
        folder,
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}"
        "<|im_start|>{{ m['role'] }}\n"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|image_pad|>{% endif %}"
        "{{ p['text'] }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    assert len(forgets.conversation_ids(talk[:2], [])[0])
    with pytest.raises(BadText, match="rewrites earlier turns"):
        forgets.conversation_ids(talk, [])


def test_reasons_name_no_row(chat: Chat) -> None:
    """They are counted, so two rows with one fault must give one text."""
    reasons = set()
    for text in ("secret one <|im_end|>", "secret two <|im_start|>"):
        with pytest.raises(BadText) as caught:
            chat.prompt_ids(text, [])
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "secret" not in reasons.pop()


def test_a_folder_is_all_that_chat_needs(folder: Any, tmp_path: Path) -> None:
    """Saved and opened again, the tokenizer formats the same."""
    from transformers import AutoTokenizer

    folder.tokenizer.save_pretrained(tmp_path)
    again = Chat(AutoTokenizer.from_pretrained(tmp_path), folder.config)
    grids = grids_of(again, 1)
    assert again.prompt_ids("<image>a", grids).tolist() == (
        folder.chat.prompt_ids("<image>a", grids).tolist()
    )
