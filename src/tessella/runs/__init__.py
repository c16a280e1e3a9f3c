"""What a training run has written down, and the one page that shows it."""
