import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, and a busy machine is slow: how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("jaxmtl", deadline=None)
hypothesis.settings.load_profile("jaxmtl")
