"""The highest accuracy under 100,000 parameters: variant `gated`, AdamW, 300 epochs augmented on the device; for a GPU.

Network and recipe follow github.com/xvel/cifar10-tiniest (97,530 parameters, 94.4 % by its own account). Other than there:
T2 is depthwise-separable; only kernels decay; borders are mirrored; it is the probability of mixup, not its strength, that
rises over the first half, to the same distribution of shares; the rate falls to a hundredth, not a tenth; and there are 300
epochs, not 200. An earlier recipe (200 epochs, sharpness on both sides of 1) had been seen to reach 94.0 % of the test images;
the changes were made from the source's recipe, not by comparing test figures.
Held-out images were looked at afterwards, in ends of one training of 200 epochs (results/trials.csv): with ema.decay=0.9995, 20
epochs without mixup, at rates from 0.16 to 0.07 of the highest, gave 4737 of 5000, mixup to the end 4722, 50 epochs without it
4709, 10 of flips and translations alone 4739. A count's deviation is 16: no more than a hint. By it the next record ends in 20
epochs without mixup at a tenth of the rate, which was itself not tried; its command, begun, stands in benchmarks/README.md.

Command: python run.py --config configs/record.py
Cost: one H200: 0.66 s an epoch, 3.4 minutes, after some 90 s of compilation; 2 CPU cores: 10 minutes an epoch.
Score: 94.53 ± 0.14 %, n = 2 (seeds 0, 1: 9443, 9463 of 10,000, in bfloat16; seed 0's weights in float32: 9442). The course of
       seed 0: results/record-seed-0.csv.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "gated"
    config.model.widths = (48, 48, 80, 80)
    config.model.dtype = "bfloat16"
    config.augment.backend = "device"
    config.augment.translate = {"padding": 4, "p": 1.0}
    config.augment.shift_scale_rotate = {"shift": 0.0, "scale": 0.0, "rotate": 15.0, "p": 0.95}
    config.augment.color_jitter.update(brightness=0.1, contrast=0.1, saturation=0.5, hue=0.05, p=0.9)
    config.augment.color_jitter.update(sharpness=0.6, sharpness_mean=1.6)
    config.augment.coarse_dropout.p = 0.0
    config.augment.to_gray.p = 0.0
    config.augment.mixup = {"alpha": 1.0, "p": 1.0, "ramp": 0.5, "until": 1.0}
    config.optim = {"name": "adamw", "momentum": 0.9, "b2": 0.999, "nesterov": False, "weight_decay": 0.01}
    config.schedule = {"name": "cosine", "learning_rate": 0.02, "warmup_fraction": 0.01, "final_fraction": 0.01}
    config.ema.decay = 0.999
    config.train.batch_size = 256
    config.train.epochs = 300
    config.train.label_smoothing = 0.0
    config.checkpoint.every_epochs = 10
    return config
