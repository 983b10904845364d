"""``ovlt.distill`` as a user runs it: real engines, real graders, ranks, kills, and mistakes.

The model is ``chain.py``'s.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.chain import reader_folder, say_by_chain, write_questions
from helpers.commands import Command, Server
from helpers.home import Home
from helpers.tiny import tiny_folder

from ovlt.__main__ import main
from ovlt.config import DistillConfig
from ovlt.config.load import recipe_from
from ovlt.distill.command import drive
from ovlt.distill.phases import phase_and_before
from ovlt.distill.shards import Record, Shards
from ovlt.smoke import make as smoke
from ovlt.system import launch

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

QUESTIONS = 13
RECIPE = """
[run]
device = "cpu"
tensorboard = false
folder = "{home}/runs/default"
[model]
path = "{home}/model"
compute_dtype = "float32"
[data]
workers = 1
suffix = " Think."
[engine]
kv_cache_gib = 0.05
[reward]
workers = 1
[distill]
data = "{home}/questions.jsonl"
teacher = "{home}/model"
caption_request = "Describe the image."
teacher_request = "{caption} {question}"
k = 3
temperature = 1.0
shard = 4
max_prompt_tokens = 100
max_caption_tokens = 12
max_response_tokens = 12
[distill.engine]
max_sequences = 16
"""


class DistillHome(Home):
    """Questions, two models that can answer them, and phases as the driver starts them."""

    def __init__(self, folder: Path, server: Server):
        super().__init__(folder, RECIPE, server)
        model = tiny_folder(folder / "model")
        say_by_chain(model)
        say_by_chain(reader_folder(folder / "reader", model))
        rows = write_questions(folder / "questions.jsonl", QUESTIONS)
        never = [row | {"answer": "7"} for row in rows[:3]]
        (folder / "never.jsonl").write_text("\n".join(map(json.dumps, never)))

    def phase(self, run: str, phase: str, *overrides: str, ranks: int = 1) -> Command:
        return self.start("distill.rank", run, f"--distill.phase={phase}", *overrides, ranks=ranks)

    def run(self, run: str, *overrides: str, ranks: int = 1) -> Path:
        """Run both phases and return the stage folder."""
        for phase in ("captions", "answers"):
            self.phase(run, phase, *overrides, ranks=ranks).finish()
        return self.stage("distill", run)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: Server) -> DistillHome:
    return DistillHome(tmp_path_factory.mktemp("distill"), server)


@pytest.fixture(scope="module")
def whole(home: DistillHome) -> Path:
    """The stage folder of a run that nothing disturbed."""
    return home.run("whole")


def answers(folder: Path) -> dict[int, Record]:
    settings = json.loads((folder / "answers" / "settings.json").read_text())
    return {record["index"]: record for record in Shards(folder / "answers", settings).read()}


def test_every_question_is_answered_and_every_drop_has_its_reason(whole: Path) -> None:
    records = answers(whole)
    assert sorted(records) == list(range(QUESTIONS))
    rows = {row["id"]: row for row in pq.read_table(whole / "rows.parquet").to_pylist()}
    dropped = {r["id"]: r for r in map(json.loads, (whole / "dropped.jsonl").open())}
    assert len(rows) + len(dropped) == QUESTIONS
    assert rows
    samples = list(map(json.loads, (whole / "samples.jsonl").open()))
    assert len(samples) == 3 * QUESTIONS
    kept = Counter(s["id"] for s in samples if s["reason"].startswith("kept: the shortest of"))
    assert kept == dict.fromkeys(rows, 1)
    not_right = [s for s in samples if s["reason"].startswith("not correct: ")]
    assert len(not_right) == sum(score < 1 for r in records.values() for score in r["scores"])
    beaten = [s for s in samples if s["reason"] == "correct, but another is the shortest"]
    assert len(kept) + len(not_right) + len(beaten) == len(samples)
    for index, record in records.items():
        truth = str(1 + index % 4)
        right = [f"<answer>{truth}</answer>" in text for text in record["texts"]]
        assert [score == 1.0 for score in record["scores"]] == right
        assert len(record["reasons"]) == 3
        assert (f"q{index}" in rows) == any(right)
        if not any(right):
            assert dropped[f"q{index}"]["reason"] == "no sample is correct"
            continue
        row = rows[f"q{index}"]
        user, assistant = (message["content"] for message in row["messages"])
        assert user == f"<image>How many? {index} Think."
        first = record["texts"][right.index(True)].removeprefix("<think>").partition("</think>")[0]
        assert assistant == f"<think>\n{first}\n</think>\n\n<answer>{truth}</answer>"
        assert len(row["images"]) == 1
        assert row["source"] == ["charts", "maps"][index % 2]


def test_the_summary_counts_what_happened(whole: Path) -> None:
    figures = json.loads((whole / "summary.json").read_text())
    funnel = {step: count for count, step in figures["funnel"]}
    kept = pq.read_table(whole / "rows.parquet").num_rows
    assert funnel["questions"] == funnel["answered"] == QUESTIONS
    assert funnel["with a correct answer"] == funnel["kept"] == kept
    assert sum(count for count, _ in figures["dropped"]) == QUESTIONS - kept
    assert figures["pass"]["charts"]["questions"] == 7
    assert 0 < figures["pass"]["all"]["pass@1"] < figures["pass"]["all"]["pass@2"] < 1
    assert sum(count for _, _, count in figures["words"]) == kept


def test_samples_do_not_depend_on_ranks_or_on_a_kill(home: DistillHome, whole: Path) -> None:
    home.phase("killed", "captions", ranks=2).finish()
    command = home.phase("killed", "answers", ranks=2)
    shards = home.stage("distill", "killed") / "answers"
    command.kill_when(lambda: any(shards.glob("*-*.jsonl")))
    before = {path.name: path.read_bytes() for path in shards.glob("*-*.jsonl")}
    assert not (shards.parent / "rows.parquet").exists()
    again = home.run("killed", ranks=2)
    for name, content in before.items():
        assert (again / "answers" / name).read_bytes() == content  # nothing was made twice
    assert {i: r["texts"] for i, r in answers(again).items()} == {
        i: r["texts"] for i, r in answers(whole).items()
    }
    for name in ("rows.parquet", "summary.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_fewer_questions_than_ranks_are_answered_too(home: DistillHome) -> None:
    """To open the engine is collective: a rank without a question once let the others wait."""
    for run, phase in (("one", "captions"), ("one", "answers"), ("one", "answers")):
        command = home.phase(run, phase, "--distill.questions=1", ranks=2)
        command.deadline = time.monotonic() + 180  # it would hang for half an hour
        command.finish()
    assert sorted(answers(home.stage("distill", "one"))) == [0]


def test_a_teacher_may_be_any_language_model(home: DistillHome) -> None:
    reader = f"--distill.teacher={home.folder / 'reader'}"
    thinks = "--distill.teacher_chat_template_kwargs.thinks=true"  # the captioner reads no such one
    folder = home.run("reader", reader, thinks, "--distill.questions=5")
    assert len(answers(folder)) == 5
    texts = [text for record in answers(folder).values() for text in record["texts"]]
    assert all(text.startswith("t") and "<|" not in text for text in texts)  # after <think>
    message = home.phase(
        "blind", "captions", f"--distill.captioner={home.folder / 'reader'}"
    ).refusal()
    assert "'qwen2' model" in message
    overrides = (reader, "--distill.questions=2", "--engine.backend=transformers")
    slow = home.phase("slow", "captions", *overrides)  # before hours of captions
    assert "engine.backend='vllm'" in slow.refusal()


def test_a_model_that_sees_needs_no_captions(home: DistillHome) -> None:
    home.phase("direct", "answers", "--distill.teacher=", "--distill.questions=5").finish()
    folder = home.stage("distill", "direct")
    assert not (folder / "captions").exists()
    assert len(answers(folder)) == 5
    texts = [text for record in answers(folder).values() for text in record["texts"]]
    assert all(text.startswith("<think>t") for text in texts)


def test_a_second_round_of_captions_knows_what_the_first_left_open(home: DistillHome) -> None:
    overrides = [
        "--distill.refine=true",
        "--distill.questions=4",
        "--distill.details_request={caption} {question}",
        "--distill.recaption_request=<{details}>",
    ]
    for phase in ("captions", "details", "recaptions", "answers"):
        home.phase("refined", phase, *overrides).finish()
    folder = home.stage("distill", "refined")
    assert len(answers(folder)) == 4
    made_with = {}
    for phase in ("captions", "details", "recaptions"):
        settings = json.loads((folder / phase / "settings.json").read_text())
        records = Shards(folder / phase, settings).read()
        assert [record["dropped"] for record in records] == [""] * 4
        made_with[phase] = settings
    assert "recaption_request" not in made_with["details"]
    assert made_with["recaptions"]["recaption_request"] == "<{details}>"
    again = home.phase(
        "refined", "recaptions", *overrides[:3], "--distill.recaption_request=!{details}"
    )
    assert "another recaption_request" in again.refusal()


def test_answers_are_drawn_from_the_nucleus(home: DistillHome, whole: Path) -> None:
    folder = home.run("narrow", "--distill.top_p=0.01", "--distill.questions=5")
    for index, record in answers(folder).items():
        assert len(set(record["texts"])) == 1, index
    assert any(len(set(record["texts"])) > 1 for record in answers(whole).values())


def test_mistakes_end_in_one_sentence(home: DistillHome, whole: Path) -> None:
    data = f"--distill.data={home.folder / 'never.jsonl'}"
    never = home.phase("never", "answers", "--distill.teacher=", data)
    other = home.phase("whole", "answers", "--distill.k=2")
    long = home.phase("long", "captions", "--distill.max_caption_tokens=100000")
    # the teacher takes 512: said before a caption is made
    reader = f"--distill.teacher={home.folder / 'reader'}"
    short = home.phase("short", "captions", reader, "--distill.max_response_tokens=500")
    early = home.phase("early", "answers")
    nobody = home.phase("whole", "answers", "--distill.answers_of=distil")
    word = "--distill.teacher_chat_template_kwargs.thnks=true"
    misspelt = home.phase("misspelt", "captions", reader, word)
    message = never.refusal()
    assert "no trace is left to learn from" in message
    assert "most often since no sample is correct" in message
    assert "'pass@1': 0.0" in message
    assert "made with another k" in other.refusal()
    assert "distill.max_prompt_tokens + distill.max_caption_tokens are 100100" in long.refusal()
    assert "reader takes 512 tokens, but distill.max_prompt_tokens + " in (
        message := short.refusal()
    )
    assert "distill.max_response_tokens are 600: lower one of them" in message
    assert "13 of 13 questions have no record in" in (message := early.refusal())
    assert "run --distill.phase=captions first" in message
    assert "distill.answers_of = 'distil': no answers are in" in nobody.refusal()
    message = misspelt.refusal()
    assert "reader: the chat template does not read distill.teacher_chat_template_kw" in message
    assert "did you mean 'thinks'?" in message


@pytest.mark.parametrize(
    "key", ["data.suffix= Hm.", "model.max_pixels=200000", "reward.function=released"]
)
def test_records_are_not_continued_by_what_would_make_others(
    home: DistillHome, whole: Path, key: str
) -> None:
    message = home.phase("whole", "answers", f"--{key}").refusal()
    name = key.partition("=")[0].replace("reward.function", "reward.verdict")
    assert f"made with another {name}" in message


def test_records_are_not_continued_for_other_questions(home: DistillHome) -> None:
    """A row that has been mended moves all that come after it, and records go by their place."""
    path = home.folder / "mended.jsonl"
    rows = write_questions(path, 5)
    path.write_text("\n".join(map(json.dumps, [rows[0] | {"answer": ""}, *rows[1:]])))
    overrides = (f"--distill.data={path}", "--data.max_bad_share=0.5")
    home.phase("mended", "captions", *overrides).finish()
    path.write_text("\n".join(map(json.dumps, rows)))
    message = home.phase("mended", "answers", *overrides).refusal()
    assert "made with another list of good questions" in message


def test_a_full_disk_is_one_sentence_and_finished_shards_stay(
    home: DistillHome, whole: Path
) -> None:
    folder = home.stage("distill", "full")
    folder.mkdir(parents=True)
    (folder / "summary.json").symlink_to("/dev/full")
    overrides = ("--distill.questions=5", "--distill.teacher=")
    message = home.phase("full", "answers", *overrides).refusal()
    assert "No space left on device" in message
    assert "make room" in message
    made = {path: path.stat().st_mtime_ns for path in (folder / "answers").iterdir()}
    (folder / "summary.json").unlink()
    home.phase("full", "answers", *overrides).finish()
    assert {path: path.stat().st_mtime_ns for path in (folder / "answers").iterdir()} == made
    assert (folder / "rows.parquet").is_file()


def test_answers_of_another_stage_are_filtered_anew_and_not_sampled_again(
    home: DistillHome, whole: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "answers").iterdir()}
    overrides = (
        "--distill.stage=short",
        "--distill.answers_of=distill",
        "--distill.keep=second_longest",
    )
    home.phase("whole", "answers", *overrides).finish()
    assert {path: path.stat().st_mtime_ns for path in (whole / "answers").iterdir()} == before
    other = whole.parent / "short"
    assert not (other / "answers").exists()
    assert pq.read_table(other / "rows.parquet").num_rows == (
        pq.read_table(whole / "rows.parquet").num_rows
    )


def test_without_a_teacher_one_right_answer_per_question_is_kept_for_any_number_of_ranks(
    home: DistillHome,
) -> None:
    """This is rejection sampling: a model's own right answers become its SFT rows."""

    def rows(ranks: int) -> list[dict]:
        run = f"rejection-{ranks}"
        home.phase(run, "answers", "--distill.teacher=", ranks=ranks).finish()
        return pq.read_table(home.stage("distill", run) / "rows.parquet").to_pylist()

    one = rows(1)
    assert one == rows(2)
    ids = [row["id"] for row in one]
    assert 1 < len(ids) == len(set(ids)) <= QUESTIONS
    for row in one:
        question, answer = row["messages"]
        assert question["content"].startswith("<image>")
        assert len(row["images"]) == 1
        truth = 1 + int(row["id"].removeprefix("q")) % 4
        assert f"<answer>{truth}</answer>" in answer["content"]


@pytest.mark.parametrize(
    ("teacher", "refine", "phases"),
    [
        ("{folder}/x", False, ["captions", "answers"]),
        ("{folder}/x", True, ["captions", "details", "recaptions", "answers"]),
        ("", True, ["answers"]),
    ],
)
def test_the_driver_starts_each_phase_with_its_recipe(
    teacher: str, refine: bool, phases: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, Path, int]] = []
    monkeypatch.setattr(launch, "torchrun", lambda *arguments: started.append(arguments))
    keys = {"teacher": teacher, "data": "q.jsonl", "ranks": 3, "k": 2, "refine": refine}
    drive(recipe_from({"run": {"folder": str(tmp_path)}, "distill": keys}))
    assert [(module, ranks) for module, _, ranks in started] == (
        [("ovlt.distill.rank", 3)] * len(phases)
    )
    for phase, (_, path, _) in zip(phases, started, strict=True):
        recipe = recipe_from(json.loads(path.read_text()))
        assert (recipe.distill.phase, recipe.distill.k) == (phase, 2)
    keys |= {"phase": phases[-1], "ranks": 0, "engine": {"tensor_parallel": 2}}
    started.clear()  # one phase alone; and one process that spreads a model over GPUs
    drive(recipe_from({"run": {"folder": str(tmp_path)}, "distill": keys}))
    assert [ranks for _, _, ranks in started] == [1]


def test_a_rank_runs_one_phase_and_says_which_there_are() -> None:
    config = DistillConfig(teacher="x", phase="details")
    with pytest.raises(ValueError, match=r"phase='details' .* has the phases captions, answers:"):
        phase_and_before(config)
    with pytest.raises(ValueError, match="run all with `ovlt distill`"):
        phase_and_before(DistillConfig())
    refined = DistillConfig(teacher="x", phase="details", refine=True)
    assert phase_and_before(refined) == ("details", "captions")


def test_what_the_driver_cannot_do_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("that folder holds another world")

    monkeypatch.setattr(smoke, "make_missing", refuse)
    with pytest.raises(SystemExit, match=r"ovlt distill: that folder holds another world"):
        main(["distill", f"--run.folder={tmp_path}"])
