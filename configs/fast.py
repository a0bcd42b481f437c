"""The shortest training to 85 % of the test images: variant `early`, images augmented on the device, one-cycle SGD.

Command: python run.py --config configs/fast.py
      python -m benchmarks.speedrun --runs 5, which leaves compilation (26 s) and evaluation between epochs out of the time
Cost: 2 CPU cores (AMD EPYC): 261 ± 8 s, 4.4 minutes, native kernels, n = 5.
      One H100, --config.model.dtype=bfloat16: 5.3 ± 0.1 s, n = 16.
Score: 85.35 ± 0.18 % of the test images, final epoch, seeds 0 to 4; on the H100 85.40 ± 0.27 %, seeds 0 to 15.
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
