from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Outbox:
    def __new__(cls, wake_fd: int) -> Self: ...
    def drain(self) -> list[tuple[int, str, int, int, int, tuple[bool, bytes] | None, int, bytes, int]]: ...
