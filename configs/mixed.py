"""base with the variant `mixed`: transitions are a 1x1, a dilated and a strided convolution.

Command: python run.py --config configs/mixed.py
Cost: not measured.
Score: not measured.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "mixed"
    config.model.widths = (32, 32, 64, 64)
    return config
