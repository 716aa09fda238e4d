"""SeqIO tasks, mixtures and caching: the only folder that imports TensorFlow."""
