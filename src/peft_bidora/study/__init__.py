"""Whether a method helps: comparisons over seeds or folds, their statistics, and what training does to the weights."""
