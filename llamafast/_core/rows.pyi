from collections.abc import Mapping

def spare_seconds(
    pace: Mapping[str, float],
    seconds: float,
    n_decode: int,
    n_waiting: int,
    n_prefill: int = 0,
    per_row: float = 0.0,
) -> float: ...
