"""Trains, evaluates and ships CIFAR-10 classifiers under 100,000 parameters in JAX and Flax.

Importing the package stays cheap (no JAX): loader workers import it too.
"""

__version__ = "0.1.0"
