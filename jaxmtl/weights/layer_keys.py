"""Keys of the layers that several families have."""

from jaxmtl.weights.key_table import Key


def norm_keys(ours: str, theirs: str, num_layers: int = 0) -> list[Key]:
    """Names a layer norm's two vectors."""
    parts = {"scale": "weight", "bias": "bias"}
    return [Key(f"{ours}/{a}", f"{theirs}.{b}", False, num_layers) for a, b in parts.items()]


def dense_keys(
    ours: str, theirs: str, transpose: bool, num_layers: int = 0, *, parts: tuple[str, ...] = ()
) -> list[Key]:
    """Names a dense layer's kernel and bias; arguments as of `Key`."""
    kernel = Key(f"{ours}/kernel", f"{theirs}.weight", transpose, num_layers, parts)
    return [kernel, Key(f"{ours}/bias", f"{theirs}.bias", False, num_layers, parts)]
