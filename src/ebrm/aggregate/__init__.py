"""Several rewards of the same texts made one: pure functions over tensors."""
