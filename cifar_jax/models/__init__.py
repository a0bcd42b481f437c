"""Networks: ops (convolutions as pure functions), layers (Flax modules), and one file a network family."""
