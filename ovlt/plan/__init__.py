"""Say whether a recipe fits a node and how long it takes, before anything is loaded."""
