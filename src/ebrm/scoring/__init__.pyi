from .config import ScoreConfig as ScoreConfig
from .files import file_kind as file_kind
from .score import score_file as score_file
