"""C1C2C3C40 on CIFAR-10 as the assignment asks: SGD, and Albumentations on the host; variant `strided`.

The five augmentations are the assignment's in its order, gentler, as a small network wants them.

Command: python run.py --config configs/base.py
      --config.train.epochs=16 --workdir runs/short/base for a quarter of the time: 87.10 %, n = 1
Cost: 2 idle CPU cores, native kernels: 37 s an epoch on a Xeon (n = 16), 37 minutes; on an AMD EPYC 45 s (n = 2). One GPU: not
      measured.
Score: 90.50 ± 0.34 % of the test images, final epoch, seeds 0 to 2 (9051, 9083, 9016 of 10,000), n = 3.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict(
        {
            "name": "c1c2c3c40",
            "variant": "strided",
            "widths": (32, 64, 96, 128),
            "num_classes": 10,
            "head": "dense",
            "dtype": "float32",
            "kernels": "auto",  # native ones on a CPU with a C compiler, Pallas ones on an NVIDIA GPU; "xla": never
        }
    )
    config.init = ConfigDict({"weights": ""})  # from the seed; a committed name or a weights file: docs/fine_tuning.md
    # the same names, of a network whose probabilities are `share` of the objective: docs/distillation.md
    config.distill = ConfigDict({"weights": "", "share": 0.9, "temperature": 4.0})
    config.data = ConfigDict({"source": "auto", "dir": "", "num_validation": 0, "workers": 1})
    config.augment = ConfigDict(
        {
            "backend": "host",
            "horizontal_flip": {"p": 0.5, "alternate": False},
            "translate": {"padding": 4, "p": 0.0},
            "shift_scale_rotate": {"shift": 0.1, "scale": 0.1, "rotate": 10.0, "p": 0.8},
            "color_jitter": {
                "brightness": 0.2,
                "contrast": 0.2,
                "saturation": 0.2,
                "sharpness": 0.5,
                "sharpness_mean": 1.0,
                "hue": 0.02,
                "p": 0.0,
            },
            "coarse_dropout": {"size": 8, "p": 0.5},
            "cutout": {"size": 8, "p": 0.0},
            "to_gray": {"p": 0.05},
            # of the epochs: over `ramp` mixup's probability rises from 0 to p, from `until` on it is 0
            "mixup": {"alpha": 0.2, "p": 0.0, "ramp": 0.0, "until": 1.0},
            "cutmix": {"alpha": 1.0, "p": 0.0},
        }
    )
    config.optim = ConfigDict({"name": "sgd", "momentum": 0.9, "b2": 0.999, "nesterov": True, "weight_decay": 5e-4})
    config.schedule = ConfigDict({"name": "one_cycle", "learning_rate": 0.4, "warmup_fraction": 0.25, "final_fraction": 0.0})
    config.ema = ConfigDict({"decay": 0.0})
    config.train = ConfigDict({"batch_size": 128, "epochs": 60, "label_smoothing": 0.1})
    config.checkpoint = ConfigDict({"every_epochs": 1, "every_seconds": 60.0})
    config.parallel = ConfigDict({"devices": 0, "coordinator": "", "num_processes": 0, "process_id": -1})
    config.log = ConfigDict({"progress": "auto", "tensorboard": True})
    config.budget = ConfigDict({"parameters": 100_000, "receptive_field": 44})
    return config
