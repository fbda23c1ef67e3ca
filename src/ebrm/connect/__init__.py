"""Where rewards are used: transformers, TRL, OpenRLHF, verl, and the client of `ebrm serve`."""
