"""ovlt trains vision-language models to reason: SFT, then GRPO, on images, as one program."""

__version__ = "0.1.0"
