import pytest

from jaxmtl.models import bart_config, gpt_config, roberta_config, t5_config
from jaxmtl.types import InputError, UnknownNameError

NAMED = {
    "T5": (t5_config, "t5-v1.1-xxl"),
    "BART": (bart_config, "bart-large"),
    "GPT2": (gpt_config, "gpt2-1.5b"),
    "OPT": (gpt_config, "opt-350m"),
    "RoBERTa": (roberta_config, "xlm-roberta-large"),
}


@pytest.mark.parametrize("family", NAMED)
@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_every_family_refuses_float16_and_says_why(family, dtype):
    module, name = NAMED[family]
    with pytest.raises(InputError, match=rf"dtype '{dtype}' is not possible for {family}: .*float16.*; use 'bfloat16'"):
        module.named_config(name, dtype=dtype)


@pytest.mark.parametrize("family", NAMED)
def test_every_family_takes_remat_policies_by_name(family):
    module, name = NAMED[family]
    for policy in ("none", "full", "products"):
        assert module.named_config(name, remat=policy).remat == policy
    with pytest.raises(UnknownNameError, match="unknown remat policy 'prducts'; closest: products"):
        module.named_config(name, remat="prducts")
