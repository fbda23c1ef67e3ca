"""`python -m ebrm`, and `accelerate launch -m ebrm features …` on several GPUs."""

from __future__ import annotations

import sys

from ebrm.cli.main import main

sys.exit(main())
