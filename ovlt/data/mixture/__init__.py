"""Mixtures of public datasets: drawn at random and written as files of questions."""
