"""From files of rows to prompts: images, order, public datasets, the synthetic world."""
