"""From questions with images to reasoning traces worth learning from.

command     the phases of a distillation, and one of them on every rank
phases      which phases there are, and what decides the records of each
requests    the prompts for captioner and teacher
generate    batches of answers, written while the engine samples the next ones
shards      records on disk, so that a killed run goes on where it was
traces      a response in its parts; which of several is kept, and what a filter leaves of it
assemble    the SFT rows, and why each sample was kept or dropped
summary     the funnel, pass rates by source, lengths, words that speak of reasoning
"""
