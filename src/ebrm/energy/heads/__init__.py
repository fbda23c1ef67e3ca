"""Other heads over a frozen reward model's embeddings, held, saved and served like the energy model."""
