"""The shortest training to 85 % of the test images: variant `coarse`, images augmented on the device, Muon with a one-cycle rate.

Command: python run.py --config configs/fast.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "coarse"
    config.model.widths = (48, 80, 96, 144)
    config.augment.backend = "device"
    config.augment.horizontal_flip.alternate = True
    config.augment.translate = {"padding": 2, "p": 1.0}
    config.augment.shift_scale_rotate.p = 0.0
    config.augment.coarse_dropout.p = 0.0
    config.augment.to_gray.p = 0.0
    config.optim = {"name": "muon", "momentum": 0.95, "b2": 0.999, "nesterov": True, "weight_decay": 0.02}
    config.schedule.learning_rate = 0.08
    config.schedule.warmup_fraction = 0.2
    config.train.epochs = 7
    return config
