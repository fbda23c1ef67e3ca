from .openrlhf import reward_func as reward_func
from .registration import register as register
from .transformers import EBRMConfig as EBRMConfig
from .transformers import EBRMForSequenceClassification as EBRMForSequenceClassification
from .transformers import export as export
from .transformers import refuse_used as refuse_used
from .trl import reward_function as reward_function
