"""[run], [model], [sft], [grpo], [evaluate]: what is trained, how, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ovlt.config.benchmark import BenchmarkConfig
from ovlt.config.engine import SoloEngineConfig
from ovlt.config.fields import (
    Decay,
    NonNegative,
    Place,
    Positive,
    Rate,
    Share,
    StageName,
    Table,
    TemplateKeywords,
    field,
)


class RunConfig(Table):
    """Where a run lives and what makes it repeatable."""

    folder: Place = field("runs/{seed}", "Folder of the run; {seed} is replaced by run.seed.")
    seed: NonNegative = field(0, "Seed of initialisation, data order and sampling.")
    resume: Literal["auto", "never"] = field(
        "never", "auto: continue from the newest complete checkpoint of the stage folder."
    )
    accept_changes: bool = field(
        False,
        "Continue a run though its rows, reward or models hold other contents than when it began.",
    )
    deterministic: bool = field(
        False, "Deterministic CUDA algorithms (slower); a CPU is always deterministic."
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto", "Device; auto takes CUDA if there is a GPU."
    )
    timeout_hours: Annotated[float, Field(gt=0, le=8760)] = field(
        12.0,
        "Hours that ranks wait for each other where work is uneven (sampling, reading, writing); a "
        "collective of the training has 30 minutes.",
    )
    tensorboard: bool = field(True, "Write TensorBoard scalars beside metrics.jsonl.")
    wandb: str = field("", "Weights & Biases project; empty: not used.")
    profile: NonNegative = field(
        0,
        "Steps to profile, after the first: trace, tables of time, idle time and memory, and on a "
        "GPU a snapshot of its memory, in profile/ of the stage folder.",
    )

    @model_validator(mode="after")
    def _folder(self) -> RunConfig:
        if not self.folder.strip() or "{folder}" in self.folder:
            raise ValueError(f"run.folder is {self.folder!r}: name a folder, such as runs/{{seed}}")
        return self


def _checkpointing(value: object) -> object:
    """Read the switch of earlier recipes: true recomputes whole blocks."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class ModelConfig(Table):
    """The model that is trained, and how it is run."""

    path: Place = field("", "Hugging Face folder of the base model.")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Dtype of forward and backward; master weights and optimizer stay float32."
    )
    freeze_vision: bool = field(False, "Keep the vision tower and its merger fixed.")
    activation_checkpointing: Annotated[
        Literal["none", "tower", "mlp", "full", "auto"], BeforeValidator(_checkpointing)
    ] = field(
        "none",
        "What is computed again in backward, memory for time: nothing, the vision tower's blocks, "
        "the MLPs of tower and decoder, or all their blocks; auto: the least that fits into the "
        "memory at hand.",
    )
    reduce_gradients: Literal["auto", "each", "last"] = field(
        "auto",
        "When gradients are summed over ranks: with each micro-batch, so that no rank holds whole "
        "float32 gradients, or once, with the last; auto: last, if that fits.",
    )
    reshard: bool = field(
        True, "Free each block's gathered weights after its forward (ZeRO-3); off: keep (ZeRO-2)."
    )
    liger: Literal["auto", "on", "off"] = field(
        "auto", "Liger's RMSNorm, SwiGLU and rotation; auto: on CUDA, if it is installed."
    )
    min_pixels: NonNegative = field(
        0,
        "Images of fewer pixels are enlarged to this area; 0: the least that the model's own image "
        "processor lets pass.",
    )
    max_pixels: Positive = field(512 * 512, "Images of more pixels are reduced to this area.")

    chat_template_kwargs: TemplateKeywords = field(
        {},
        "Keywords for the model's chat template, such as enable_thinking = false; the same for "
        "training, sampling and evaluation.",
    )

    @model_validator(mode="after")
    def _pixels(self) -> ModelConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.min_pixels} exceeds model.max_pixels={self.max_pixels}: "
                "every image would be refused; raise max_pixels or lower min_pixels"
            )
        return self


class OptimConfig(Table):
    """AdamW with float32 masters, clipped by global norm."""

    lr: Rate = field(1e-6, "Peak learning rate.")
    schedule: Literal["constant", "cosine", "linear"] = field(
        "constant", "Shape of the rate after warm-up."
    )
    warmup_steps: NonNegative = field(0, "Optimizer steps of linear warm-up.")
    warmup_ratio: Share = field(0.0, "Warm-up as a share of all steps; used if warmup_steps is 0.")
    min_lr_ratio: Share = field(0.1, "End of cosine and linear schedules, as a share of lr.")
    betas: tuple[Decay, Decay] = field((0.9, 0.999), "AdamW's moment decays.")
    eps: Rate = field(1e-8, "AdamW's epsilon.")
    weight_decay: Annotated[float, Field(ge=0)] = field(0.01, "Decoupled decay of matrices.")
    max_grad_norm: Rate = field(1.0, "Clip the global gradient norm to this.")


class SftOptimConfig(OptimConfig):
    """The same for SFT, with the released recipe's rate and schedule as defaults."""

    lr: Rate = field(5e-6, "Peak learning rate.")
    schedule: Literal["constant", "cosine", "linear"] = field(
        "cosine", "Shape of the rate after warm-up."
    )
    warmup_ratio: Share = field(0.1, "Warm-up as a share of all steps; used if warmup_steps is 0.")


class SftConfig(Table):
    """Supervised fine-tuning on sharegpt messages; loss on the assistant's tokens only."""

    stage: StageName = field("sft", "Name of the stage folder inside run.folder.")
    title: str = field("SFT on teacher traces", "What the report calls this stage.")
    start: Place = field("", "Model folder to start from; empty: model.path.")
    data: Place = field("", "SFT rows: messages, images (parquet or JSONL).")
    epochs: Annotated[float, Field(gt=0)] = field(1.0, "Passes over the data; used if steps is 0.")
    steps: NonNegative = field(0, "Optimizer steps; 0: epochs decide.")
    batch_samples: Positive = field(32, "Samples per optimizer step, all ranks together.")
    token_budget: Positive = field(8192, "Most tokens in one packed micro-batch of one rank.")
    eval_every: NonNegative = field(0, "Steps between validations by sampling; 0: never.")
    save_every: NonNegative = field(0, "Steps between checkpoints; 0: one at the end.")
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
        "truncate",
        "Correct the engine-trainer mismatch by w = p_trainer / p_engine. truncate: min(w, cap); "
        "mask: drop tokens with w > cap; off: no correction.",
    )
    importance_cap: Rate = field(2.0, "Cap of the importance weight.")

    @model_validator(mode="after")
    def _combination(self) -> LossConfig:
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError("loss.dual_clip must exceed 1 (the paper uses 3.0), or be 0 for off")
        return self


class RolloutConfig(Table):
    """Group sampling: how many responses per prompt, how, and how long."""

    n: Positive = field(5, "Responses per prompt: the group.")
    temperature: Annotated[float, Field(gt=0)] = field(1.0, "Sampling temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(
        1.0, "Nucleus; below 1 the engine renormalises, so loss.importance must be off."
    )
    top_k: NonNegative = field(0, "Sample from this many most likely tokens, as top_p; 0: all.")
    max_prompt_tokens: Positive = field(6144, "Longer prompts (images included) are refused.")
    max_response_tokens: Positive = field(2048, "Most new tokens.")


class GrpoConfig(Table):
    """Group-relative policy optimisation."""

    stage: StageName = field("grpo", "Name of the stage folder inside run.folder.")
    title: str = field("GRPO", "What the report calls this stage.")
    start: Place = field("", "Model folder to start from; empty: model.path.")
    reference: Place = field("", "Model folder of the frozen KL reference; empty: the start.")
    data: Place = field("", "Questions: problem, answer, images (parquet or JSONL).")
    suffix: str = field(
        "",
        "Follows data.suffix in this stage's rollouts and validations, not in held-out questions.",
    )
    steps: Positive = field(80, "Rollout batches to train on.")
    prompts_per_step: Positive = field(512, "Prompts per rollout batch, all ranks together.")
    updates_per_rollout: Positive = field(4, "Optimizer steps per rollout batch.")
    token_budget: Positive = field(16384, "Most tokens in one packed micro-batch of one rank.")
    advantage_std: bool = field(True, "Divide by the group's standard deviation (off: Dr.GRPO).")
    dynamic_sampling: bool = field(False, "Redraw groups whose rewards are all equal (DAPO).")
    max_tries: Positive = field(20, "Rollout rounds dynamic sampling may take per step.")
    skip_zero_advantage: bool = field(
        False,
        "Leave samples of advantage 0 out of the update if the loss has no KL and no entropy term, "
        "which would give them a gradient: the same gradient for less compute.",
    )
    share_prompts: bool = field(
        True,
        "Compute a prompt once for all its responses, in every pass; off: once for each. The "
        "gradient is the same.",
    )
    eval_every: NonNegative = field(5, "Steps between validations; 0: never.")
    save_every: NonNegative = field(10, "Steps between checkpoints; 0: one at the end.")
    keep: Literal["last", "best"] = field(
        "last", "Model to export: of the last step, or of the best greedy validation."
    )
    log_groups: NonNegative = field(
        8, "Groups per step that are kept, with images, for the report."
    )
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    rollout: RolloutConfig = RolloutConfig()

    @model_validator(mode="after")
    def _combination(self) -> GrpoConfig:
        nucleus = self.rollout.top_p < 1 or self.rollout.top_k > 0
        if nucleus and self.loss.importance != "off":
            raise ValueError(
                "grpo.rollout.top_p < 1 or top_k > 0 cannot be combined with grpo.loss.importance="
                f"'{self.loss.importance}': the engine's log-probs are renormalised over the "
                "nucleus and no trainer reproduces that; set top_p = 1.0 and top_k = 0, or "
                "importance = 'off'"
            )
        if self.keep == "best" and not self.eval_every:
            raise ValueError("grpo.keep = 'best' needs validations to choose by: set eval_every")
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
        return self


class EvaluateConfig(Table):
    """Accuracy on questions: greedy, and sampled at a temperature."""

    stage: StageName = field("evaluate", "Name of the stage folder inside run.folder.")
    model: Place = field("", "Model folder; empty: model.path.")
    data: Place = field("", "Questions; empty: data.held_out.")
    n: NonNegative = field(4, "Samples per question; 0: greedy only.")
    temperature: Annotated[float, Field(gt=0)] = field(1.0, "Temperature of the sampled answers.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Nucleus of the sampled answers.")
    top_k: NonNegative = field(0, "Sample from this many most likely tokens; 0: all.")
    max_prompt_tokens: Positive = field(6144, "Longer prompts (images included) are refused.")
    max_response_tokens: Positive = field(2048, "Most new tokens.")
    limit: NonNegative = field(
        0, "Use only this many questions, from the start of the file; 0: all."
    )
    seed: NonNegative = field(0, "Seed of the sampled answers.")
    engine: SoloEngineConfig = SoloEngineConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()

    @property
    def max_tokens(self) -> int:
        """Longest prompt and response together."""
        return self.max_prompt_tokens + self.max_response_tokens
