"""The base of every class that is written to disk."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """An object of a file: frozen, without unknown fields, without infinities."""

    # "model" is this program's word for a network: let pydantic keep none of its own.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
