"""The same networks and recipe in PyTorch, written as a PyTorch user would: what the JAX side is compared with."""
