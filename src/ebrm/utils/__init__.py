"""Files, progress and checks that every package uses."""
