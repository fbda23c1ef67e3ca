"""Preference pairs in, from the Hub or files, as one checked schema; the text and token rules in one place."""
