def spare_seconds(
    seconds: float,
    n_decode: int,
    n_waiting: int,
    target_itl: float = 0.0,
    n_prefill: int = 0,
    per_row: float = 0.0,
) -> float: ...
