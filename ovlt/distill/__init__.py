"""From questions with images to reasoning traces worth learning from.

shards      results of generation on disk, written as they come, so that a killed run goes on
requests    what captioner and teacher are asked
traces      what is made of a response: its parts, which of several is kept, what a filter leaves
summary     the funnel, pass rates by source, lengths, words that speak of reflection
"""
