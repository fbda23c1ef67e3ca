"""The demonstration: a small reward model, its features of real human-labeled pairs, and a few live texts.

rm/            LoRA adapter and reward head for all-MiniLM-L6-v2, with a card
features/      embeddings and rewards of the pairs under that reward model: numbers, no text
live.json      prompts and responses written for the demonstration
run.py         the main job on them
"""
