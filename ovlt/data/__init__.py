"""From files of rows to prompts: images, chat templates, sampling order, the synthetic world."""
