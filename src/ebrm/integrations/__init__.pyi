from .auto_classes import register_with_transformers as register_with_transformers
from .client import Client as Client
from .config import EBRMConfig as EBRMConfig
from .openrlhf import reward_func as reward_func
from .transformers import EBRMForSequenceClassification as EBRMForSequenceClassification
from .trl import reward_function as reward_function
