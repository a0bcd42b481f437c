"""Images in: sources -> formats -> cache -> Dataset -> augment -> loader -> batches. Imports no training code and no JAX."""
