import flax.linen as nn
import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.partitioning import batch_sharding, make_mesh, shardings_for
from jaxmtl.types import InputError

CONFIG = T5Config(
    vocab_size=96, embed_dim=16, num_heads=6, head_dim=4, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)


def abstract_params():
    tokens = jax.ShapeDtypeStruct((2, 8), "int32")
    return jax.eval_shape(T5(CONFIG).init, jax.random.key(0), tokens, tokens)["params"]


def test_rules_split_the_named_axes():
    shardings = shardings_for(abstract_params(), make_mesh(data=2, fsdp=2, tensor=2))
    assert shardings["encoder"]["attention"]["query"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert shardings["encoder"]["attention"]["out"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert shardings["token_embedding"]["embedding"].spec == P("tensor", "fsdp")
    assert shardings["lm_head"]["kernel"].spec == P("fsdp", "tensor")


def test_an_axis_that_does_not_divide_a_dimension_is_kept_whole():
    shardings = shardings_for(abstract_params(), make_mesh(data=2, tensor=4))
    assert shardings["encoder_bias"]["embedding"].spec == P(None, None)  # 6 heads over 4 devices
    assert shardings["encoder"]["mlp"]["wi_0"]["kernel"].spec == P(None, "fsdp", "tensor")


def test_shardings_match_the_unboxed_tree():
    params = abstract_params()
    shardings = shardings_for(params, make_mesh(data=8))
    assert jax.tree.structure(shardings) == jax.tree.structure(nn.unbox(params))


def test_data_axis_takes_what_is_left():
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_sharding(make_mesh(data=4)).spec == P(
        ("data", "fsdp"),
    )


@pytest.mark.parametrize("axes", [dict(fsdp=3), dict(data=16), dict(data=0), dict(fsdp=16)])
def test_impossible_meshes_are_refused_with_the_numbers(axes):
    with pytest.raises(InputError, match="8"):
        make_mesh(**axes)
