"""The heart: networks over (embedding, reward), noise and objectives, fitting, ascent, the exact posterior.

Everything here sees tensors and nothing else; it could be lifted out and used on any scalar regression.
"""
