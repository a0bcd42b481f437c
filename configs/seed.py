"""The recipe of the course log as written, on the team's kind of network, for a curve side by side.

Its five augmentations in their order and probabilities, batch 128, 90 epochs, no label smoothing. The log records no
optimizer; plain SGD at a constant 0.01 with momentum 0.9 stands in for it.

Command: python run.py --config configs/seed.py
Cost: not measured.
Score: not measured.
"""

from configs import mixed


def get_config():
    config = mixed.get_config()
    config.augment.horizontal_flip.p = 0.3
    config.augment.shift_scale_rotate = {"shift": 0.1, "scale": 0.1, "rotate": 30.0, "p": 0.5}
    config.augment.coarse_dropout = {"size": 16, "p": 0.5}
    config.augment.to_gray.p = 0.5
    config.optim.nesterov = False
    config.optim.weight_decay = 0.0
    config.schedule.name = "constant"
    config.schedule.learning_rate = 0.01
    config.schedule.warmup_fraction = 0.0
    config.train.label_smoothing = 0.0
    config.train.epochs = 90
    return config
