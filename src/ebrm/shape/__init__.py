"""From rewards to a training signal: bounded, centred, scaled, or charged for length."""
