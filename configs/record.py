"""The highest accuracy under 100,000 parameters: variant `gated`, AdamW, 200 epochs augmented on the device; for a GPU.

Layers and recipe follow github.com/xvel/cifar10-tiniest (97,530 parameters, 94.4 % by its own account). Other than there: four
gated layers of two turns, and wider, in place of six of one; T2 is depthwise-separable; only kernels decay; borders are mirrored;
it is the probability of mixup, not its strength, that rises over the first half, to the same distribution of shares; the last 20
epochs are without; and weights are averaged over 2,000 steps, not 1,000.
Chosen by 5,000 held-out images (results/trials.csv), never by test images. The network: after 60 epochs on 45,000 images their
loss at the best temperature was 0.207 (4646 right); six layers of (48, 80) channels, as in the source, 0.219 (4637); those in two
turns 0.218 (4655), in two turns at 16 x 16 alone 0.235 (4601). Such losses differ by 0.0065 by chance of the images alone, and
each is of one training: a hint, no more. So is the end: in one training of 200 epochs 20 of the last 50 without mixup
gave 4737, mixup to the end 4722, and a count's deviation is 16. The end as it is here was not tried before seed 0.

Command: python run.py --config configs/record.py
Cost: one H200: 1.24 s an epoch, 4.3 minutes, after 60 s of compilation; on a CPU not measured.
Score: 94.68 %, n = 1 (seed 0: 9468 of 10,000 in bfloat16, its weights in float32 9469). Its course: results/record-seed-0.csv.
       Four more seeds are to come: benchmarks/README.md.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.variant = "gated"
    config.model.widths = (56, 56, 96, 96)
    config.model.dtype = "bfloat16"
    config.augment.backend = "device"
    config.augment.translate = {"padding": 4, "p": 1.0}
    config.augment.shift_scale_rotate = {"shift": 0.0, "scale": 0.0, "rotate": 15.0, "p": 0.95}
    config.augment.color_jitter.update(brightness=0.1, contrast=0.1, saturation=0.5, hue=0.05, p=0.9)
    config.augment.color_jitter.update(sharpness=0.6, sharpness_mean=1.6)
    config.augment.coarse_dropout.p = 0.0
    config.augment.to_gray.p = 0.0
    config.augment.mixup = {"alpha": 1.0, "p": 1.0, "ramp": 0.5, "until": 0.9}
    config.optim = {"name": "adamw", "momentum": 0.9, "b2": 0.999, "nesterov": False, "weight_decay": 0.01}
    config.schedule = {"name": "cosine", "learning_rate": 0.02, "warmup_fraction": 0.01, "final_fraction": 0.1}
    config.ema.decay = 0.9995
    config.train.batch_size = 256
    config.train.epochs = 200
    config.train.label_smoothing = 0.0
    config.checkpoint.every_epochs = 10
    return config
