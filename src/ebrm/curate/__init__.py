"""Which pairs to trust, and how to make more: pure functions over pairs, rewards, labels and embeddings."""
