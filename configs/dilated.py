"""base with the variant `dilated`: no stride and, before GAP, no pooling; dilated kernels alone shrink the map.

Command: python run.py --config configs/dilated.py
Cost: not measured.
Score: not measured.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "dilated"
    config.model.widths = (24, 48, 80, 112)
    return config
