"""The whole job in about a minute, offline: ten classes of procedural shapes drawn by the package itself.

python run.py --config configs/smoke.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.widths = (16, 32, 48, 64)
    config.data.source = "shapes"
    config.data.workers = 0
    config.schedule.learning_rate = 0.2
    config.train.batch_size = 64
    config.train.epochs = 5
    return config
