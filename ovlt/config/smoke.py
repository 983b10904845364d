"""[synthetic], [base], [teacher], [demo]: the smoke world, its models, what `make demo` adds."""

from __future__ import annotations

from ovlt.config.fields import NonNegative, Place, Positive, Rate, Share, Table, field
from ovlt.config.training import SftOptimConfig


class SyntheticConfig(Table):
    """The synthetic world that the smoke recipe learns in."""

    folder: Place = field("runs/smoke/data", "Folder the files are written to and kept in.")
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
    hard: tuple[str, ...] = field(
        (), "Kinds of question that count as hard, all others as medium; empty: no files of levels."
    )
    level_rows: Positive = field(6000, "Questions of each level, for GRPO.")
    seed_rows: Positive = field(10000, "Questions of both levels to distil traces for.")
    level_validation_rows: Positive = field(500, "Validation questions of each level.")
    level_held_out_rows: Positive = field(1000, "Held-out questions of each level.")


class BaseOptimConfig(SftOptimConfig):
    """The same for the base model, which learns from nothing."""

    lr: Rate = field(2e-3, "Peak learning rate.")
    warmup_steps: NonNegative = field(20, "Optimizer steps of linear warm-up.")


class BaseConfig(Table):
    """A base model made from nothing for the smoke world."""

    folder: Place = field("runs/smoke/base", "Stage folder of the base model, kept between runs.")
    family: str = field("qwen2_5_vl", "Family of the model: model_type of its config.json.")
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


class TeacherConfig(Table):
    """A text-only reasoner for the smoke world: the base model, taught caption -> trace."""

    folder: Place = field("runs/smoke/teacher", "Stage folder of the teacher, kept between runs.")
    rows: Positive = field(8000, "Captions with questions and traces that it learns from.")
    wrong: Share = field(0.1, "Share of these traces that end in a wrong answer.")
    reflections: Share = field(0.0, "Share of these traces that look a second time.")
    styles: dict[str, float] = field(
        {"tally": 0.5, "scan": 0.3, "direct": 0.2}, "Styles of its traces, shares."
    )
    steps: Positive = field(400, "Optimizer steps.")
    batch_samples: Positive = field(32, "Samples per optimizer step.")
    token_budget: Positive = field(1536, "Most tokens in one packed micro-batch of one rank.")
    optim: SftOptimConfig = SftOptimConfig(lr=1e-3)


class DemoConfig(Table):
    """How `make demo` and `make results` run the stages."""

    ranks: NonNegative = field(0, "Processes per stage; 0: one per GPU, or two on a CPU.")
