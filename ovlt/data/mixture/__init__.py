"""Mixtures of public datasets, drawn and written as files of questions."""
