from .abstention import Abstention as Abstention
from .abstention import conformal_abstention as conformal_abstention
from .abstention import selective_abstention as selective_abstention
from .preference import PreferenceCalibration as PreferenceCalibration
from .preference import confidence as confidence
from .preference import cross_calibrated as cross_calibrated
