from .config import ServeConfig as ServeConfig
from .run import serve as serve
