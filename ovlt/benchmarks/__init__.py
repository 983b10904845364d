"""Public benchmarks: their files, prompts, verdicts and tables, each in a file of its own.

``registry.py`` names them. A benchmark turns rows into items, an item and a style into a prompt, a
response into a ruling, and rulings into the tables that its authors report.
"""
