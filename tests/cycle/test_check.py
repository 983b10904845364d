"""What the stages of a cycle name is looked at before the first of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chain import reader_folder, write_questions
from helpers.tiny import tiny_folder

from ovlt.config import Recipe
from ovlt.config.load import recipe_from
from ovlt.config.trees import merged
from ovlt.cycle import check
from ovlt.cycle.stages import cycle_stages
from ovlt.model import attention
from ovlt.system import launch
from ovlt.system.runtime import sentence_of

TREE: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {"path": "{home}/model", "compute_dtype": "float32"},
    "data": {"validation": "{home}/questions.jsonl", "held_out": "{home}/held.jsonl", "workers": 1},
    "sft": {"token_budget": 400},
    "grpo": {
        "data": "{home}/questions.jsonl", "token_budget": 300, "eval_every": 1,
        "prompts_per_step": 4,
        "rollout": {"max_prompt_tokens": 160, "max_response_tokens": 12},
    },
    "engine": {"backend": "vllm"},
    "evaluate": {"max_prompt_tokens": 160, "max_response_tokens": 12},
    "distill": {
        "data": "{home}/questions.jsonl", "teacher": "{home}/teacher", "max_prompt_tokens": 100,
        "max_caption_tokens": 12, "max_response_tokens": 12,
        "teacher_request": "{caption} {question}",
    },
    "cycle": {"iterations": [{"grpo": [{"name": "a"}, {"name": "b"}]}, {}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("check")
    model = tiny_folder(home / "model")
    reader_folder(home / "teacher", model)
    write_questions(home / "questions.jsonl", 4)
    write_questions(home / "held.jsonl", 3)
    (home / "words.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    (home / "broken.py").write_text("import nothing_of_that_name\n")
    shutil.copytree(home / "model", home / "adapter")
    (home / "adapter" / "adapter_config.json").write_text("{}")
    shutil.copytree(home / "teacher", home / "mute")
    (home / "mute" / "chat_template.jinja").unlink()
    return home


def words(home: Path, tmp_path: Path, changes: dict[str, Any]) -> list[str]:
    """The arguments for every stage of the cycle."""
    text = json.dumps(merged(TREE | {"run": {"device": "cpu", "folder": str(tmp_path)}}, changes))
    recipe: Recipe = recipe_from(json.loads(text.replace("{home}", str(home))))
    return [
        f"{s.name}:{s.table}={launch.write_recipe(s.recipe, tmp_path / f'{s.name}.json')}"
        for s in cycle_stages(recipe)
    ]


def test_a_good_cycle_is_counted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keywords = {"teacher_chat_template_kwargs": {"thinks": True}}  # which the model does not read
    check.main(words(home, tmp_path, {"distill": keywords}))
    said = capsys.readouterr().out
    assert "checked 8 stages" in said
    assert f"{home}/questions.jsonl (4 rows)" in said
    assert f"{home}/held.jsonl (3 rows)" in said


def second_part(**keys: object) -> dict[str, Any]:
    return {"cycle": {"iterations": [{"grpo": [{"name": "a"}, {"name": "b"} | keys]}, {}]}}


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a reward of a later stage": (
        second_part(reward={"function": "{home}/broken.py:f"}), "broken.py", "nothing_of_that_name",
    ),
    "a reward by a wrong name": (second_part(reward={"verdict": "exakt"}), "reward", "'exact'"),
    "rows of a later stage": (second_part(data="{home}/words.jsonl"), "grpo1-b", "words.jsonl"),
    "held-out rows": ({"data": {"held_out": "{home}/words.jsonl"}}, "base_answers", "words.jsonl"),
    "validation rows": ({"cycle": {"validation": "{home}/words.jsonl"}}, "grpo1-a", "words.jsonl"),
    "a length": ({"evaluate": {"max_response_tokens": 9000}}, "base_answers", "takes 4096 tokens"),
    "a length of the teacher": ({"distill": {"max_response_tokens": 4000}}, "distill1", "512"),
    "the teacher's template": (
        {"distill": {"teacher": "{home}/mute"}}, "distill1", "no chat template",
    ),
    "a keyword of the teacher": (
        {"distill": {"teacher_chat_template_kwargs": {"thnks": True}}},
        "distill1", "distill.teacher_chat_template_kwargs.thnks; did you mean 'thinks'?",
    ),
    "a keyword of the captioner": (
        {"distill": {"captioner_chat_template_kwargs": {"thinks": True}}},
        "distill1", "distill.captioner_chat_template_kwargs.thinks",
    ),
    "a keyword of the model": (
        {"model": {"chat_template_kwargs": {"thinks": True}}},
        "base_answers", "model.chat_template_kwargs.thinks",
    ),
    "a start of a later stage": (
        second_part(start="{home}/adapter"), "grpo1-b", "LoRA adapter",
    ),
    "a reference": (
        second_part(reference="{home}/adapter", loss={"kl_coef": 0.1}), "grpo1-b", "LoRA adapter",
    ),
    "an engine that cannot": (
        {"engine": {"backend": "transformers"}}, "distill1", "text-only model",
    ),
    "pixels": ({"model": {"max_pixels": 99_000_000}}, "base_answers", "max_pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_of_any_stage_is_seen_before_the_first(
    home: Path, tmp_path: Path, case: str
) -> None:
    changes, place, text = MISTAKES[case]
    with pytest.raises(SystemExit) as ended:
        check.main(words(home, tmp_path, changes))
    said = str(ended.value.code)
    assert said.startswith("ovlt cycle: ")
    assert place in said
    assert text in said


def test_inputs_that_a_stage_will_make_are_left_to_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model": {"path": str(tmp_path / "made-later")}}
    check.main(words(home, tmp_path, changes))
    assert "checked 8 stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: Path("/nowhere/at/all").read_text(), "/nowhere/at/all"),
        (lambda: int("x"), "invalid literal"),
        (lambda: {}["x"], ""),
        (lambda: (_ for _ in ()).throw(RuntimeError("of a library")), ""),
    ],
)
def test_only_mistakes_become_sentences(error: Callable[[], object], told: str) -> None:
    with pytest.raises(Exception) as caught:
        error()
    assert isinstance(caught.value, Exception)
    text = sentence_of(caught.value)
    assert (told in text) if told else text == ""


def test_what_ovlt_stops_by_itself_is_a_sentence_too() -> None:
    x, causal = torch.zeros(1, 2, 3, 4), torch.nn.Module()
    causal.is_causal = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError) as caught:
        attention.varlen(causal, x, x, x, None)
    assert sentence_of(caught.value).startswith("attention was called without")
    assert "token_budget" in sentence_of(torch.OutOfMemoryError("CUDA out of memory. Tried ..."))
    assert "make room" in sentence_of(OSError("[Errno 28] No space left on device"))
