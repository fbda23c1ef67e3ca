"""What the frozen reward model said, on disk: identity, shards, resume, memory-mapped reads."""
