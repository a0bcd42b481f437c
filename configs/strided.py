"""base with the variant `strided`: its three transitions are 3x3 convolutions of stride 2, depthwise-separable.

Command: python run.py --config configs/strided.py
Cost and score: those of base, which is this network: 37 minutes on 2 CPU cores, 90.50 %, n = 3.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "strided"
    config.model.widths = (32, 64, 96, 128)
    return config
