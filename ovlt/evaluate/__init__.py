"""How good a model is: accuracy with intervals, during a stage and after it."""
