"""The frozen reward model: load it, find its head, read (embedding, reward); one adapter a family of models."""
