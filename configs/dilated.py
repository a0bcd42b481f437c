"""base with the variant `dilated`: no stride and, before GAP, no pooling; dilated kernels alone shrink the map.

Command: python run.py --config configs/dilated.py
Cost: 2 CPU cores, 0.45 s a training step of 128 images, 175 s an epoch. One GPU: not measured.
Score: not measured.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "dilated"
    config.model.widths = (24, 48, 80, 112)
    return config
