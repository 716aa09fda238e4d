"""The linear layers of a model under PEFT's names, which are paths of modules in `transformers`."""

import dataclasses
from collections.abc import Collection, Iterable

from jaxmtl.adapters.targets import Kernel, kernels
from jaxmtl.weights.peft_config import Modules
from jaxmtl.weights.pretrained import Pretrained, family_of

_TASK_TYPES = {
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "Model": "FEATURE_EXTRACTION",
}
"""PEFT's task types by how the name of a class in `transformers` ends. Those of models with heads would make PEFT ask
for the head's weights in the adapter."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """One linear layer of theirs, in each layer of a stack.

    Attributes:
      paths: ours that lie in it side by side along the outputs; mostly one.
      template: their path, with `{l}` for the layer if ours is stacked.
      kernel: sizes of each of ours.
      is_transposed: True if their matrix is [in, out].
    """

    paths: tuple[str, ...]
    template: str
    kernel: Kernel
    is_transposed: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """Their paths, one per layer of a stack."""
        return tuple(self.template.format(l=layer) for layer in range(self.kernel.num_layers)) or (self.template,)

    @property
    def ending(self) -> str:
        """What the modules' paths end with, whatever the layer."""
        return self.template.rpartition("{l}.")[2]

    @property
    def outputs(self) -> int:
        """Width of what theirs gives."""
        return self.kernel.outputs * len(self.paths)


def linears(pretrained: Pretrained, prefix: str) -> list[Linear]:
    """Lists the linear layers that an adapter can change.

    Args:
      pretrained: the model.
      prefix: what their paths lack where the model is used without its head; "" if nothing.

    Returns:
      The layers, in the key table's order.
    """
    known, found = kernels(pretrained.module), []
    for key in family_of(pretrained.config).key_table(pretrained.config):
        paths = tuple(path.removesuffix("/kernel") for path in key.paths())
        if paths[0] in known:
            template = _module(key.theirs).removeprefix(prefix)
            found.append(Linear(paths, template, known[paths[0]], not key.transpose))
    return found


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def model_type(pretrained: Pretrained) -> str:
    """Returns what `transformers` calls the kind of model."""
    return family_of(pretrained.config).config_to_hf(pretrained.config)["model_type"]


def task_type(pretrained: Pretrained) -> str | None:
    """Returns PEFT's task type of a model; None where PEFT shall take it as it is."""
    name = family_of(pretrained.config).config_to_hf(pretrained.config)["architectures"][0]
    return next((task for ending, task in _TASK_TYPES.items() if name.endswith(ending)), None)


def missing_prefix(pretrained: Pretrained, modules: Collection[str]) -> str:
    """Returns what paths of modules lack, because they are those of a model without its head."""
    prefix = family_of(pretrained.config).PREFIX
    return "" if any(module.startswith(prefix) for module in modules) else prefix


def target_modules(chosen: list[Linear], pretrained: Pretrained, prefix: str) -> Modules:
    """Names linear layers so that PEFT changes these and no others.

    Args:
      chosen: the layers.
      pretrained: the model.
      prefix: what their paths lack.

    Returns:
      The shortest ends of paths that tell them from all other modules; a regular expression if there are none.
    """
    wanted = {module for linear in chosen for module in linear.modules}
    others = {module.removeprefix(prefix) for module in _all_modules(pretrained)} - wanted
    endings = [_distinct_ending(linear.ending, others) for linear in chosen]
    if None not in endings:
        return tuple(sorted({ending for ending in endings if ending}))
    pattern = lambda template: template.replace(".", r"\.").replace("{l}", r"\d+")
    return "|".join(sorted(pattern(linear.template) for linear in chosen))


def _all_modules(pretrained: Pretrained) -> set[str]:
    """Returns the modules with parameters that a model has in `transformers`, also those that ours has not."""
    family = family_of(pretrained.config)
    names = {name for key in family.key_table(pretrained.config) for name in key.names()}
    return {_module(name) for name in names | family.IGNORED | {family.HEAD}}


def _distinct_ending(path: str, others: Iterable[str]) -> str | None:
    names = path.split(".")
    endings = [".".join(names[-count:]) for count in range(1, len(names) + 1)]
    is_distinct = lambda ending: not any(f".{module}".endswith(f".{ending}") for module in others)
    return next(filter(is_distinct, endings), None)
