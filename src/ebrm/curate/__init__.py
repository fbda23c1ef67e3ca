"""Which pairs to trust: pure functions over rewards and labels."""
