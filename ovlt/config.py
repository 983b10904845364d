"""One recipe = one TOML file = one reproducible run.

Frozen pydantic models, extra keys forbidden. Every field says in one sentence what it is, with its
unit. ``load_recipe`` reads the file, lays ``--table.key=value`` over it, and answers an unknown key
with the nearest name. pydantic is used because its validators explain in words; TOML because a
recipe is read more often than it is written.
"""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

REPOSITORY = Path(__file__).resolve().parent.parent
SMOKE_RECIPE = REPOSITORY / "recipes" / "smoke.toml"

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    # Infinity and NaN pass every comparison the wrong way, and JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def field(default: Any, sentence: str) -> Any:
    return Field(default, description=sentence)


class RunConfig(Table):
    """Where a run lives and what makes it repeatable."""

    folder: str = field("runs/{seed}", "Folder of the run; {seed} is replaced by run.seed.")
    seed: NonNegative = field(0, "Seed of initialisation, data order and sampling.")
    resume: Literal["auto", "never"] = field(
        "never", "auto: continue from the newest complete checkpoint of the stage folder."
    )
    deterministic: bool = field(
        False, "Deterministic CUDA algorithms (slower); a CPU is always deterministic."
    )
    device: Literal["auto", "cpu", "cuda"] = field("auto", "Device; auto takes CUDA where it is.")
    tensorboard: bool = field(True, "Write TensorBoard scalars beside metrics.jsonl.")
    wandb: str = field("", "Weights & Biases project; empty: not used.")


class ModelConfig(Table):
    """The model that is trained, and how it is run."""

    path: str = field("", "Hugging Face folder of the base model.")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Dtype of forward and backward; master weights and optimizer stay float32."
    )
    freeze_vision: bool = field(False, "Keep the vision tower and its merger fixed.")
    activation_checkpointing: bool = field(
        False, "Recompute each decoder and tower block in backward (memory for time)."
    )
    reshard: bool = field(
        True, "Free each block's gathered weights after its forward (ZeRO-3); off: keep (ZeRO-2)."
    )
    min_pixels: Positive = field(56 * 56, "Images of fewer pixels are enlarged to this area.")
    max_pixels: Positive = field(512 * 512, "Images of more pixels are reduced to this area.")

    @model_validator(mode="after")
    def _pixels(self) -> ModelConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.min_pixels} exceeds model.max_pixels={self.max_pixels}: "
                "every image would be refused; raise max_pixels or lower min_pixels"
            )
        return self


class DataConfig(Table):
    """Files of rows: questions (problem, answer, images) as parquet or JSONL."""

    validation: str = field("", "Questions measured during training; used for choices.")
    held_out: str = field("", "Questions measured once, when a stage has ended; for no choice.")
    validation_questions: NonNegative = field(200, "Use this many validation questions; 0: all.")
    suffix: str = field("", "Text appended to every question (a format instruction).")
    workers: Positive = field(2, "Threads per rank that decode and resize images.")
    max_bad_share: Share = field(0.02, "Stop when a larger share of a file's rows is bad.")


class SyntheticConfig(Table):
    """The synthetic world that the smoke recipe learns in."""

    folder: str = field("runs/smoke/data", "Folder the generated files are written to and kept in.")
    families: dict[str, float] = field(
        {"shapes": 0.7, "bars": 0.3}, "Families of images and their shares."
    )
    size: Positive = field(84, "Side of the square images, pixels.")
    seed: NonNegative = field(0, "Seed of the world; splits are disjoint by content for any seed.")
    base_rows: Positive = field(30000, "Rows of the base mixture.")
    base_mixture: dict[str, float] = field(
        {"caption": 0.55, "short": 0.12, "text": 0.33},
        "Shares: captions, short answers, text only.",
    )
    sft_rows: Positive = field(12000, "Teacher traces for SFT.")
    styles: dict[str, float] = field(
        {"tally": 0.4, "scan": 0.3, "direct": 0.3}, "Styles of the teacher's traces, shares."
    )
    grpo_rows: Positive = field(6000, "Questions with answers but without traces, for GRPO.")
    validation_rows: Positive = field(400, "Validation questions.")
    held_out_rows: Positive = field(1000, "Held-out questions.")


class OptimConfig(Table):
    """AdamW with float32 masters, clipped by global norm."""

    lr: Rate = field(1e-6, "Peak learning rate.")
    schedule: Literal["constant", "cosine", "linear"] = field("constant", "Shape after warm-up.")
    warmup_steps: NonNegative = field(0, "Optimizer steps of linear warm-up.")
    warmup_ratio: Share = field(0.0, "Warm-up as a share of all steps; used if warmup_steps is 0.")
    min_lr_ratio: Share = field(0.1, "Where cosine and linear schedules end, as a share of lr.")
    betas: tuple[Decay, Decay] = field((0.9, 0.999), "AdamW's moment decays.")
    eps: Rate = field(1e-8, "AdamW's epsilon.")
    weight_decay: Annotated[float, Field(ge=0)] = field(0.01, "Decoupled decay of matrices.")
    max_grad_norm: Rate = field(1.0, "Clip the global gradient norm to this.")


class SftOptimConfig(OptimConfig):
    """The same for SFT, with the released recipe's rate and schedule as defaults."""

    lr: Rate = field(5e-6, "Peak learning rate.")
    schedule: Literal["constant", "cosine", "linear"] = field("cosine", "Shape after warm-up.")
    warmup_ratio: Share = field(0.1, "Warm-up as a share of all steps; used if warmup_steps is 0.")


class BaseOptimConfig(SftOptimConfig):
    """The same for the base model, which learns from nothing."""

    lr: Rate = field(2e-3, "Peak learning rate.")
    warmup_steps: NonNegative = field(20, "Optimizer steps of linear warm-up.")


class BaseConfig(Table):
    """A base model made from nothing for the smoke world."""

    folder: str = field("runs/smoke/base", "Stage folder of the base model, kept between runs.")
    seed: NonNegative = field(0, "Seed of the initial weights.")
    hidden: Positive = field(128, "Hidden size of the decoder.")
    intermediate: Positive = field(384, "Width of the decoder's SwiGLU.")
    layers: Positive = field(4, "Decoder layers.")
    heads: Positive = field(4, "Query heads.")
    kv_heads: Positive = field(2, "Key and value heads.")
    vision_hidden: Positive = field(96, "Hidden size of the vision tower.")
    vision_intermediate: Positive = field(256, "Width of the tower's MLP.")
    vision_depth: Positive = field(2, "Blocks of the tower; the last one attends to the image.")
    vision_heads: Positive = field(3, "Heads of the tower.")
    tie_embeddings: bool = field(False, "Share input and output embeddings (as the 3B does).")
    initializer_range: Rate = field(0.04, "Standard deviation of the initial weights.")
    rope_theta: Rate = field(10_000.0, "Base of the rotary frequencies; Qwen's 1e6 is for 32k.")
    vocab_size: Positive = field(640, "Most entries the tokenizer may learn.")
    steps: Positive = field(640, "Optimizer steps that teach it to see.")
    batch_samples: Positive = field(64, "Samples per optimizer step.")
    token_budget: Positive = field(2048, "Most tokens in one packed micro-batch of one rank.")
    optim: BaseOptimConfig = BaseOptimConfig()


class SftConfig(Table):
    """Supervised fine-tuning on sharegpt messages; loss on the assistant's tokens only."""

    stage: str = field("sft", "Name of the stage folder inside run.folder.")
    title: str = field("SFT on teacher traces", "What the report calls this stage.")
    start: str = field("", "Model folder to start from; empty: model.path.")
    data: str = field("", "SFT rows: messages, images (parquet or JSONL).")
    epochs: Annotated[float, Field(gt=0)] = field(1.0, "Passes over the data; used if steps is 0.")
    steps: NonNegative = field(0, "Optimizer steps; 0: epochs decide.")
    batch_samples: Positive = field(32, "Samples per optimizer step, all ranks together.")
    token_budget: Positive = field(8192, "Most tokens in one packed micro-batch of one rank.")
    eval_every: NonNegative = field(0, "Validate by sampling every so many steps; 0: never.")
    save_every: NonNegative = field(0, "Checkpoint every so many steps; 0: only at the end.")
    optim: SftOptimConfig = SftOptimConfig()


class LossConfig(Table):
    """The policy objective; defaults are the paper's."""

    clip_low: Annotated[float, Field(ge=0, lt=1)] = field(0.2, "Ratio is clipped at 1 - clip_low.")
    clip_high: Annotated[float, Field(ge=0)] = field(0.3, "Ratio is clipped at 1 + clip_high.")
    dual_clip: float = field(3.0, "Bound on ratio x |advantage| for negative advantages; 0: off.")
    ratio: Literal["token", "sequence"] = field(
        "token", "token: PPO ratio per token; sequence: GSPO's geometric mean per response."
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = field(
        "token_mean",
        "token_mean: all tokens of the step weigh the same (DAPO); sequence_mean: mean of the "
        "responses' means (GRPO); constant_length: sum / (responses x max tokens) (Dr.GRPO).",
    )
    kl_coef: Annotated[float, Field(ge=0)] = field(
        1e-2, "Weight of the KL to the frozen reference; 0: off, and no reference model is held."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = field("k3", "Schulman's estimator of the KL.")
    entropy_coef: float = field(0.0, "Weight of an entropy bonus.")
    importance: Literal["truncate", "mask", "off"] = field(
        "truncate", "Correct the engine-trainer mismatch: min(w, cap); drop w > cap; or not at all."
    )
    importance_cap: Rate = field(2.0, "Cap of the importance weight.")

    @model_validator(mode="after")
    def _combination(self) -> LossConfig:
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError("loss.dual_clip must exceed 1 (the paper uses 3.0), or be 0 for off")
        return self


class RolloutConfig(Table):
    """Group sampling."""

    engine: Literal["vllm", "transformers"] = field("vllm", "Sampler; transformers is slow.")
    n: Positive = field(5, "Responses per prompt: the group.")
    temperature: Annotated[float, Field(gt=0)] = field(1.0, "Sampling temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(
        1.0, "Nucleus; below 1 the engine renormalises, so loss.importance must be off."
    )
    max_prompt_tokens: Positive = field(6144, "Longer prompts (images included) are refused.")
    max_response_tokens: Positive = field(2048, "Most new tokens.")
    max_sequences: Positive = field(256, "Sequences the engine runs at once.")
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Dtype of the engine; auto: the model's compute dtype."
    )
    gpu_memory: Share = field(0.6, "Share of GPU memory for the engine.")
    kv_cache_gib: Annotated[float, Field(gt=0)] = field(1.0, "KV cache on a CPU, GiB.")
    tensor_parallel: Positive = field(1, "GPUs per engine; only where no trainer runs beside it.")
    max_mismatch: Annotated[float, Field(ge=0)] = field(
        0.0,
        "Stop when the image probe's largest |log-prob difference| engine - trainer exceeds this; "
        "0: 1e-3 in float32, 0.5 in bfloat16.",
    )


class RewardConfig(Table):
    """The verifiable reward."""

    function: str = field("answer", "'answer', 'released', 'exact', or file.py:function.")
    workers: Positive = field(2, "Killable grading processes per rank.")
    timeout: Rate = field(5.0, "Seconds one answer may take before its worker is killed.")
    max_chars: Positive = field(20000, "Longer responses score 0 unread.")
    overlong_tokens: NonNegative = field(
        0, "DAPO's soft overlong penalty: tokens before the limit where it sets in; 0: off."
    )


class GrpoConfig(Table):
    """Group-relative policy optimisation."""

    stage: str = field("grpo", "Name of the stage folder inside run.folder.")
    title: str = field("GRPO", "What the report calls this stage.")
    start: str = field("", "Model folder to start from; empty: model.path.")
    reference: str = field("", "Model folder of the frozen KL reference; empty: the start.")
    data: str = field("", "Questions: problem, answer, images (parquet or JSONL).")
    steps: Positive = field(80, "Rollout batches.")
    prompts_per_step: Positive = field(512, "Prompts per rollout batch, all ranks together.")
    updates_per_rollout: Positive = field(4, "Optimizer steps per rollout batch.")
    token_budget: Positive = field(16384, "Most tokens in one packed micro-batch of one rank.")
    advantage_std: bool = field(True, "Divide by the group's standard deviation (off: Dr.GRPO).")
    dynamic_sampling: bool = field(False, "Redraw groups whose rewards are all equal (DAPO).")
    max_tries: Positive = field(20, "Rollout rounds dynamic sampling may take per step.")
    eval_every: NonNegative = field(5, "Validate every so many steps; 0: never.")
    save_every: NonNegative = field(10, "Checkpoint every so many steps; 0: only at the end.")
    log_groups: NonNegative = field(8, "Groups per step kept with images for the report.")
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _combination(self) -> GrpoConfig:
        if self.rollout.top_p < 1 and self.loss.importance != "off":
            raise ValueError(
                "grpo.rollout.top_p < 1 cannot be combined with grpo.loss.importance="
                f"'{self.loss.importance}': the engine's log-probs are renormalised over the "
                "nucleus and no trainer reproduces that; set top_p = 1.0 or importance = 'off'"
            )
        if self.rollout.n < 2:
            raise ValueError(
                "grpo.rollout.n must be at least 2: the advantage is relative to the group"
            )
        if self.prompts_per_step % self.updates_per_rollout:
            raise ValueError(
                f"grpo.prompts_per_step={self.prompts_per_step} does not divide into "
                f"grpo.updates_per_rollout={self.updates_per_rollout} equal optimizer steps"
            )
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if longest > self.token_budget:
            raise ValueError(
                f"grpo.token_budget={self.token_budget} is below rollout.max_prompt_tokens + "
                f"max_response_tokens = {longest}: a sample is never cut, so raise the budget "
                "or lower the limits"
            )
        if self.rollout.tensor_parallel > 1:
            raise ValueError(
                "grpo.rollout.tensor_parallel must be 1: each rank runs its own engine; "
                "raise it in [evaluate] or [distill], where no trainer shares the GPUs"
            )
        return self


class EvaluateConfig(Table):
    """Accuracy on questions: greedy, and sampled at a temperature."""

    stage: str = field("evaluate", "Stage folder inside run.folder when a folder is given.")
    model: str = field("", "Model folder; empty: model.path.")
    data: str = field("", "Questions; empty: data.held_out.")
    n: NonNegative = field(4, "Samples per question; 0: greedy only.")
    temperature: Annotated[float, Field(gt=0)] = field(1.0, "Temperature of the sampled answers.")
    max_response_tokens: Positive = field(2048, "Most new tokens.")
    limit: NonNegative = field(0, "Use the first so many questions; 0: all.")
    seed: NonNegative = field(0, "Seed of the sampled answers.")


class DemoConfig(Table):
    """What `make demo` and `make results` add around the stages."""

    ranks: NonNegative = field(0, "Processes per stage; 0: one per GPU, or two on a CPU.")
    control_steps: NonNegative = field(
        0, "Optimizer steps of the SFT-only control; 0: as many as match GRPO's measured compute."
    )
    rejection_prompts: Positive = field(6000, "Questions the rejection-sampling control answers.")
    rejection_n: Positive = field(4, "Samples per question of the rejection-sampling control.")


class Recipe(Table):
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    base: BaseConfig = BaseConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    demo: DemoConfig = DemoConfig()

    def expand(self, text: str) -> str:
        """A path of the recipe with {seed} and {folder} filled in."""
        folder = self.run.folder.replace("{seed}", str(self.run.seed))
        return text.replace("{folder}", folder).replace("{seed}", str(self.run.seed))

    @property
    def folder(self) -> Path:
        return Path(self.expand("{folder}"))

    def resolved(self) -> dict[str, Any]:
        """Every value as plain JSON, for the record kept beside a run."""
        return json.loads(self.model_dump_json())


def load_recipe(path: str | Path | None = None, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, TOML or a resolved one in JSON, and lay ``table.key=value`` over it.

    Values are read as TOML where they parse, else as a bare string, so ``--run.seed=1``,
    ``--sft.optim.lr=1e-3`` and ``--sft.start=runs/x`` all do what they say.

    Raises ValueError: missing file, bad TOML, unknown key (names the nearest), impossible value.
    """
    path = Path(path) if path is not None else SMOKE_RECIPE
    if not path.is_file():
        known = sorted(p.name for p in SMOKE_RECIPE.parent.glob("*.toml"))
        raise ValueError(f"no recipe at {path}; the repository has recipes/{{{', '.join(known)}}}")
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of TOML, JSON or UTF-8
        raise ValueError(f"{path} is not valid TOML (or JSON): {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold tables like [grpo], not a list or a single value")
    for text in overrides or []:
        _set(tree, text)
    return recipe_from(tree, str(path))


def recipe_from(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a tree of tables; see ``load_recipe`` for the errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_explain(error, origin)) from None


def _set(tree: dict[str, Any], text: str) -> None:
    key, separator, value = text.removeprefix("--").partition("=")
    if not separator or not key:
        raise ValueError(f"cannot read {text!r}: an override looks like --grpo.steps=20")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, last = key.split(".")
    info = _fields_at(tables).get(last)
    if info is not None and info.annotation is str and not isinstance(parsed, str):
        parsed = value  # a folder may be called 7 or 2026-01-31
    node = tree
    for table in tables:
        node = node.setdefault(table, {})
        if not isinstance(node, dict):
            raise ValueError(f"{key}: '{table}' is a value, not a table")
    node[last] = parsed


def _fields_at(location: Sequence[Any]) -> dict[str, FieldInfo]:
    """The fields of the table at a path of keys; none where there is no such table."""
    model: Any = Recipe
    for part in location:
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return {}
        model = info.annotation
    return getattr(model, "model_fields", {})


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value, as ``table.key``, in order."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for item in error.errors():
        location = tuple(item["loc"])
        name = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            known = list(_fields_at(location[:-1]))
            near = [key for key, _ in _leaves(Recipe) if key.split(".")[-1] == location[-1]]
            near.sort(key=lambda key: key.split(".")[0] != location[0])  # its own table first
            near = near or difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown key '{name}'; {hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
    return f"{origin}: " + "; ".join(lines)


def command_line(command: str, summary: str, table: str, argv: list[str] | None = None) -> Recipe:
    """``python -m ovlt.COMMAND [RECIPE.toml] [--table.key=value ...]`` -> Recipe.

    ``--help`` lists the fields of the command's own table. A mistake ends the process with one
    sentence and status 2, not a traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(a in ("-h", "--help") for a in argv):
        print(_help(command, summary, table))
        raise SystemExit(0)
    path, overrides = None, []
    for argument in _join_pairs(argv):
        if argument.startswith("--"):
            overrides.append(argument.replace("--resume=", "--run.resume=", 1))
        elif path is None:
            path = argument
        else:
            raise SystemExit(f"ovlt.{command}: more than one recipe given: {path}, {argument}")
    try:
        return load_recipe(path, overrides)
    except ValueError as error:
        print(f"ovlt.{command}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _join_pairs(argv: list[str]) -> list[str]:
    joined: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--") and "=" not in word:
            word = f"{word}={next(words, '')}"
        joined.append(word)
    return joined


def _help(command: str, summary: str, table: str) -> str:
    lines = [
        f"usage: torchrun -m ovlt.{command} [RECIPE.toml] [--table.key=value ...] [--resume auto]",
        "",
        summary,
        f"Without a recipe: {SMOKE_RECIPE.relative_to(REPOSITORY)}. Keys and their defaults:",
    ]
    for name in (table, "run", "model", "data"):
        annotation = Recipe.model_fields[name].annotation
        assert annotation is not None
        lines += ["", f"[{name}] {annotation.__doc__}"]
        for key, info in _leaves(annotation, f"{name}."):
            value = info.default if isinstance(info.default, str) else json.dumps(info.default)
            line = f"{f'  --{key}={value}':<42} {info.description}"
            if get_origin(info.annotation) is Literal:
                line += f" One of: {' | '.join(get_args(info.annotation))}."
            lines.append(line)
    return "\n".join(lines)
