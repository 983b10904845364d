"""Sampling groups of answers, and the weights' way into the engine."""
