"""Training: one loop for both stages; recipe, budget, schedule, checkpoints."""
