"""Install hints of optional features (`pyproject.toml`, `[project.optional-dependencies]`)."""

from __future__ import annotations

from ebrm._version import __version__


def install_hint(extras: str) -> str:
    """How to install extras, as a clause for an error: ebrm is on no package index, so from a clone or a wheel.

    Args:
        extras: names of extras, separated by commas ("ray,serve").
    """
    return (
        f"pip install '.[{extras}]' in a clone of the repository, or "
        f"pip install 'ebrm-{__version__}-py3-none-any.whl[{extras}]'"
    )
