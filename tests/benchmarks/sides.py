"""Sides of a comparison that need no model; a module of its own, because another process imports it."""


def echo(prefix):
    return lambda request: prefix + request, f"made {prefix}"


def fail(kind):
    if kind == "early":
        raise ValueError("broke while preparing")
    return {"late": lambda request: request / 0}[kind], None
