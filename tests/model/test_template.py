"""Other people's chat templates: what ends a turn is read off what they write, or they are refused.

The model is the tiny one; templates are put into its folder where transformers reads them.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.folders import copy_of, edit_json, set_template
from helpers.tiny import tiny_folder
from tokenizers import AddedToken

from ovlt.model import sizes as model_sizes
from ovlt.model.chat import BadText, Chat
from ovlt.model.load import open_folder, open_text_model
from ovlt.smoke.base import CHAT_TEMPLATE

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PARTS = (
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}" + IMAGE + "{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}"
)
CONTENTS = {
    "parts": PARTS,
    "string": "{{ m['content'] }}",
    "either": "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PARTS + "{% endif %}",
    "trimmed": "{{ m['content'] | trim }}",
    "joined": "{{ '' + m['content'] }}",  # a list of parts fails here, with a TypeError
}
OPENS = (
    "<|im_start|>{{ m['role'] }}\n",
    "{{ m['role'] | upper }}: ",
    "<|quad_start|>{{ m['role'] }} ",
)
ENDS = ("<|im_end|>", "<|endoftext|>", "<|quad_end|>", " <|box_end|>")
AFTER = ("", "\n", "\n\n")
TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("templates")
    tiny_folder(home / "model")
    return home


def with_template(home: Path, target: Path, template: str) -> Chat:
    set_template(copy_of(home / "model", target), template)
    return open_folder(target).chat


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def labelled(chat: Chat, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [chat.tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in pairs]


def generated(count: int) -> list[tuple[str, str, str]]:
    """(template, end, kind of content) of templates put together from parts, seeded."""
    every = list(itertools.product(CONTENTS, OPENS, ENDS, AFTER))
    cases = []
    for kind, begin, end, after in random.Random(8).sample(every, count):
        opened = begin.replace("m['role']", "'assistant'")
        body = f"{begin}{CONTENTS[kind]}{end}{after}"
        cases.append(
            (
                "{% for m in messages %}" + body + "{% endfor %}"
                "{% if add_generation_prompt %}" + opened + "{% endif %}",
                end,
                kind,
            )
        )
    return cases


def test_generated_templates_train_and_stop_at_what_they_write(home: Path, tmp_path: Path) -> None:
    for number, (template, end, kind) in enumerate(generated(60)):
        chat = with_template(home, tmp_path / str(number), template)
        assert chat.end == end.strip(), template
        assert bool(chat.template.strings) == (kind in ("string", "trimmed", "joined")), template
        grid = model_sizes.image_grid(chat.config, 84, 56)
        talk = turns("<image>How many?", "3 bars", "Why?", "I counted.")
        ids, mask = chat.conversation_ids(talk, [grid])
        assert labelled(chat, ids, mask) == ["3 bars" + end, "I counted." + end], template
        assert ids[-1] == chat.end_id
        assert mask[-1]
        prompt = chat.prompt_ids("<image>How many?", [grid])
        assert ids[: len(prompt)].tolist() == prompt.tolist(), template
        assert (prompt == chat.image_id).sum() == 6
        for text in (chat.end, f"a {chat.end} b", "<|image_pad|>"):
            with pytest.raises(BadText, match="special token"):
                chat.prompt_ids(text, [])


def test_the_end_is_the_templates_and_not_the_tokenizers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(home / "model", tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))
    edit_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=330))
    chat = open_folder(folder).chat
    assert chat.end == "<|im_end|>"
    _, mask = chat.conversation_ids(turns("How many?", "3"), [])
    assert mask[-1]
    told = capsys.readouterr().out
    assert "<|im_end|>, as the chat template writes; eos_token is <|endoftext|>" in told
    assert "generation_config.json stops at token 330" in told


@pytest.mark.parametrize("eos", [None, "<|im_end|>", "<|endoftext|>"])
def test_a_tokenizer_may_have_no_eos(home: Path, tmp_path: Path, eos: str | None) -> None:
    folder = copy_of(home / "model", tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token=eos))
    assert open_folder(folder).chat.end == "<|im_end|>"


@pytest.mark.parametrize("where", ["json", "jinja", "processor", "tokenizer", "named"])
def test_a_template_is_read_wherever_transformers_reads_it(
    home: Path, tmp_path: Path, where: str
) -> None:
    folder = copy_of(home / "model", tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", lambda c: c.pop("chat_template", None))
    edit_json(folder / "processor_config.json", lambda c: c.pop("chat_template", None))
    with pytest.raises(ValueError, match="no chat template"):
        open_folder(folder)
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|box_end|>")
    if where == "json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    elif where == "jinja":
        (folder / "chat_template.jinja").write_text(template)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    elif where == "processor":
        edit_json(folder / "processor_config.json", lambda c: c.update(chat_template=template))
    else:
        value: Any = template
        if where == "named":
            value = [{"name": "default", "template": template}, {"name": "x", "template": "y"}]
        edit_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=value))
    assert open_folder(folder).chat.end == "<|box_end|>"


# --- tags that are special tokens -------------------------------------------------------------


def test_tags_that_are_special_tokens_reach_rewards_and_sft(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "model", tmp_path / "m")

    def mark(file: dict[str, Any]) -> None:
        for token in file["added_tokens"]:
            if token["content"] in ("<think>", "</think>", "<answer>", "</answer>"):
                token["special"] = True

    edit_json(folder / "tokenizer.json", mark)
    chat = open_folder(folder).chat
    text = "<think>2, 3.</think> There are 3. <answer>3</answer>"
    ids, mask = chat.conversation_ids(turns("How many?", text), [])
    assert {str(t) for t in chat.tokenizer.added_tokens_decoder.values() if t.special} > {"<think>"}
    assert chat.decode(ids[mask].tolist()) == text
    pads = [chat.tokenizer.pad_token_id, chat.image_id, chat.end_id]
    assert chat.decode([*ids[mask].tolist(), *pads]) == text
    with pytest.raises(BadText, match="special token"):
        chat.prompt_ids("<|im_start|>", [])


def test_a_template_that_opens_a_special_tag_leaves_it_to_texts(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "model", tmp_path / "m")

    def mark(file: dict[str, Any]) -> None:
        for token in file["added_tokens"]:
            token["special"] = True

    edit_json(folder / "tokenizer.json", mark)
    set_template(folder, CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>{% endif"))
    chat = open_folder(folder).chat
    assert chat.template.opening == "<think>"
    ids, mask = chat.conversation_ids(turns("How many?", "<think>2</think> 3"), [])
    assert chat.decode(ids[mask].tolist()) == "2</think> 3"
    with pytest.raises(BadText, match=r"opens the turn with '<think>'"):
        chat.conversation_ids(turns("How many?", "3"), [])


def test_keywords_reach_prompts_and_training_alike(home: Path, tmp_path: Path) -> None:
    """A template that thinks unless it is told not to, as those of Qwen's newer models."""
    thinks = (
        "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif"
    )
    folder = copy_of(home / "model", tmp_path / "m")
    set_template(folder, CHAT_TEMPLATE.replace("assistant\n{% endif", thinks))
    openings = {}
    for keywords in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        chat = open_folder(folder, keywords).chat
        opening = openings[str(keywords)] = chat.template.opening
        prompt = chat.prompt_ids("How many?", []).tolist()
        ids, mask = chat.conversation_ids(turns("How many?", f"{opening}3"), [])
        assert ids.tolist()[: len(prompt)] == prompt
        assert chat.decode(ids[mask].tolist()) == "3"
    assert list(openings.values()) == ["<think>\n", "<think>\n", "<think>\n\n</think>\n\n"]
    with pytest.raises(ValueError, match=r"kwargs\.enable_thinkin; did you mean 'enable_thinking'"):
        open_folder(folder, {"enable_thinkin": False})
    key = "distill.captioner_chat_template_kwargs"
    with pytest.raises(ValueError, match=rf"{key}\.enable_thinkin; did you mean"):
        open_folder(folder, {"enable_thinkin": False}, key)


def test_a_decoder_does_not_tidy_what_the_model_wrote(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "model", tmp_path / "m")
    edit_json(
        folder / "tokenizer_config.json", lambda c: c.update(clean_up_tokenization_spaces=True)
    )
    chat = open_folder(folder).chat
    text = "3 , 4 . do n't ?"
    ids = chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert chat.decode(ids) == text


# --- templates that differ from what training assumes -----------------------------------------


def body(content: str, begin: str = OPENS[0], end: str = "<|im_end|>\n") -> str:
    return f"{begin}{content}{end}"


def whole(inner: str, opened: str = "<|im_start|>assistant\n") -> str:
    return (
        "{% for m in messages %}" + inner + "{% endfor %}"
        "{% if add_generation_prompt %}" + opened + "{% endif %}"
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (whole(body(CONTENTS["either"], end="\n\n")), "holds no token"),
        (whole(body(CONTENTS["either"], end="")), "holds no token"),
        (whole(body(CONTENTS["either"]), opened=""), "ignores add_generation_prompt"),
        (whole(body("{% for p in m['content'] %}{{ p['text'] }}{% endfor %}")), "placeholders"),
        (whole(body(PARTS.replace("<|image_pad|>", "<image>"))), "placeholders"),
        (whole(body(PARTS.replace(IMAGE, IMAGE * 2))), "placeholders"),
        (whole(body("{{ m['text'] }}")), "text of a question"),
        (whole(body("hello")), "text of a question"),
        (whole("{% if m['role'] == 'user' %}" + body(CONTENTS["either"]) + "{% endif %}"),
         "leaves out what the model says"),
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{% for m in messages %}", "fails on a question"),  # a syntax error
        ("{{ messages.wrong.deep }}", "fails on a question"),
        ("{{ 1 / 0 }}", "fails on a question"),
        ("{{ messages[9]['content'] }}", "fails on a question"),
        ("", "no chat template"),
        ("just text", "text of a question"),
    ],
)  # fmt: skip
def test_templates_that_training_cannot_use_are_refused(
    home: Path, tmp_path: Path, template: str, words: str
) -> None:
    with pytest.raises(ValueError, match=r"chat template") as caught:
        with_template(home, tmp_path / "m", template)
    assert words in str(caught.value)
    assert str(tmp_path / "m") in str(caught.value)


def test_system_turns_as_strings_beside_questions_in_parts(home: Path, tmp_path: Path) -> None:
    inner = (
        "{% if m['role'] == 'system' %}{{ '' + m['content'] }}{% else %}" + PARTS + "{% endif %}"
    )
    chat = with_template(home, tmp_path / "m", whole(body(inner)))
    assert chat.template.strings == {"system"}
    talk = [{"role": "system", "content": "Count."}, *turns("How many?", "3")]
    ids, _ = chat.conversation_ids(talk, [])
    assert chat.decode(ids).startswith("<|im_start|>system\nCount.")


def test_templates_that_drop_earlier_thoughts_serve_one_turn_and_say_so_for_more(
    home: Path, tmp_path: Path
) -> None:
    said = "{% if loop.last or m['role'] == 'user' %}" + CONTENTS["either"] + "{% endif %}"
    chat = with_template(home, tmp_path / "m", whole(body(said)))
    assert "rewrites earlier turns" in chat.template.several
    ids, mask = chat.conversation_ids(turns("How many?", "3"), [])
    assert labelled(chat, ids, mask) == ["3<|im_end|>"]
    with pytest.raises(BadText, match="rewrites earlier turns"):
        chat.conversation_ids(turns("How many?", "3", "Why?", "So."), [])


# As the templates of models that think by default: the prompt opens the thoughts, a turn always has
# some, and those before the last question are dropped.
THINKS = (
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% set seen = namespace(last=false) %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set t = (m['content'] if m['content'] is string else m['content'][0]['text']) %}"
    "{% set thought = t.split('</think>')[0].split('<think>')[-1] if '</think>' in t else '' %}"
    "{% if seen.last %}{{ '<think>\n' + thought | trim + '\n</think>\n\n' }}{% endif %}"
    "{{ t.split('</think>')[-1] | trim }}{% else %}" + CONTENTS["either"] + "{% endif %}"
    "{% if m == last %}{% set seen.last = true %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def test_templates_that_open_the_thoughts_in_the_prompt(home: Path, tmp_path: Path) -> None:
    chat = with_template(home, tmp_path / "m", THINKS)
    assert chat.template.lead == "<think>\n"
    row = turns("How many?", "<think>1 2 3</think> <answer>3</answer>")
    prompt = chat.decode(chat.prompt_ids("How many?", []))
    assert prompt.endswith("assistant\n<think>\n")
    ids, mask = chat.conversation_ids(row, [])
    assert labelled(chat, ids, mask) == ["1 2 3\n</think>\n\n<answer>3</answer><|im_end|>"]
    with pytest.raises(BadText, match=r"rewrites earlier turns.*rows of one answer"):
        chat.conversation_ids([*row, *turns("Why?", "<think>4</think> So.")], [])
    silent = Chat(chat.tokenizer, chat.config, {"enable_thinking": False})
    assert silent.template.lead == "<think>\n\n</think>\n\n"
    ids, mask = silent.conversation_ids(turns("How many?", "<answer>3</answer>"), [])
    assert labelled(silent, ids, mask) == ["<answer>3</answer><|im_end|>"]
    with pytest.raises(BadText, match=r"opens the turn with '<think>.*does not begin with that"):
        silent.conversation_ids(row, [])


@pytest.mark.parametrize(
    ("content", "role"),
    [
        ("{{ m['content'].split('</think>')[-1] }}", "assistant"),
        ("{{ m['content'] | replace('<answer>', '') }}", "assistant"),
        ("{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}", "system"),
        ("{{ m['content'] | replace('many', 'few') }}", "user"),
    ],
)
def test_a_template_that_leaves_text_out_is_not_trained_on(
    home: Path, tmp_path: Path, content: str, role: str
) -> None:
    """As the templates of reasoning models do with thoughts, and others with a system turn."""
    chat = with_template(home, tmp_path / "m", whole(body(content)))
    answer = "<think>There are three of them, red ones.</think> <answer>3</answer>"
    talk = [{"role": "system", "content": "Count."}, *turns("How many?", answer)]
    with pytest.raises(BadText, match=f"leaves out, or changes, .* turn of the {role}"):
        chat.conversation_ids(talk, [])
    if role != "assistant":
        with pytest.raises(BadText, match=f"turn of the {role}"):
            chat.dialogue_ids(talk[:2], [])


def test_white_space_of_thoughts_is_the_templates(home: Path, tmp_path: Path) -> None:
    """Some templates take a turn apart and write it again, thoughts on lines of their own."""
    content = (
        "{% if '</think>' in m['content'] %}{% set t = m['content'].split('</think>') %}"
        "{{ t[0].strip() + '\n</think>\n\n' + t[1].strip() }}"
        "{% else %}{{ m['content'] }}{% endif %}"
    )
    chat = with_template(home, tmp_path / "m", whole(body(content)))
    ids, mask = chat.conversation_ids(turns("How many?", "<think>1 2 3</think> <answer>3"), [])
    assert labelled(chat, ids, mask) == ["<think>1 2 3\n</think>\n\n<answer>3<|im_end|>"]


def test_an_end_that_only_some_turns_have_is_noticed(home: Path, tmp_path: Path) -> None:
    end = "{% if loop.last %}<|im_end|>{% endif %}\n"
    chat = with_template(home, tmp_path / "m", whole(body(CONTENTS["either"], end=end)))
    with pytest.raises(BadText, match=r"rewrites earlier|does not end"):
        chat.conversation_ids(turns("How many?", "3", "Why?", "So."), [])


def test_a_text_only_model_is_asked_in_strings_or_in_parts(home: Path, tmp_path: Path) -> None:
    for number, kind in enumerate(("string", "parts")):
        folder = copy_of(home / "model", tmp_path / str(number))
        set_template(folder, whole(body(CONTENTS[kind], end="<|box_end|>")))
        size = json.loads((folder / "config.json").read_text())["text_config"]
        config = {key: size[key] for key in TEXT_KEYS} | {"model_type": "qwen2"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").unlink()
        teacher = open_text_model(folder)
        assert teacher.chat.end == "<|box_end|>"
        text = teacher.chat.decode(teacher.chat.prompt_ids("How many?", []).tolist())
        assert text == "<|im_start|>user\nHow many?<|im_start|>assistant\n"
        key = "distill.teacher_chat_template_kwargs"
        with pytest.raises(ValueError, match=rf"template does not read {key}\.enable_thinking"):
            open_text_model(folder, {"enable_thinking": True}, key)
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ValueError, match="no chat template"):
            open_text_model(folder)


def test_ids_beyond_the_embedding_are_refused(home: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = copy_of(home / "model", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(f"<extra{i}>") for i in range(20)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"beyond the \d+ rows of the embedding.*<extra"):
        open_folder(folder)


def test_another_models_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    folder = copy_of(home / "model", tmp_path / "m")
    edit_json(folder / "config.json", lambda c: c.update(image_token_id=7))
    with pytest.raises(ValueError, match="image_token_id is 7"):
        open_folder(folder)
