"""From files of rows to prompts: images, chat templates, sampling order, and the synthetic world."""
