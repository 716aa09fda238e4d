import dataclasses

import pytest

from jaxmtl.models.t5_config import T5Config, named_config
from jaxmtl.types import InputError, UnknownNameError
from jaxmtl.weights import t5_map

TINY = dict(
    vocab_size=48, embed_dim=16, num_heads=3, head_dim=5, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2
)


@pytest.mark.parametrize(
    "fields",
    [
        dict(mlp_activations=["relu"]),
        dict(head_scale=16**-0.5, tied_head=True),
        dict(dropout_rate=0),
        dict(scan_unroll=0),
        dict(relative_buckets=4, relative_max_distance=3),
        dict(pad_id=47, eos_id=46, decoder_start_id=45),
    ],
    ids=str,
)
def test_what_a_config_may_say_survives_its_config_json(fields):
    config = T5Config(**TINY, **fields)
    again = t5_map.config_from_hf(t5_map.config_to_hf(config), "x", config.dtype)
    assert dataclasses.replace(again, scan_unroll=config.scan_unroll) == config


@pytest.mark.parametrize(
    "fields, message",
    [
        *((dict([(name, 0)]), f"{name} is 0; expected an integer, at least 1") for name in TINY),
        (dict(num_heads=True), "num_heads is True; expected an integer, at least 1"),
        (dict(embed_dim=16.0), "embed_dim is 16.0; expected an integer"),
        (dict(mlp_dim="20"), "mlp_dim is '20'; expected an integer"),
        (dict(relative_buckets=3), "relative_buckets is 3; expected an integer, at least 4"),
        (
            dict(relative_max_distance=16),
            "relative_max_distance is 16; expected more than half of .*, 16",
        ),
        (dict(scan_unroll=-1), "scan_unroll is -1; expected an integer, at least 0"),
        (dict(pad_id=-1), "pad_id is -1; expected an integer, at least 0"),
        (dict(pad_id=48), "pad_id is 48; expected less than vocab_size, 48"),
        (dict(eos_id=50), "eos_id is 50; expected less than vocab_size"),
        (dict(decoder_start_id=48), "decoder_start_id is 48; expected less than vocab_size"),
        (dict(dropout_rate=1.0), "dropout_rate is 1.0; expected at least 0 and below 1"),
        (dict(dropout_rate=-0.1), "dropout_rate is -0.1"),
        (dict(dropout_rate=False), "dropout_rate is False; expected a number"),
        (dict(norm_epsilon=0.0), "norm_epsilon is 0.0; expected a finite number above 0"),
        (dict(norm_epsilon=float("nan")), "norm_epsilon is nan"),
        (dict(head_scale=0.5), "head_scale is 0.5; expected 1, or embed_dim to the power of -1/2, 0.25"),
        (dict(mlp_activations=("gelu",)), "mlp_activations is .*; expected one of .*relu.*gelu.*linear"),
        (dict(mlp_activations=()), "mlp_activations is"),
        (dict(mlp_activations="relu"), "mlp_activations is 'relu'"),
    ],
    ids=str,
)
def test_what_no_t5_can_be_is_refused(fields, message):
    with pytest.raises(InputError, match=f"^T5: {message}"):
        T5Config(**TINY | fields)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown remat policy 'ful'; closest: full"):
        T5Config(**TINY, remat="ful")
    with pytest.raises(UnknownNameError, match="unknown T5 size 't5-smal'; closest: t5-small"):
        named_config("t5-smal")
