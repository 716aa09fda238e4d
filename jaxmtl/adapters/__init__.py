"""Adapters: small trees beside a model's parameters that change what it does, one for all rows or one for each."""
