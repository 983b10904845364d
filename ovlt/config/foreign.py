"""Keys of other trainers' configurations, and which of a recipe's says the same."""

from __future__ import annotations

_LEARNING_RATE = ("sft.optim.lr", "grpo.optim.lr")
_STEP = ("sft.batch_samples", "grpo.prompts_per_step")
_LENGTHS = ("sft.token_budget", "grpo.rollout.max_prompt_tokens")
_RESPONSE = ("grpo.rollout.max_response_tokens", "evaluate.max_response_tokens")
_ROWS = ("sft.data", "grpo.data")
_PARALLEL = ("evaluate.engine.tensor_parallel", "distill.engine.tensor_parallel")

FOREIGN: dict[str, tuple[str, ...]] = {
    "beta": ("grpo.loss.kl_coef",),
    "bf16": ("model.compute_dtype",),
    "clip_ratio": ("grpo.loss.clip_low", "grpo.loss.clip_high"),
    "clip_ratio_high": ("grpo.loss.clip_high",),
    "clip_ratio_low": ("grpo.loss.clip_low",),
    "cutoff_len": _LENGTHS,
    "dataset": _ROWS,
    "dataset_name": _ROWS,
    "entropy_coeff": ("grpo.loss.entropy_coef",),
    "epsilon": ("grpo.loss.clip_low",),
    "epsilon_high": ("grpo.loss.clip_high",),
    "eval_dataset": ("data.validation",),
    "eval_steps": ("sft.eval_every", "grpo.eval_every"),
    "fp16": ("model.compute_dtype",),
    "freeze_vision_tower": ("model.freeze_vision",),
    "global_batch_size": _STEP,
    "gpu_memory_utilization": ("engine.gpu_memory",),
    "gradient_accumulation_steps": _STEP,
    "gradient_checkpointing": ("model.activation_checkpointing",),
    "image_max_pixels": ("model.max_pixels",),
    "image_min_pixels": ("model.min_pixels",),
    "kl_loss_coef": ("grpo.loss.kl_coef",),
    "learning_rate": _LEARNING_RATE,
    "lr_scheduler_type": ("sft.optim.schedule", "grpo.optim.schedule"),
    "max_completion_length": _RESPONSE,
    "max_length": _LENGTHS,
    "max_new_tokens": _RESPONSE,
    "max_prompt_length": ("grpo.rollout.max_prompt_tokens",),
    "max_response_length": _RESPONSE,
    "max_seq_length": _LENGTHS,
    "max_steps": ("sft.steps", "grpo.steps"),
    "max_tokens": _RESPONSE,
    "model_name_or_path": ("model.path",),
    "num_epochs": ("sft.epochs",),
    "num_generations": ("grpo.rollout.n",),
    "num_train_epochs": ("sft.epochs",),
    "output_dir": ("run.folder",),
    "per_device_eval_batch_size": ("engine.max_sequences",),
    "per_device_train_batch_size": _STEP,
    "report_to": ("run.tensorboard", "run.wandb"),
    "resume_from_checkpoint": ("run.resume",),
    "reward_funcs": ("reward.function",),
    "reward_function": ("reward.function",),
    "rollout_batch_size": ("grpo.prompts_per_step",),
    "save_steps": ("sft.save_every", "grpo.save_every"),
    "scale_rewards": ("grpo.advantage_std",),
    "tensor_model_parallel_size": _PARALLEL,
    "tensor_parallel_size": _PARALLEL,
    "torch_dtype": ("model.compute_dtype",),
    "train_batch_size": _STEP,
    "train_file": _ROWS,
    "train_files": _ROWS,
    "use_vllm": ("engine.backend",),
    "val_files": ("data.validation",),
    "vllm_gpu_memory_utilization": ("engine.gpu_memory",),
}


def same_here(key: str, table: str) -> list[str]:
    """Return the recipe's keys that say what another trainer's ``key`` does, of ``table`` first."""
    return sorted(FOREIGN.get(key.lower(), ()), key=lambda name: name.split(".")[0] != table)
