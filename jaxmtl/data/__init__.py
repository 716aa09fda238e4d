"""SeqIO tasks and mixtures over task specs, and their way into a token store. The only part that imports TensorFlow."""
