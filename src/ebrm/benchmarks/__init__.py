"""Public benchmarks of reward models, and files of your own: items, and the rule of the official score.

`open_benchmark(name, data)` reads one from a folder of prepared files, a clone of its repository, or (data=None) the
Hub. Rows that cannot be used are a DataError that counts all and names the first: a benchmark is scored whole.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
