"""base with the variant `dilated`: no stride, no pooling before GAP, dilation alone shrinks the map.

Command: python run.py --config configs/dilated.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "dilated"
    config.model.widths = (24, 48, 80, 112)
    return config
