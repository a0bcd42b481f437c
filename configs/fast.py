"""The shortest training to 85 % of the test images: variant `early`, images augmented on the device, one-cycle SGD.

Command: python run.py --config configs/fast.py
Cost: not measured.
Score: not measured.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "early"
    config.augment.backend = "device"
    config.augment.horizontal_flip.alternate = True
    config.augment.translate = {"padding": 2, "p": 1.0}
    config.augment.shift_scale_rotate.p = 0.0
    config.augment.coarse_dropout.p = 0.0
    config.augment.to_gray.p = 0.0
    config.schedule.learning_rate = 0.6
    config.schedule.warmup_fraction = 0.2
    config.train.epochs = 12
    return config
