"""What is read from people's and programs' JSON, and kept as it was read."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen data that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
