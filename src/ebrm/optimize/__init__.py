"""What becomes of responses that are selected by a reward: pure functions over arrays."""
