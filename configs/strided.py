"""base with the variant `strided`: its three transitions are 3x3 convolutions of stride 2.

Command: python run.py --config configs/strided.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "strided"
    config.model.widths = (32, 64, 96, 128)
    return config
