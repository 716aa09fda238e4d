import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.partitioning import batch_sharding, batch_share, make_mesh, shardings_for
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


def devices_of(*processes):
    """Returns stand-ins for devices of several processes."""
    return [types.SimpleNamespace(process_index=process) for process in processes]


def mesh_of(data, tensor, *processes):
    shape = dict(data=data, fsdp=1, tensor=tensor)
    return types.SimpleNamespace(devices=np.array(devices_of(*processes)).reshape(data, 1, tensor), shape=shape)


def test_a_mesh_that_would_leave_out_a_process_is_refused():
    with pytest.raises(InputError, match=r"takes 1 of 2 devices and none of process 1; take all of them, as data=-1"):
        make_mesh(data=1, devices=devices_of(0, 1))
    with pytest.raises(InputError, match="takes 4 of 6 devices and none of process 2"):
        make_mesh(data=2, fsdp=2, devices=devices_of(0, 0, 1, 1, 2, 2))


@pytest.mark.parametrize(
    "mesh, shares",
    [
        (mesh_of(2, 1, 0, 1), [(0, 2), (1, 2)]),
        (mesh_of(4, 1, 0, 0, 1, 1), [(0, 2), (1, 2)]),
        (mesh_of(4, 1, 1, 0, 1, 0), [(1, 2), (0, 2)]),
        (mesh_of(2, 2, 0, 0, 1, 1), [(0, 2), (1, 2)]),
        (mesh_of(1, 2, 0, 1), [(0, 1), (0, 1)]),
        (mesh_of(2, 2, 0, 1, 2, 3), [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
    ids=["one each", "two each", "in turn", "tensor inside", "tensor across", "tensor across pairs"],
)
def test_processes_that_hold_the_same_rows_feed_the_same_share(mesh, shares, monkeypatch):
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert batch_share(mesh) == share


@pytest.mark.parametrize("mesh", [mesh_of(3, 1, 0, 0, 1), mesh_of(3, 2, 0, 0, 0, 1, 1, 1), mesh_of(1, 2, 1, 1)])
def test_processes_that_cannot_share_a_batch_evenly_are_refused(mesh):
    with pytest.raises(InputError, match="processes cannot share a batch evenly"):
        batch_share(mesh)
