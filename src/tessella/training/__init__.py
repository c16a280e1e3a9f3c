"""Training: one loop for both stages; recipe, schedule, checkpoints, plan."""
