"""What is adapted: PEFT's DoRA, made fast and differentiable."""
