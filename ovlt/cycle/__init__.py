"""SFT and GRPO in turns: the stages of a cycle, their controls, what is done."""
