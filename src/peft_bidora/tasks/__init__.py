"""What a model is fine-tuned for: one file a task, and what the tasks share."""
