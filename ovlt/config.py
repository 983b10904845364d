"""The tables of a recipe: every key with its type, default, check and meaning.

Frozen pydantic models, extra keys forbidden; pydantic because its validators explain in words.
``ovlt.recipe`` reads them from a file and the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    liger: Literal["auto", "on", "off"] = field(
        "auto", "Liger's RMSNorm, SwiGLU and rotation; auto: on CUDA, where it is installed."
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


class MixtureSourceConfig(Table):
    """One source of a mixture: a dataset, and where it lies."""

    source: str = field("", "Name of the dataset; `python -m ovlt.data.prepare --list` has them.")
    path: str = field("", "Folder or file of the dataset, as it was downloaded.")
    split: str = field("", "Split to read where there are several; empty: train.")
    subset: str = field("", "Subset to read where the path holds several.")
    share: Annotated[float, Field(ge=0)] | None = field(
        None, "Weight in the mixture; left out: that of mixture.name, or 1."
    )
    cap: NonNegative | None = field(
        None, "Most questions from it; left out: that of mixture.name; 0: no cap."
    )
    rating: float | None = field(None, "Rated difficulty, on any scale that all sources share.")
    error_rate: Share | None = field(None, "Share of its questions the base model gets wrong.")


class MixtureConfig(Table):
    """A mixture of datasets, written as files of questions by ovlt.data.prepare."""

    name: str = field("", "A published mixture (--list has them) for sources, shares and total.")
    folder: str = field("data/mixture", "Folder the files are written to.")
    total: NonNegative = field(
        0, "Questions to train on; 0: that of the name, or all up to the caps."
    )
    seed: NonNegative = field(0, "Seed of the draw.")
    validation: NonNegative = field(
        0, "Questions held back as validation.parquet; train asks nothing about their images."
    )
    images: Literal["bytes", "files"] = field(
        "bytes", "bytes: in parquet; files: JSONL with a folder of images."
    )
    sharegpt: bool = field(False, "Also write LLaMA-Factory's sharegpt files.")
    levels: tuple[Literal["easy", "medium", "hard"], ...] = field(
        (), "Only sources (or, with a pass_rate, questions) of these levels; empty: all."
    )
    min_pass_rate: Share = field(0.0, "Leave out questions of a lower pass_rate.")
    max_pass_rate: Share = field(1.0, "Leave out questions of a higher pass_rate.")
    benchmarks: tuple[str, ...] = field(
        (), "Benchmark files (parquet, JSON, JSONL) whose questions are left out."
    )
    overlap_bits: NonNegative = field(
        4, "Images whose 1024-bit hashes differ in at most so many bits count as the same."
    )
    max_bad_share: Share = field(
        0.9, "Stop when a larger share of a source's rows is bad; half of ScienceQA has no image."
    )
    sources: tuple[MixtureSourceConfig, ...] = field((), "The datasets: [[mixture.sources]].")


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


class TeacherConfig(Table):
    """A text-only reasoner for the smoke world: the base model, taught caption -> trace."""

    folder: str = field("runs/smoke/teacher", "Stage folder of the teacher, kept between runs.")
    rows: Positive = field(8000, "Captions with questions and traces that it learns from.")
    wrong: Share = field(0.1, "Share of these traces that end in a wrong answer.")
    styles: dict[str, float] = field(
        {"tally": 0.5, "scan": 0.3, "direct": 0.2}, "Styles of its traces, shares."
    )
    steps: Positive = field(400, "Optimizer steps.")
    batch_samples: Positive = field(32, "Samples per optimizer step.")
    token_budget: Positive = field(1536, "Most tokens in one packed micro-batch of one rank.")
    optim: SftOptimConfig = SftOptimConfig(lr=1e-3)


class DistillConfig(Table):
    """Traces for SFT: captions for a teacher that cannot see, or a model's own answers."""

    stage: str = field("distill", "Name of the stage folder inside run.folder.")
    data: str = field("", "Questions: problem, answer, images (parquet or JSONL).")
    questions: NonNegative = field(0, "Use the first so many questions; 0: all.")
    captioner: str = field("", "Model folder that describes the images; empty: model.path.")
    teacher: str = field(
        "", "Model folder that reasons over the captions, text only; empty: no captions, the "
        "captioner answers the questions itself (iterations after the first)."
    )  # fmt: skip
    k: Positive = field(4, "Answers sampled per question.")
    temperature: Annotated[float, Field(gt=0)] = field(0.6, "Of the sampled answers.")
    caption_temperature: Annotated[float, Field(ge=0)] = field(0.0, "Of the captions; 0: greedy.")
    max_caption_tokens: Positive = field(1024, "Most new tokens of a caption.")
    max_prompt_tokens: Positive = field(6144, "Longer prompts (caption included) are left out.")
    max_response_tokens: Positive = field(8192, "Most new tokens of an answer.")
    caption_request: str = field(
        "Describe this image so fully, in plain sentences, that someone who cannot see it could "
        "answer any question about it: every object, number, label, colour and position.",
        "What the captioner is asked about an image.",
    )
    teacher_request: str = field(
        "Here is a description of an image.\n\n{caption}\n\nAnswer the question about this image. "
        "Give the final answer in <answer></answer>.\n\n{question}",
        "What the teacher is asked; {caption} and {question} are filled in.",
    )
    keep: Literal["shortest", "second_longest"] = field(
        "shortest", "Which correct trace: as the papers say, or as the released code does."
    )
    filter: Literal["none", "max_words", "reflections"] = field(
        "none", "What happens to long traces, or to what follows a first 'Wait' (iteration 1)."
    )
    max_words: Positive = field(500, "For filter = max_words: longer reasoning is left out.")
    form: str = field(
        "<think>\n{think}\n</think>\n\n{summary}\n\n<answer>{answer}</answer>",
        "The text that is learned.",
    )
    refine: bool = field(False, "Describe each image a second time, with what the teacher missed.")
    details_request: str = field(
        "Here is a description of an image.\n\n{caption}\n\nSomeone must answer this question from "
        "it alone:\n\n{question}\n\nList what the description leaves out or leaves unclear.",
        "For refine: what the teacher is asked about a description.",
    )
    recaption_request: str = field(
        "Describe this image fully, in plain sentences. An earlier description left this open; "
        "make it clear:\n\n{details}",
        "For refine: what the captioner is then asked; {details} is filled in.",
    )
    phase: Literal["all", "captions", "details", "recaptions", "answers"] = field(
        "all", "all: each in its turn, as a process of its own per rank; or one, on these ranks."
    )
    ranks: NonNegative = field(0, "Processes per phase; 0: one per GPU, or two on a CPU.")
    shard: Positive = field(256, "Questions per written file and rank; a kill loses at most these.")
    seed: NonNegative = field(0, "Seed of the sampled answers.")
    tensor_parallel: Positive = field(1, "GPUs per engine; above 1 there is one process.")
    max_sequences: Positive = field(256, "Sequences the engine runs at once.")

    @model_validator(mode="after")
    def _places(self) -> DistillConfig:
        if self.tensor_parallel > 1 and self.ranks > 1:
            raise ValueError(
                "distill.tensor_parallel > 1 is for one process that spreads a large teacher over "
                "GPUs: set distill.ranks to 1 or 0"
            )
        for text, key, names in (
            (self.teacher_request, "teacher_request", ("caption", "question")),
            (self.details_request, "details_request", ("caption", "question")),
            (self.recaption_request, "recaption_request", ("details",)),
            (self.form, "form", ("think", "answer")),
        ):
            for name in names:
                if "{" + name + "}" not in text:
                    raise ValueError(f"distill.{key} lacks {{{name}}}: it would be lost; put it in")
        return self


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
    mixture: MixtureConfig = MixtureConfig()
    base: BaseConfig = BaseConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
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
