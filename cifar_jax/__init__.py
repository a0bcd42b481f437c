"""Trains, evaluates and ships CIFAR-10 classifiers under 100,000 parameters in JAX and Flax.

Importing the package stays cheap (no JAX): loader workers import it too.
"""

import os

# What an image's header may claim before OpenCV allocates for it, read when cv2 is imported: 64 million pixels, 200 MB, are
# more than a camera takes, and its default of 1,000 million is more than a small machine has.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

__version__ = "0.1.0"
